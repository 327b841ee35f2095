"""A whole fabric in one thread: the shipped API, schedulers, conductors and host daemons on simulated stores, streams and machines.

Everything that chance decides comes from the seed, so a seed is a whole history. What happens is told to the checker as it happens.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, Protocol

from fabric.api.network_desk import Desk
from fabric.api.networks import NetworkHandlers
from fabric.api.subnets import SubnetHandlers
from fabric.conductor.service import ConductorService
from fabric.conductor.settings import ConductorSettings
from fabric.errors import FabricError, Unavailable
from fabric.images.memory import MemoryBlobs
from fabric.model.faults import FaultCode
from fabric.model.host import Cell, Host, Resources, Session, SessionState
from fabric.model.identity import Principal, Project, Role
from fabric.model.quota import Charge, NetworkLimits, Quota
from fabric.model.volume import trait_of
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from fabric.pb.network.v1 import network_service_pb2, subnet_service_pb2
from fabric.scheduler.ports import Ports
from fabric.scheduler.service import SchedulerService
from fabric.scheduler.settings import SchedulerSettings
from fabric.store import codec, keys
from fabric.store.base import Txn
from fabric.store.memory import MemoryStore
from hostd.commands.journal_memory import JournalMemory, MemoryJournal
from hostd.driver.fake import Delays, FakeDriver, FakeMachine, FakeShelf, MachineEvent
from hostd.images.fake import FakeDisks
from hostd.network.fake import FakeWires
from hostd.service import HostDaemon
from hostd.settings import HostSettings
from hostd.volumes.fake import FakeVolumes
from tests.history.events import (
    Destroyed,
    Event,
    Made,
    PowerLost,
    Started,
    Stopped,
    VolumeMade,
    VolumeRemoved,
    Wrote,
)
from tests.history.invariants import Checker, Violation
from tests.history.settled import Leftovers, unsettled
from tests.sim import tenant_networks
from tests.sim.furniture import catalogue, holdings_of
from tests.sim.loop import SimLoop
from tests.sim.network import Network, SimStore, SimStream, StoreServer
from tests.sim.parts import CERT_SERIAL, IMAGE_BYTES, ApiServer, SimBlobs, SimClock, SimDialer, SimIds
from tests.sim.permits import START_S, Permits
from tests.sim.port_clients import NETWORK
from tests.sim.process import Process

PERMIT_S = 8.0
"""How long hosts may start guests without being heard of. Less than in production, or no fault would ever outlast it."""

RESYNC_S = 12.0
"""How often hosts are told everything again: more often than in production, so that it meets with more."""

SLOW = Delays(define_s=0.3, start_s=1.0, cut_power_s=0.5, wire_s=0.3, disk_s=1.0, image_chunk_s=0.5)
"""Machines on which everything takes so long that much can come in between."""

SHARED = "pool"
"""The directory for volumes that two hosts of three share."""

STEP_FAULTS = (FaultCode.DISK_FULL, FaultCode.HYPERVISOR_UNAVAILABLE, FaultCode.DOMAIN_START_FAILED)


class Runs(Protocol):
    """What every process is made of."""

    def run(self) -> Coroutine[Any, Any, None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """How much of everything there is."""

    cells: int = 1
    hosts_per_cell: int = 3
    apis: int = 2
    schedulers: int = 2
    conductors_per_cell: int = 2
    projects: int = 2
    quota: Charge = field(
        default_factory=lambda: Charge(instances=5, vcpus=8, ram_mib=4096, volumes=5, volume_gib=8)
    )
    host_capacity: Resources = field(default_factory=lambda: Resources(vcpus=4, ram_mib=2048, disk_gib=20))
    shelve_offload_s: float = 0.0
    resize_confirm_s: float = 0.0
    reclaim_s: float = 0.0
    """0 is not at all, as everywhere: a delete is for good at once."""


class World:
    """All of it. `violation` is the first thing that may never happen, if it has."""

    def __init__(self, loop: SimLoop, seed: int, topology: Topology, *, verbose: bool = False) -> None:
        self.loop = loop
        self.topology = topology
        self.random = Random(f"world {seed}")
        self.network = Network(
            Random(f"network {seed}"), lose_answers=Random(f"loss {seed}").choice([0.0, 0.01, 0.05])
        )
        self.network.double_frames = Random(f"doubling {seed}").choice([0.0, 0.0, 0.03])
        self.network.on_frame = self._frame
        self.clock = SimClock(loop)
        self.blobs = MemoryBlobs(self.clock)
        self.blobs.put(hashlib.sha256(IMAGE_BYTES).hexdigest(), IMAGE_BYTES)
        self.ids = SimIds(Random(f"ids {seed}"))
        self._network_ids = SimIds(Random(f"networks {seed}"))
        self.jitter: Callable[[], float] = Random(f"jitter {seed}").random
        self.cells = [f"cell{number}" for number in range(1, topology.cells + 1)]
        self.servers = {name: StoreServer(MemoryStore(name)) for name in ("global", *self.cells)}
        self.machines: dict[str, FakeMachine] = {}
        self.journals: dict[str, JournalMemory] = {}
        self.processes: dict[str, Process[Any]] = {}
        self.streams: dict[str, list[SimStream]] = {}
        self.checker = Checker(permit_s=PERMIT_S + START_S, is_one_clock=True)
        self.permits = Permits(frozenset())
        self.violation: BaseException | None = None
        self.events = 0
        self.digest = hashlib.sha256()
        self.shelf = FakeShelf()
        self._delays = Random(f"machines {seed}").choice([Delays(), Delays(), SLOW])
        self._verbose = verbose
        self._fed = dict.fromkeys(self.servers, 0)
        self._cell_of: dict[str, str] = {}
        self._down: set[str] = set()
        self._off: set[str] = set()
        self._doomed: set[str] = set()
        self._ambushes: list[tuple[str, float, Callable[[str], None]]] = []
        loop.set_exception_handler(self._unhandled)

    # ---------------------------------------------------------------- making it

    async def furnish(self) -> None:
        """What an operator has made before the first process starts."""
        topology, glob = self.topology, self.servers["global"].memory
        put: dict[str, object] = {}
        for number in range(topology.projects):
            project = self._project(number)
            put[keys.PROJECT.at(project)] = Project(id=project, name=f"project-{number}")
            put[keys.QUOTA.at(project)] = Quota(project_id=project, limit=topology.quota)
        for cell in self.cells:
            put[keys.CELL.at(cell)] = Cell(name=cell)
        put |= catalogue(self.ids, owner=self._project(0))
        await glob.commit(Txn(put={key: codec.encode(value) for key, value in put.items()}))
        await self._furnish_networks()
        await tenant_networks.lead_out(glob)
        for at, cell in enumerate(self.cells):
            for number in range(topology.hosts_per_cell):
                await self._furnish_host(cell, f"h{at}{number}", at * 16 + number)

    async def _furnish_networks(self) -> None:
        """A network for each project, with fewer addresses than its servers ask for."""
        desk = Desk(
            self.servers["global"].memory,
            limits=NetworkLimits(),
            clock=self.clock,
            ids=self._network_ids,
            jitter=lambda: 0.5,
        )
        networks, subnets = NetworkHandlers(desk), SubnetHandlers(desk)
        for principal in self.principals():
            rid = self._network_ids.new_id
            network = network_service_pb2.Network(name=NETWORK)
            subnet = subnet_service_pb2.Subnet(name=NETWORK, network=NETWORK, cidr="10.0.0.0/29")
            await networks.create_network(
                network_service_pb2.CreateNetworkRequest(request_id=rid(), network=network), principal
            )
            await subnets.create_subnet(
                subnet_service_pb2.CreateSubnetRequest(request_id=rid(), subnet=subnet), principal
            )

    async def _furnish_host(self, cell: str, name: str, number: int) -> None:
        host = Host(
            name=name,
            cell=cell,
            zone=f"zone-{number % 2}",
            capacity=self.topology.host_capacity,
            traits=("HW_ARCH_X86_64", *((trait_of(SHARED),) if number % 3 else ())),
            cert_serial=CERT_SERIAL,
            guest_cidr=f"10.0.{number}.0/24",
            slots=50,
            tunnel_address=f"192.0.2.{number + 1}",
            physical_networks=("external",),
        )
        await self.servers[cell].memory.commit(Txn(put={keys.HOST.at(name): codec.encode(host)}))
        self.machines[name] = self.machine_of(name, self._machine_event)
        if number % 3:
            self.machines[name].share(SHARED, self.shelf)
        self.journals[name] = JournalMemory()
        self._cell_of[name] = cell

    def machine_of(self, name: str, record: Callable[[MachineEvent], None]) -> FakeMachine:
        """What a host is."""
        return FakeMachine(name, total=self.topology.host_capacity, delays=self._delays, record=record)

    def failpoints_of(self, process: str) -> Failpoints:
        """What hears how far a process has come."""
        return NO_FAILPOINTS

    def populate(self) -> None:
        """Make every process, and start it."""
        for number in range(self.topology.apis):
            name = f"api{number}"
            self._add(name, partial(ApiServer, self, name))
        for number in range(self.topology.schedulers):
            name = f"scheduler{number}"
            self._add(name, partial(self._scheduler, name))
        for cell in self.cells:
            for number in range(self.topology.conductors_per_cell):
                name = f"{cell}-conductor{number}"
                self._add(name, partial(self._conductor, name, cell))
        for host in self.machines:
            self._add(host, partial(self._hostd, host))
        self.permits = Permits(frozenset(self.machines))
        for process in self.processes.values():
            process.start()

    def set_delays(self, delays: Delays) -> None:
        """How long machines take, whatever the seed says; before they are made."""
        self._delays = delays

    def _add(self, name: str, build: Callable[[], Runs]) -> None:
        self.processes[name] = Process(self.loop, name, build, lambda service: service.run(), self._died)

    def _scheduler(self, name: str) -> SchedulerService:
        return SchedulerService(
            self.store_for(name, "global"),
            {cell: self.store_for(name, cell) for cell in self.cells},
            Ports(
                settings=SchedulerSettings(),
                clock=self.clock,
                ids=self.ids,
                jitter=self.jitter,
                failpoints=self.failpoints_of(name),
            ),
        )

    def _conductor(self, name: str, cell: str) -> ConductorService:
        return ConductorService(
            ConductorSettings(
                cell=cell,
                endpoint=name,
                permit_s=PERMIT_S,
                resync_s=RESYNC_S,
                shelve_offload_s=self.topology.shelve_offload_s,
                resize_confirm_s=self.topology.resize_confirm_s,
            ),
            self.store_for(name, cell),
            clock=self.clock,
            ids=self.ids,
            jitter=self.jitter,
            blobs=SimBlobs(self),
            images=SimBlobs(self),
            global_store=self.store_for(name, "global"),
        )

    def _hostd(self, host: str) -> HostDaemon:
        machine = self.machines[host]
        return HostDaemon(
            HostSettings(host=host, conductors=tuple(self.conductors_of(self._cell_of[host]))),
            clock=self.clock,
            journal=MemoryJournal(self.journals[host]),
            driver=FakeDriver(machine),
            disks=FakeDisks(machine),
            volumes=FakeVolumes(machine),
            shared={name: FakeVolumes(machine, name) for name in machine.shelves},
            wires=FakeWires(machine),
            dialer=SimDialer(self, host),
            boot_id=f"{host}-boot-{machine.boot}",
            jitter=self.jitter,
            failpoints=self.failpoints_of(host),
        )

    def conductors_of(self, cell: str) -> list[str]:
        """Every conductor of a cell."""
        return [f"{cell}-conductor{number}" for number in range(self.topology.conductors_per_cell)]

    def store_for(self, process: str, store: str) -> SimStore:
        """A process's own client of a store."""
        return SimStore(self.network, process, self.servers[store], after_commit=self._committed)

    def _project(self, number: int) -> str:
        return str(uuid.UUID(int=number + 1, version=4))

    def principals(self) -> list[Principal]:
        """A member of each project."""
        return [
            Principal(
                user_id=f"user-{number}",
                user_name=f"user-{number}",
                project_id=self._project(number),
                project_name=f"project-{number}",
                role=Role.MEMBER,
            )
            for number in range(self.topology.projects)
        ]

    async def call(self, api: str, handler: str, request: Any, principal: Principal) -> Any:
        """A client's call: runs inside the server's process, and dies with it."""
        process = self.processes[api]
        await asyncio.sleep(self.network.latency_s())
        if not isinstance(process.service, ApiServer):
            raise Unavailable(f"{api} is down")
        service = process.service
        handlers = (service.handlers, service.volumes, service.ports)
        method = next(getattr(each, handler) for each in handlers if hasattr(each, handler))
        answer = process.call(_answer(method(request, principal)))
        # A dead process answers nothing, not even to being cancelled.
        result = await asyncio.shield(answer)
        if isinstance(result, FabricError):
            raise result
        return result

    async def approve_quarantined(self) -> None:
        """What an operator does about hosts that were shut out (four reboots in a minute look like two machines with one certificate)."""
        for cell in self.cells:
            store = self.servers[cell].memory
            for key, entry in (await store.list(keys.SESSION.under())).entries.items():
                session = codec.decode(Session, entry.value)
                if session.state is SessionState.QUARANTINED:
                    host_key = keys.HOST.at(session.host)
                    host = codec.decode(Host, (await store.get(host_key)).entries[host_key].value)
                    approved = replace(host, update_time_ms=session.since_ms + 1)
                    if approved != host:
                        self.note("approved", key)
                        await store.commit(Txn(put={host_key: codec.encode(approved)}))

    # ---------------------------------------------------------------- watching it

    def record(self, event: Event) -> None:
        """Tell the checker, in order."""
        if not isinstance(event, Wrote):
            self.feed()
        else:
            self._spring(event.key)
        self.events += 1
        self.note(event)
        try:
            self.checker.take(event)
        except Violation as broken:
            self.violate(broken)

    def feed(self, by: str = "") -> None:
        """Tell the checker of what was written since, all of it by one process."""
        for name, server in self.servers.items():
            history = server.memory.history
            while self._fed[name] < len(history):
                change = history[self._fed[name]]
                self._fed[name] += 1
                self.record(Wrote(name, change.revision, change.key, change.before, change.after, by))

    def note(self, *what: object) -> None:
        """Into the trace: two runs of one seed have equal traces."""
        line = f"{self.loop.time():.6f} {' '.join(map(str, what))}"
        self.digest.update(line.encode())
        if self._verbose:
            print(line[:400])

    def violate(self, broken: BaseException) -> None:
        if self.violation is None:
            self.violation = broken

    def check_alive(self) -> None:
        """No process may end by itself."""
        for name, process in self.processes.items():
            task = process.main_task
            if process.is_up and task is not None and task.done():
                error = None if task.cancelled() else task.exception()
                broken = Violation(f"{name} ended by itself: {error!r}")
                broken.__cause__ = error
                self.violate(broken)

    def unsettled(self) -> str | None:
        """What is not at rest, or left behind."""
        self.feed()
        holdings = [holdings_of(machine) for machine in self.machines.values()]
        left = {name: server.memory.names() for name, server in self.servers.items()}
        try:
            return unsettled(self.checker, holdings, Leftovers(keys=left))
        except Violation as broken:
            self.violate(broken)
            return str(broken)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception):
            broken = Violation(f"an error nobody took: {context.get('message')}: {error!r}")
            broken.__cause__ = error
            self.violate(broken)

    def _machine_event(self, event: MachineEvent) -> None:
        match event.kind:
            case "shared":
                self.violate(
                    Violation(f"V1 a disk of {event.instance_id} was given to another guest: {event}")
                )
            case "started":
                age_s = self.permits.age_s(event.host, self.loop.time())
                what = (event.host, event.instance_id, event.placement_epoch)
                has_given_up = self.permits.has_given_up(*what, event.generation)
                self.record(Started(*what, age_s, has_given_up))
                self._check_filtered(event)
            case "stopped":
                self.record(Stopped(event.host, event.instance_id, event.detail))
            case "forgotten" | "files_removed":
                self.record(Destroyed(event.host, event.instance_id, event.placement_epoch))
            case "files_made":
                self.record(Made(event.host, event.instance_id, event.placement_epoch))
            case "volume_made":
                self.record(VolumeMade(event.host, event.instance_id))
            case "volume_removed":
                self.record(VolumeRemoved(event.host, event.instance_id))
            case "power_lost":
                self.record(PowerLost(event.host))
            case _:
                self.note(event)
        if event.kind != "power_lost":
            self._meet_doom(event.host)

    def _check_filtered(self, event: MachineEvent) -> None:
        domain = self.machines[event.host].domains[event.instance_id]
        specs = (domain.running or domain.spec, domain.spec)
        # One that is resumed has the interfaces it had, whatever its definition of then said. What is pulled out meanwhile passes nothing.
        macs, bound = {each.mac for each in specs[0].interfaces}, self.checker.ports.bound
        there = [port for spec in specs for port in spec.guest.ports if port.mac in macs and port.id in bound]
        if not self.machines[event.host].followed.filters(there):
            self.violate(Violation(f"N1 a guest began whose ports nothing filters: {event}"))

    def _frame(self, stream: SimStream, frame: bytes, has_come: bool) -> None:
        self.permits.frame(stream, frame, has_come=has_come, now_s=self.loop.time())

    # ---------------------------------------------------------------- breaking it (the nemesis's Target)

    def _committed(self, process: str) -> None:
        self.feed(process)
        self._meet_doom(process)

    def _meet_doom(self, process: str) -> None:
        if process in self._doomed:
            self.kill(process)

    def _died(self, name: str) -> None:
        """Its connections break; whoever was at the other end hears of it."""
        if name in self.machines:
            self.permits.ended(name, self.loop.time())
        contextvars.Context().run(self._hang_up, name)

    def _hang_up(self, name: str) -> None:
        for stream in self.streams.pop(name, []):
            stream.hang_up()

    def names(self) -> list[str]:
        """Every process."""
        return list(self.processes)

    def doom(self, process: str) -> None:
        """It dies as soon as something it does has come about: a write is applied, a domain is defined; before it hears of that."""
        self._doomed.add(process)

    def ambush(self, kind: str, delay_s: float, strike: Callable[[str], None]) -> None:
        """Strike soon after the next write of a key of this kind: in the middle of what it begins. `strike` is told which key it was."""
        self._ambushes.append((kind, delay_s, strike))

    def _spring(self, key: str) -> None:
        sprung = [each for each in self._ambushes if key.startswith(each[0])]
        self._ambushes = [each for each in self._ambushes if each not in sprung]
        for _, delay_s, strike in sprung:
            self.loop.call_later(delay_s, strike, key, context=self.network.world.copy())

    def kill(self, process: str) -> None:
        self._doomed.discard(process)
        self._down.add(process)
        self.processes[process].kill()

    def start(self, process: str) -> None:
        self._doomed.discard(process)
        self._down.discard(process)
        if process not in self._off:
            self.processes[process].start()

    def pause(self, process: str) -> None:
        self.processes[process].pause()

    def resume(self, process: str) -> None:
        self.processes[process].resume()

    def links(self) -> list[tuple[str, str]]:
        """Every pair that talks."""
        pairs: list[tuple[str, str]] = []
        for name in self.processes:
            if name.startswith(("api", "scheduler")):
                pairs += [(name, store) for store in self.servers]
        for cell in self.cells:
            hosts = [host for host, at in self._cell_of.items() if at == cell]
            for conductor in self.conductors_of(cell):
                pairs.append((conductor, cell))
                pairs += [(conductor, host) for host in hosts]
        return pairs

    def cut(self, one: str, other: str) -> None:
        self.network.cut(one, other)

    def mend(self, one: str, other: str) -> None:
        self.network.mend(one, other)

    def stores(self) -> list[str]:
        return list(self.servers)

    def lose_quorum(self, store: str) -> None:
        self.servers[store].has_quorum = False

    def regain_quorum(self, store: str) -> None:
        self.servers[store].has_quorum = True

    def compact(self, store: str) -> None:
        self.servers[store].compact()

    def hosts(self) -> list[str]:
        return list(self.machines)

    def lose_power(self, host: str) -> None:
        self._off.add(host)
        self.processes[host].kill()
        self.machines[host].lose_power()

    def restore_power(self, host: str) -> None:
        if host in self._off:
            self._off.discard(host)
            self.machines[host].restore_power()
            if host not in self._down:
                self.processes[host].start()

    def crash_hypervisor(self, host: str) -> None:
        self.machines[host].restart_hypervisor()

    def stop_hypervisor(self, host: str) -> None:
        self.machines[host].hypervisor_up = False
        self.machines[host].restart_hypervisor()

    def start_hypervisor(self, host: str) -> None:
        self.machines[host].hypervisor_up = True

    def lose_events(self, host: str) -> None:
        """The hypervisor tells nobody of the next few things that happen."""
        self.machines[host].lost_events += self.random.randint(1, 6)

    def deafen(self, host: str) -> None:
        """Some guests there will not hear their buttons."""
        machine = self.machines[host]
        machine.deaf |= {each for each in sorted(machine.domains) if self.random.random() < 0.5}

    def lose_journal(self, host: str) -> None:
        """The daemon dies, and its disk is replaced."""
        self.kill(host)
        self.journals[host].lose()

    def lose_disks(self, host: str) -> None:
        """The machine goes off, and the disk with the guests' files is replaced."""
        self.lose_power(host)
        self.machines[host].folders.clear()
        self.machines[host].copies.clear()

    async def set_enabled(self, host: str, *, is_enabled: bool) -> None:
        """What an operator does before and after maintenance."""
        store, key = self.servers[self._cell_of[host]].memory, keys.HOST.at(host)
        before = codec.decode(Host, (await store.get(key)).entries[key].value)
        await store.commit(Txn(put={key: codec.encode(replace(before, enabled=is_enabled))}))

    def fail_next_step(self, host: str, step: str) -> None:
        self.machines[host].fail_next[step].append(self.random.choice(STEP_FAULTS))

    def crash_a_guest(self, host: str) -> None:
        running = sorted(self.machines[host].running())
        if running:
            self.machines[host].crash_guest(self.random.choice(running))


async def _answer(work: Any) -> Any:
    """The handler's result, or its error as a value: an exception of a task whose caller gave up would be nobody's."""
    try:
        return await work
    except FabricError as error:
        return error
