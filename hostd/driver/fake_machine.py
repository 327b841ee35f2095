"""A physical machine without hardware, which outlives the daemons on it: what runs there, and the switches of its faults.

Asyncio only, nothing random, time only by `asyncio.sleep`. An operation belongs to the machine, as libvirt's jobs belong to libvirtd: when
the daemon dies in the middle of it, it goes on, and the next daemon's operation on that domain waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fabric.model.host import Resources
from fabric.model.states import PowerState
from hostd.core.faults import FaultCode
from hostd.driver.base import (
    REBOOTED,
    DiskFile,
    DomainEvent,
    DomainSpec,
    Interface,
    driver_error,
)
from hostd.driver.fake_parts import (
    POWER_LOST,
    Delays,
    FakeCopy,
    FakeDomain,
    FakeShelf,
    MachineEvent,
    opener,
)
from hostd.images.base import GuestDisks, Held
from hostd.network.followed import FollowedPlan

_T = TypeVar("_T")


@dataclass(slots=True)
class FakeMachine:
    """The physical state of one host, and the switches of its faults.

    Attributes for tests: `fail_next` maps a step (`start`, `define`, `plug`, `ensure_image`, …) to the fault codes its next
    calls end with; `lost_events` is how many of the next events nobody hears; `deaf` are instances whose guest ignores the
    power button, `stubborn` those whose guest lets go of no device, `agentless` those without an agent, which otherwise sets `passwords`
    by instance and user; `hypervisor_up` False is a dead libvirtd: guests run on, calls fail. `image_data` and `written` are what guests
    have written to their disks: in images that were made of such disks, and in each placement's root disk. `volumes` maps ids to GiB; a
    negative size is a volume whose data is lost. `followed` has the network plan, which is on disk and so outlives a loss of power.
    `volume_data` is what is in those that were made of an image, or booted from; `shelves` are directories that other machines have too.
    """

    name: str
    total: Resources = field(default_factory=lambda: Resources(vcpus=16, ram_mib=32768, disk_gib=200))
    delays: Delays = field(default_factory=Delays)
    record: Callable[[MachineEvent], None] = lambda _event: None
    domains: dict[str, FakeDomain] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    image_data: dict[str, bytes] = field(default_factory=dict)
    folders: dict[Held, GuestDisks] = field(default_factory=dict)
    consoles: dict[Held, bytes] = field(default_factory=dict)
    written: dict[Held, bytes] = field(default_factory=dict)
    disk_bytes: dict[Held, int] = field(default_factory=dict)
    copies: dict[tuple[Held, int], FakeCopy] = field(default_factory=dict)
    wires: dict[str, tuple[int, tuple[Interface, ...]]] = field(default_factory=dict)
    followed: FollowedPlan = field(default_factory=FollowedPlan)
    fail_next: dict[str, deque[FaultCode]] = field(default_factory=lambda: defaultdict(deque))
    lost_events: int = 0
    volumes: dict[str, int] = field(default_factory=dict)
    volume_data: dict[str, bytes] = field(default_factory=dict)
    shelves: dict[str, FakeShelf] = field(default_factory=dict)
    deaf: set[str] = field(default_factory=set)
    agentless: set[str] = field(default_factory=set)
    passwords: dict[tuple[str, str], str] = field(default_factory=dict)
    off_bells: dict[str, list[asyncio.Event]] = field(default_factory=dict)
    stubborn: set[str] = field(default_factory=set)
    hypervisor_up: bool = True
    powered: bool = True
    boot: int = 1
    # What runs on the machine belongs to no daemon: not its task, not its context variables.
    _context: contextvars.Context = field(default_factory=contextvars.copy_context)
    _jobs: set[asyncio.Task[Any]] = field(default_factory=set)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _listeners: list[asyncio.Queue[DomainEvent | None]] = field(default_factory=list)

    # ------------------------------------------------------------------ faults

    def share(self, directory: str, shelf: FakeShelf) -> None:
        """Have a directory that other machines have too."""
        self.shelves[directory] = shelf
        shelf.domains.append(self.domains)

    def crash_guest(self, instance_id: str) -> None:
        """The guest's QEMU dies by itself."""
        self._stop(instance_id, PowerState.CRASHED, "crashed")

    def shut_down_guest(self, instance_id: str) -> None:
        """The guest powers itself off."""
        self._stop(instance_id, PowerState.SHUTDOWN, "by the guest")

    def restart_hypervisor(self) -> None:
        """A libvirtd that dies and comes back: every connection ends, no guest does."""
        self._hang_up()

    def lose_power(self) -> None:
        """Everything stops at once; definitions and files stay, wires do not."""
        self.powered = False
        self.boot += 1
        self.record(MachineEvent(host=self.name, kind="power_lost"))
        for instance_id in sorted(self.domains):
            self._stop(instance_id, PowerState.SHUTDOWN, POWER_LOST, told=False)
        self.wires.clear()
        self._hang_up()

    def restore_power(self) -> None:
        """The machine boots again; no guest starts by itself (R5)."""
        self.powered = True
        self.record(MachineEvent(host=self.name, kind="power_back"))

    def power_cycle(self) -> None:
        """Off and on again."""
        self.lose_power()
        self.restore_power()

    def write_to_disk(self, instance_id: str, data: bytes) -> None:
        """The guest writes this to its root disk, after what is there."""
        domain = self.domains[instance_id]
        assert domain.running is not None, "only a guest that runs writes"
        root = domain.running.guest.root_volume
        if root is not None:
            contents = self.shelves[root.directory].data if root.directory else self.volume_data
            contents[root.id] = contents.get(root.id, b"") + data
            return
        held = Held(instance_id, domain.running.placement_epoch)
        self.written[held] = self.written.get(held, b"") + data

    # ------------------------------------------------------------- observation

    def running(self) -> dict[str, int]:
        """Which instances run now, with the placement epoch they were started with: what checkers compare."""
        return {
            instance_id: domain.running.placement_epoch
            for instance_id, domain in self.domains.items()
            if domain.running is not None
        }

    def used(self) -> Resources:
        """What defined domains were promised."""
        return sum((domain.defined.guest.resources() for domain in self.domains.values()), Resources())

    async def settle(self) -> None:
        """Wait for the operations that are under way, whoever asked for them."""
        while self._jobs:
            await asyncio.wait(self._jobs)

    # --------------------------------------------------------------- machinery

    def pop_fault(self, step: str) -> FaultCode | None:
        """The fault that the next `step` must end with."""
        queue = self.fail_next.get(step)
        return queue.popleft() if queue else None

    def listen(self) -> asyncio.Queue[DomainEvent | None]:
        """A queue of what happens from now on; None ends it."""
        queue: asyncio.Queue[DomainEvent | None] = asyncio.Queue()
        self._listeners.append(queue)
        return queue

    def unlisten(self, queue: asyncio.Queue[DomainEvent | None]) -> None:
        """Stop filling the queue."""
        with contextlib.suppress(ValueError):
            self._listeners.remove(queue)

    async def operate(
        self, lock: str, delay_s: float, work: Callable[[], _T], down: Callable[[], Exception]
    ) -> _T:
        """Do `work` in the middle of `delay_s`, alone among operations on `lock`, even if the caller dies meanwhile.

        Raises `down()` where the machine lost power before the work was done, or has none.
        """
        if not self.powered:
            raise down()
        boot = self.boot

        async def job() -> _T:
            async with self._locks.setdefault(lock, asyncio.Lock()):
                await asyncio.sleep(delay_s / 2)
                if boot != self.boot or not self.powered:
                    raise down()
                result = work()
                await asyncio.sleep(delay_s / 2)
                return result

        task = self._spawn(job())
        # Not shielded, but waited for: a shield's own future would hold an error that nobody takes when the caller dies.
        await asyncio.wait({task})
        return task.result()

    def work(self, job: Coroutine[Any, Any, None]) -> None:
        """Have the machine do something in its own time."""
        self._spawn(job)

    def after(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do `work` later, unless the power fails first: what a guest does in its own time."""
        boot = self.boot

        async def job() -> None:
            await asyncio.sleep(delay_s)
            if boot == self.boot:
                work()

        self._spawn(job())

    def start(self, instance_id: str) -> None:
        """Boot a defined domain as it is defined now."""
        domain = self.domains[instance_id]
        if domain.running is not None:
            return
        for disk in (domain.saved or domain.defined).disks:
            self._refuse_shared(instance_id, disk, FaultCode.DOMAIN_START_FAILED)
        domain.running, domain.saved = domain.saved or domain.defined, None
        is_resumed = domain.power is PowerState.SUSPENDED
        domain.power = PowerState.RUNNING
        if not is_resumed:
            self._booted(domain)
        self._happened("started", domain.running)
        self._tell(instance_id, PowerState.RUNNING, "started")

    def hold(self, instance_id: str, power: PowerState) -> None:
        """Hold a running domain. SUSPENDED, it does not run any more, and its memory waits."""
        domain = self.domains[instance_id]
        if domain.power is power:
            return
        if domain.running is None:
            raise driver_error(FaultCode.GUEST_OFF)
        domain.power = power
        if power is PowerState.SUSPENDED:
            domain.saved, domain.running = domain.running, None
            self._ring_off(instance_id)
            self._happened("stopped", domain.saved, "suspended")
        self._tell(instance_id, power, "held")

    def go_on(self, instance_id: str) -> None:
        """Let a paused domain go on."""
        domain = self.domains[instance_id]
        if domain.running is None:
            raise driver_error(FaultCode.DOMAIN_RESUME_FAILED)
        if domain.power is not PowerState.RUNNING:
            domain.power = PowerState.RUNNING
            self._tell(instance_id, PowerState.RUNNING, "resumed")

    def plug(self, instance_id: str, device: DiskFile | Interface) -> None:
        """Plug a device into a running domain. One like it is there already: nothing to do."""
        domain = self.domains[instance_id]
        running = domain.running
        if running is None:
            raise driver_error(FaultCode.GUEST_OFF)
        if isinstance(device, DiskFile):
            if all(each.serial != device.serial for each in running.disks):
                self._refuse_shared(instance_id, device, FaultCode.VOLUME_ATTACH_FAILED)
                domain.running = replace(running, disks=(*running.disks, device))
                self._happened("plugged", running, device.serial)
        elif all(each.mac != device.mac for each in running.interfaces):
            domain.running = replace(running, interfaces=(*running.interfaces, device))
            self._happened("plugged", running, device.mac)

    def unplug(self, instance_id: str, name: str) -> None:
        """The guest lets go of the device with this serial number or MAC, where it runs and has it."""
        domain = self.domains.get(instance_id)
        running = None if domain is None else domain.running
        if domain is None or running is None or instance_id in self.stubborn:
            return
        domain.running = replace(
            running,
            disks=tuple(each for each in running.disks if each.serial != name),
            interfaces=tuple(each for each in running.interfaces if each.mac != name),
        )
        if domain.running != running:
            self._happened("unplugged", running, name)

    def _refuse_shared(self, instance_id: str, disk: DiskFile, code: FaultCode) -> None:
        """As QEMU does by its locks: who writes to a disk has it alone."""
        other = None if disk.readonly else opener(disk, instance_id, self.domains, self.shelves)
        if other is not None:
            self._happened("shared", other, disk.serial)
            raise driver_error(code, "another guest has the disk open")

    def reset(self, instance_id: str) -> None:
        """The guest reboots itself: same definition, same process."""
        domain = self.domains.get(instance_id)
        if domain is None or domain.running is None:
            return
        self._booted(domain)
        self._happened("reset", domain.running)
        self._tell(instance_id, PowerState.RUNNING, REBOOTED)

    def cut(self, instance_id: str) -> None:
        """Stop a domain at once."""
        self._stop(instance_id, PowerState.SHUTDOWN, "power cut")

    def define(self, spec: DomainSpec) -> None:
        """Write or replace a definition."""
        domain = self.domains.get(spec.guest.id)
        if domain is None:
            self.domains[spec.guest.id] = FakeDomain(defined=spec)
        else:
            domain.defined = spec
        self._happened("defined", spec)

    def forget(self, instance_id: str) -> None:
        """Stop a domain and drop its definition."""
        self.cut(instance_id)
        domain = self.domains.pop(instance_id, None)
        if domain is not None:
            self._happened("forgotten", domain.defined)

    def _booted(self, domain: FakeDomain) -> None:
        assert domain.running is not None
        domain.boots += 1
        held = Held(domain.running.guest.id, domain.running.placement_epoch)
        line = f"boot {domain.boots}: {domain.running.guest.hostname} login: \n"
        self.consoles[held] = self.consoles.get(held, b"") + line.encode()

    def _stop(self, instance_id: str, power: PowerState, detail: str, *, told: bool = True) -> None:
        domain = self.domains.get(instance_id)
        if domain is None or (domain.running is None and domain.saved is None):
            return
        if domain.saved is not None and detail == POWER_LOST:
            # What was saved to disk outlives the power.
            return
        if domain.running is None:
            domain.saved, domain.power = None, power
            return
        spec, domain.running, domain.power = domain.running, None, power
        self._ring_off(instance_id)
        self._happened("stopped", spec, detail)
        if told:
            self._tell(instance_id, power, detail)

    def _ring_off(self, instance_id: str) -> None:
        """Who looked at the guest sees it go."""
        for bell in self.off_bells.pop(instance_id, ()):
            bell.set()

    def _happened(self, kind: str, spec: DomainSpec, detail: str = "") -> None:
        self.record(
            MachineEvent(
                host=self.name,
                kind=kind,
                instance_id=spec.guest.id,
                placement_epoch=spec.placement_epoch,
                generation=spec.generation,
                detail=detail,
            )
        )

    def _tell(self, instance_id: str, power: PowerState, detail: str) -> None:
        if self.lost_events > 0:
            self.lost_events -= 1
            return
        if not self.hypervisor_up:
            return
        for queue in self._listeners:
            queue.put_nowait(DomainEvent(instance_id=instance_id, power=power, detail=detail))

    def _hang_up(self) -> None:
        for queue in self._listeners:
            queue.put_nowait(None)
        self._listeners.clear()

    def _spawn(self, job: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(job, context=self._context.copy())
        self._jobs.add(task)
        task.add_done_callback(self._ended, context=self._context)
        return task

    def _ended(self, job: asyncio.Task[Any]) -> None:
        """Look at how a job ended: whoever asked for it may be gone, and then its failure is nobody's, and nothing to complain of."""
        self._jobs.discard(job)
        if not job.cancelled():
            job.exception()
