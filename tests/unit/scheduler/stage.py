"""A scheduler's world in memory: stores that fail on demand, hosts, builds, and schedulers on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from fabric.errors import Ambiguous, Unavailable
from fabric.model.host import Cell, Host, Resources, Session, SessionState, Use
from fabric.model.instance import Assignment, Build, Instance, Location
from fabric.model.quota import Charge, Quota
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from fabric.scheduler.ports import Ports
from fabric.scheduler.service import SchedulerService
from fabric.scheduler.settings import SchedulerSettings
from fabric.store import codec, keys
from fabric.store.base import Batch, Committed, Lease, Refused, Snapshot, Txn
from fabric.store.memory import MemoryStore
from tests.sim.loop import SimLoop
from tests.sim.process import Process
from tests.unit.scheduler.worlds import SMALL, build, host

T = TypeVar("T")

WALL_MS = 1_800_000_000_000
LATENCY_S = 0.002
LIMIT = Charge(instances=1000, vcpus=10_000, ram_mib=1_000_000)


class VirtualClock:
    """The loop's time as a Clock."""

    def now_ms(self) -> int:
        return WALL_MS + round(asyncio.get_running_loop().time() * 1000)

    def boot_s(self) -> float:
        return asyncio.get_running_loop().time()


class CountingIds:
    """Ids by number: who made it, and which it is."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def new_id(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    def new_secret(self, nbytes: int = 32) -> bytes:
        return self.new_id().encode().ljust(nbytes, b".")[:nbytes]


class FlakyStore:
    """One process's way to a store. Requests take time, and fail as told; the store behind it is unhurt."""

    def __init__(self, memory: MemoryStore) -> None:
        self._memory = memory
        self._is_away = self._is_hanging = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._watches = asyncio.Event()
        self._watches.set()
        self.loses: Callable[[Txn], bool] = lambda _: False
        self.commits = 0

    @property
    def name(self) -> str:
        return self._memory.name

    def away(self, is_away: bool = True) -> None:
        """Every request fails at once, or no longer does; watches stand still meanwhile."""
        self._is_away = is_away
        self._flow()

    def hang(self, is_hanging: bool = True) -> None:
        """No request is answered, or they all are now."""
        self._is_hanging = is_hanging
        self._flow()

    def stop_watches(self) -> None:
        """Watches say nothing any more, while requests are answered: as if their stream were lost in the network."""
        self._watches.clear()

    def _flow(self) -> None:
        if self._is_away or self._is_hanging:
            self._flows.clear()
        else:
            self._flows.set()

    async def _reach(self) -> None:
        await asyncio.sleep(LATENCY_S)
        if self._is_away:
            raise Unavailable("away")
        await self._flows.wait()

    async def get(self, *wanted: str) -> Snapshot:
        await self._reach()
        return await self._memory.get(*wanted)

    async def list(self, prefix: str) -> Snapshot:
        await self._reach()
        return await self._memory.list(prefix)

    async def commit(self, txn: Txn) -> Committed | Refused:
        await self._reach()
        self.commits += 1
        outcome = await self._memory.commit(txn)
        if self.loses(txn):
            raise Ambiguous("the answer was lost")
        await asyncio.sleep(LATENCY_S)
        return outcome

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        async for batch in self._memory.watch(prefix, after=after):
            await self._watches.wait()
            await self._flows.wait()
            await asyncio.sleep(LATENCY_S)
            yield batch

    async def grant(self, ttl_s: float) -> Lease:
        return await self._memory.grant(ttl_s)

    async def keep_alive(self, lease: Lease) -> None:
        await self._memory.keep_alive(lease)

    async def revoke(self, lease: Lease) -> None:
        await self._memory.revoke(lease)

    async def close(self) -> None:
        """The store behind it belongs to the stage."""


@dataclass(slots=True)
class Running:
    """One scheduler, with its own ways to the stores."""

    service: SchedulerService
    task: asyncio.Task[None]
    to_global: FlakyStore
    to_cell: dict[str, FlakyStore]


@dataclass(slots=True)
class Stage:
    """The stores, and who works on them."""

    globe: MemoryStore = field(default_factory=lambda: MemoryStore("global"))
    cells: dict[str, MemoryStore] = field(
        default_factory=lambda: {name: MemoryStore(name) for name in ("east", "west")}
    )
    running: list[Running] = field(default_factory=list)

    async def put(self, store: MemoryStore, key: str, value: object) -> int:
        outcome = await store.commit(Txn(put={key: codec.encode(value)}))
        assert isinstance(outcome, Committed)
        return outcome.revision

    async def open(self, *hosts: Host) -> None:
        """Cells that take servers, a project with quota, and these hosts, up."""
        for name in self.cells:
            await self.put(self.globe, keys.CELL.at(name), Cell(name=name))
        await self.put(self.globe, keys.QUOTA.at("p-1"), Quota(project_id="p-1", limit=LIMIT))
        for each in hosts:
            store = self.cells[each.cell]
            await self.put(store, keys.HOST.at(each.name), each)
            await self.put(
                store,
                keys.SESSION.at(each.name),
                Session(host=each.name, epoch=1, state=SessionState.UP),
            )
            await self.put(store, keys.ALIVE.at(each.name), "1")

    async def accept(self, *builds: Build) -> None:
        """As the API accepts creates: quota, location and build in one transaction each."""
        for each in builds:
            charge = Charge(instances=1, vcpus=each.request.guest.vcpus, ram_mib=each.request.guest.ram_mib)
            quota = await self.quota()
            location = Location(
                instance_id=each.instance_id,
                project_id=each.project_id,
                user_id="u-1",
                name=each.instance_id,
                cell=each.cell,
                charge=charge,
            )
            raised = Quota(project_id="p-1", limit=LIMIT, used=quota.used + charge)
            await self.globe.commit(
                Txn(
                    put={
                        keys.QUOTA.at("p-1"): codec.encode(raised),
                        keys.LOCATION.at(each.instance_id): codec.encode(location),
                        keys.BUILD.at(each.cell, each.instance_id): codec.encode(each),
                    }
                )
            )

    def sleeper(self, name: str = "s1") -> Process[SchedulerService]:
        """A scheduler that can be paused, not started yet."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)

        def made() -> SchedulerService:
            return SchedulerService(
                FlakyStore(self.globe),
                {cell: FlakyStore(store) for cell, store in self.cells.items()},
                Ports(
                    settings=SchedulerSettings(),
                    clock=VirtualClock(),
                    ids=CountingIds(name),
                    jitter=Random(name).random,
                ),
            )

        return Process(loop, name, made, SchedulerService.run, lambda _: None)

    def schedule(
        self,
        name: str = "s1",
        *,
        settings: SchedulerSettings | None = None,
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> Running:
        """Start a scheduler."""
        to_global = FlakyStore(self.globe)
        to_cell = {cell: FlakyStore(store) for cell, store in self.cells.items()}
        service = SchedulerService(
            to_global,
            to_cell,
            Ports(
                settings=settings or SchedulerSettings(),
                clock=VirtualClock(),
                ids=CountingIds(name),
                jitter=Random(name).random,
                failpoints=failpoints,
            ),
        )
        running = Running(service, asyncio.create_task(service.run()), to_global, to_cell)
        self.running.append(running)
        return running

    async def placed(self, cell: str = "east") -> None:
        """Wait until the cell has its first server."""
        async for _ in self.cells[cell].watch(keys.INSTANCE.under(), after=0):
            return

    async def quota(self) -> Quota:
        found = (await self.globe.get(keys.QUOTA.at("p-1"))).value(keys.QUOTA.at("p-1"))
        assert found is not None
        return codec.decode(Quota, found)

    async def _all(self, store: MemoryStore, row: keys.Key[T]) -> dict[str, T]:
        found = await store.list(row.under())
        return {key: codec.decode(row.record, entry.value) for key, entry in found.entries.items()}

    async def builds(self) -> dict[str, Build]:
        return await self._all(self.globe, keys.BUILD)

    async def locations(self) -> dict[str, Location]:
        return await self._all(self.globe, keys.LOCATION)

    async def instances(self, cell: str = "east") -> dict[str, Instance]:
        found = await self._all(self.cells[cell], keys.INSTANCE)
        return {instance.id: instance for instance in found.values()}

    async def uses(self, cell: str = "east") -> dict[str, Use]:
        found = await self._all(self.cells[cell], keys.USE)
        return {use.host: use for use in found.values()}

    async def held(self, row: keys.Key[T], cell: str = "east") -> set[str]:
        """The keys of one kind in a cell."""
        return set(await self._all(self.cells[cell], row))

    async def check_books(self) -> None:
        """What must hold at any time: no server in two cells, none over capacity, and claims equal to orders (I1, I2)."""
        seen: set[str] = set()
        for cell, store in self.cells.items():
            instances = await self.instances(cell)
            assert not seen & instances.keys()
            seen |= instances.keys()
            hosts = {each.name: each for each in (await self._all(store, keys.HOST)).values()}
            orders = await self._all(store, keys.ASSIGNMENT)
            for name, use in (await self.uses(cell)).items():
                mine: list[Assignment] = [
                    order for key, order in orders.items() if key.startswith(f"assignment/{name}/")
                ]
                assert use.claimed == sum((order.guest.resources() for order in mine), Resources())
                assert use.instances == len(use.slots) == len(set(use.slots)) == len(mine)
                assert hosts[name].capacity.covers(use.taken)
                addresses = [order.guest.ports[0].address for order in mine]
                assert len(set(addresses)) == len(addresses)


def play(world: Callable[[Stage], Coroutine[object, object, T]], *, seed: int = 1) -> T:
    """Run a world on a virtual clock; afterwards its books must balance, and no scheduler may have died."""

    async def whole() -> T:
        stage = Stage()
        result = await world(stage)
        for each in stage.running:
            assert not each.task.done(), each.task
            each.task.cancel()
        await asyncio.gather(*(each.task for each in stage.running), return_exceptions=True)
        await stage.check_books()
        return result

    return SimLoop(Random(seed)).run_world(whole())


def builds(count: int, *, cell: str = "east", resources: Resources = SMALL) -> Iterable[Build]:
    return [build(f"i-{number}", resources, cell=cell, create_time_ms=WALL_MS) for number in range(count)]


def small(name: str, cell: str = "east", *, room: int = 1) -> Host:
    capacity = Resources(vcpus=room, ram_mib=512 * room, disk_gib=room)
    return host(name, cell=cell, capacity=capacity)


__all__ = ["WALL_MS", "Stage", "build", "builds", "host", "play", "small"]
