"""A host on a bench: the shipped daemon on a simulated machine, a conductor that follows a script, and time that jumps.

The machine and its disks outlive the daemon, which can be killed at any failpoint and started again as new objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, TypeVar

from fabric.errors import FabricError, NotFound, Unavailable
from fabric.model.image import ImageOffer
from fabric.model.session import (
    Beat,
    BeatAck,
    FromConductor,
    FromHost,
    Granted,
    Hello,
    HostState,
    Order,
    Release,
    ReleaseAck,
    Released,
    Snapshot,
    Status,
    StatusAck,
)
from fabric.rpc.session_codec import pack_from_conductor, unpack_from_host
from fabric.rpc.stream import MemoryStream, Stream, StreamClosed, memory_pair
from hostd.commands.journal_memory import JournalMemory, MemoryJournal
from hostd.driver.fake import Delays, FakeDriver, FakeMachine, MachineEvent
from hostd.images.fake import FakeDisks
from hostd.network.fake import FakeWires
from hostd.service import HostDaemon
from hostd.settings import HostSettings, Timers
from hostd.volumes.base import Volumes
from hostd.volumes.fake import FakeVolumes
from tests.console_doubles import NoTunnels
from tests.sim.loop import SimLoop, graveyard
from tests.sim.process import Process
from tests.unit.hostd.orders import IMAGE, IMAGE_BYTES, instance_id, order

T = TypeVar("T")

CHUNK = 256


class VirtualClock:
    """Boot time is the loop's; the wall clock is far away from it, so that nobody mixes the two."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(self._loop.time() * 1000)

    def boot_s(self) -> float:
        return self._loop.time() + 1000


@dataclass
class Conductor:
    """A conductor that believes everything and remembers it: `orders` and `releases` are what its store holds."""

    name: str
    orders: dict[str, Order] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)
    epoch: int = 0
    permit_ms: int = 60_000
    is_up: bool = True
    acks_beats: bool = True
    acks_statuses: bool = True
    relays_images: bool = True
    heard: list[FromHost] = field(default_factory=list)
    asked_for: list[tuple[str, int]] = field(default_factory=list)
    hellos: list[Hello] = field(default_factory=list)
    script: Callable[[Conductor, MemoryStream, Hello], Awaitable[None]] | None = None
    cut_image_after: int = 0
    takes_images: bool = True
    refuses_images: FabricError | None = None
    cut_upload_after: int = 0
    images: dict[str, bytes] = field(default_factory=dict)
    offers: list[ImageOffer] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    renewed_s: float | None = None
    _streams: list[MemoryStream] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def statuses(self, instance_id: str) -> list[Status]:
        return [said for said in self.heard if isinstance(said, Status) and said.instance_id == instance_id]

    def states(self, instance_id: str) -> list[HostState]:
        """What was said of an instance, without repetition."""
        said = [status.state for status in self.statuses(instance_id)]
        return [state for at, state in enumerate(said) if at == 0 or said[at - 1] is not state]

    def of(self, kind: type[T]) -> list[T]:
        return [said for said in self.heard if isinstance(said, kind)]

    async def send(self, message: FromConductor) -> None:
        """Say something in the latest session."""
        await self._streams[-1].send(pack_from_conductor(message))

    async def give(self, order: Order) -> None:
        """Write an order to the store, and send it where there is a session."""
        self.orders[order.guest.id] = order
        await self._try(replace(order, epoch=self.epoch))

    async def late(self, order: Order) -> None:
        """Send an order of an epoch that is over: from a conductor that lost the host and does not know it yet."""
        await self._try(replace(order, epoch=self.epoch - 1))

    async def release(self, release: Release) -> None:
        self.orders.pop(release.instance_id, None)
        self.releases[release.instance_id] = release
        await self._try(replace(release, epoch=self.epoch))

    async def hang_up(self) -> None:
        for stream in self._streams:
            await stream.close()

    async def _try(self, message: FromConductor) -> None:
        if not self._streams:
            return
        # Where it is lost, the next session's snapshot has it.
        with contextlib.suppress(StreamClosed):
            await self.send(message)

    def snapshot(self) -> tuple[Snapshot, ...]:
        """What the store holds, in as many parts as there are orders."""
        orders = [replace(order, epoch=self.epoch) for order in self.orders.values()]
        releases = tuple(replace(release, epoch=self.epoch) for release in self.releases.values())
        parts = [
            Snapshot(epoch=self.epoch, revision=9, orders=(order,), releases=(), last=False)
            for order in orders
        ]
        return (*parts, Snapshot(epoch=self.epoch, revision=9, orders=(), releases=releases, last=True))

    def accept(self) -> Stream:
        here, there = memory_pair()
        self._streams.append(here)
        task = asyncio.get_running_loop().create_task(self._serve(here))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return there

    async def _serve(self, stream: MemoryStream) -> None:
        try:
            hello = unpack_from_host(await stream.receive())
            assert isinstance(hello, Hello)
            self.hellos.append(hello)
            self.renewed_s = asyncio.get_running_loop().time()
            if self.script is not None:
                await self.script(self, stream, hello)
                return
            await self.grant(stream, hello)
            while True:
                await self._answer(stream, unpack_from_host(await stream.receive()))
        except StreamClosed:
            pass

    async def grant(self, stream: MemoryStream, hello: Hello) -> None:
        self.epoch = max(self.epoch, hello.highest_epoch) + 1
        granted = Granted(
            epoch=self.epoch, permit_ms=self.permit_ms, host="h1", guest_cidr="10.0.0.0/24", zone="z"
        )
        await stream.send(pack_from_conductor(granted))
        for part in self.snapshot():
            await stream.send(pack_from_conductor(part))

    async def _answer(self, stream: MemoryStream, message: FromHost) -> None:
        self.heard.append(message)
        answer: FromConductor | None = None
        match message:
            case Beat(seq=seq, epoch=epoch) if self.acks_beats:
                self.renewed_s = asyncio.get_running_loop().time()
                answer = BeatAck(seq=seq, epoch=epoch)
            case Status() if self.acks_statuses:
                if message.state is HostState.ABSENT:
                    self.orders.pop(message.instance_id, None)
                answer = StatusAck(
                    instance_id=message.instance_id,
                    placement_epoch=message.placement_epoch,
                    generation=message.generation,
                    action_seq=message.action_seq,
                    state=message.state,
                    accepted=True,
                )
            case Released(instance_id=instance_id, placement_epoch=placement_epoch):
                self.releases.pop(instance_id, None)
                answer = ReleaseAck(instance_id=instance_id, placement_epoch=placement_epoch)
        if answer is not None:
            await stream.send(pack_from_conductor(answer))


class Net(NoTunnels):
    """The host's way to its conductors."""

    def __init__(self, conductors: dict[str, Conductor]) -> None:
        self._conductors = conductors

    async def dial(self, endpoint: str) -> Stream:
        await asyncio.sleep(0.01)
        conductor = self._conductors[endpoint]
        if not conductor.is_up:
            raise Unavailable(f"{endpoint} is down")
        return conductor.accept()

    async def fetch_image(self, endpoint: str, image_id: str, offset: int) -> AsyncIterator[bytes]:
        conductor = self._conductors[endpoint]
        conductor.asked_for.append((image_id, offset))
        await asyncio.sleep(0.01)
        if image_id != IMAGE.id:
            raise NotFound("no such image")
        if not (conductor.is_up and conductor.relays_images):
            raise Unavailable("the image cannot be relayed now")
        sent = 0
        while offset < len(IMAGE_BYTES):
            if conductor.cut_image_after and sent >= conductor.cut_image_after:
                raise Unavailable("the transfer was cut")
            yield IMAGE_BYTES[offset : offset + CHUNK]
            offset += CHUNK
            sent += CHUNK

    async def upload_image(self, endpoint: str, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> None:
        conductor = self._conductors[endpoint]
        conductor.offers.append(offer)
        await asyncio.sleep(0.01)
        if conductor.refuses_images is not None:
            raise conductor.refuses_images
        data = b""
        async for chunk in chunks:
            data += chunk
            if conductor.cut_upload_after and len(data) >= conductor.cut_upload_after:
                conductor.cut_upload_after = 0
                raise Unavailable("the transfer was cut")
        if not (conductor.is_up and conductor.takes_images):
            raise Unavailable("the image cannot be relayed now")
        assert (len(data), hashlib.sha256(data).hexdigest()) == (offer.size_bytes, offer.sha256)
        conductor.images[offer.image_id] = data


class Killer:
    """Failpoints of a bench: kills the daemon when a place is reached for the nth time, and counts every place."""

    def __init__(self) -> None:
        self.visits: Counter[str] = Counter()
        self.kill_at: dict[str, int] = {}
        self.kill: Callable[[], None] = lambda: None

    async def reach(self, name: str) -> None:
        self.visits[name] += 1
        if self.kill_at.get(name) == self.visits[name]:
            self.kill()
            # The process is dead: nothing of it ever runs again.
            await asyncio.get_running_loop().create_future()


class Bench:
    """One machine, its daemon, its conductors."""

    def __init__(self, loop: SimLoop, *, conductors: tuple[str, ...], delays: Delays, seed: int) -> None:
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.events: list[MachineEvent] = []
        self.machine = FakeMachine(name="h1", delays=delays, record=self.events.append)
        # Of a host that has served before: what a lost journal means is a matter of its own.
        self.memory = JournalMemory(trusted=True)
        self.conductors = {name: Conductor(name) for name in conductors}
        self.killer = Killer()
        self.settings = HostSettings(host="h1", conductors=conductors, timers=Timers())
        self.deaths = 0
        self.shared: Callable[[str], Volumes] = lambda name: FakeVolumes(self.machine, name)
        self._random = Random(seed)
        self.process: Process[HostDaemon] = Process(
            loop, "h1", self._build, lambda daemon: daemon.run(), self._died
        )
        self.killer.kill = self.process.kill

    @property
    def conductor(self) -> Conductor:
        (only,) = self.conductors.values()
        return only

    def _build(self) -> HostDaemon:
        return HostDaemon(
            self.settings,
            clock=self.clock,
            journal=MemoryJournal(self.memory),
            driver=FakeDriver(self.machine),
            disks=FakeDisks(self.machine),
            volumes=FakeVolumes(self.machine),
            shared={name: self.shared(name) for name in self.machine.shelves},
            wires=FakeWires(self.machine),
            dialer=Net(self.conductors),
            boot_id=f"boot-{self.machine.boot}",
            jitter=self._random.random,
            failpoints=self.killer,
        )

    def _died(self, _: str) -> None:
        self.deaths += 1

    def restart(self) -> None:
        """A new life of the daemon. What its old one had dialled is cut, as a kernel does for the dead."""
        for conductor in self.conductors.values():
            for stream in conductor._streams:
                task = self.loop.create_task(stream.close())
                conductor._tasks.add(task)
                task.add_done_callback(conductor._tasks.discard)
        self.process.start()

    async def until(self, true: Callable[[], bool], *, within_s: float = 120.0) -> None:
        """Let time pass until something is so. Raises AssertionError where it does not become so in time."""
        end_s = self.loop.time() + within_s
        while not true():
            assert self.loop.time() < end_s, f"still not so after {within_s} s"
            assert self.process.main_task is None or not self.process.main_task.done(), "the daemon ended"
            await asyncio.sleep(0.05)

    def kinds(self, number_or_id: str) -> list[str]:
        """What happened to an instance's domain, in order."""
        return [
            event.kind
            for event in self.events
            if event.instance_id == number_or_id and not event.kind.startswith("files_")
        ]


def on_a_bench(
    scenario: Callable[[Bench], Coroutine[Any, Any, T]],
    *,
    conductors: tuple[str, ...] = ("c1:1",),
    delays: Delays | None = None,
    seed: int = 1,
) -> T:
    """Run a scenario in virtual time, then bury what is left."""

    def run() -> T:
        loop = SimLoop(Random(seed))

        async def world() -> T:
            return await scenario(Bench(loop, conductors=conductors, delays=delays or Delays(), seed=seed))

        return loop.run_world(world())

    with graveyard():
        return run()


async def raised(bench: Bench, *, placement_epoch: int = 1, generation: int = 1) -> None:
    """A daemon with one running guest, told and acknowledged."""
    bench.conductor.orders[instance_id()] = order(placement_epoch=placement_epoch, generation=generation)
    bench.process.start()
    await bench.until(lambda: HostState.ACTIVE in bench.conductor.states(instance_id()))
