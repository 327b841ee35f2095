"""A cell in memory on virtual time: its store, one or two conductors, and hosts that say exactly what a test makes them say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

from fabric.conductor.service import ConductorService
from fabric.conductor.settings import ConductorSettings
from fabric.errors import Ambiguous, NotFound, Unavailable
from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.image import ImageFormat, ImageOffer
from fabric.model.instance import ActionMark, Assignment, Guest, ImageRef, Instance, Request
from fabric.model.session import (
    Beat,
    BeatAck,
    FromConductor,
    FromHost,
    Goodbye,
    Granted,
    Hello,
    HostState,
    Inventory,
    Order,
    Release,
    Released,
    Snapshot,
    Status,
)
from fabric.model.states import PowerState, TaskState, VmState
from fabric.network.addresses import port_at
from fabric.rpc.session_codec import pack_from_host, unpack_from_conductor
from fabric.rpc.stream import MemoryStream, StreamClosed, memory_pair
from fabric.store.base import Committed, Refused, Txn
from fabric.store.base import Snapshot as Found
from fabric.store.codec import decode, encode
from fabric.store.keys import ASSIGNMENT, HOST, INSTANCE, SESSION, USE, Key
from fabric.store.memory import MemoryStore
from tests.sim.loop import SimLoop

T = TypeVar("T")
V = TypeVar("V")

SERIAL = "c0ffee"
CAPACITY = Resources(vcpus=8, ram_mib=8192, disk_gib=100)
GUEST = Resources(vcpus=1, ram_mib=512, disk_gib=1)
IMAGE = "00000000-0000-4000-8000-0000000000aa"
EPOCH_MS = 1_700_000_000_000


def run(world: Callable[[], Coroutine[Any, Any, T]], *, seed: int = 0) -> T:
    """Run a world to its end on virtual time."""
    return SimLoop(Random(seed)).run_world(world())


def instance_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


class LoopClock:
    """The loop's own time."""

    def now_ms(self) -> int:
        return EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)

    def boot_s(self) -> float:
        return asyncio.get_running_loop().time()


class CountingIds:
    def __init__(self, name: str) -> None:
        self._name = name
        self._last = 0

    def new_id(self) -> str:
        self._last += 1
        return f"{self._name}-{self._last}"

    def new_secret(self, nbytes: int = 32) -> bytes:
        return bytes(nbytes)


class Reach:
    """One conductor's way to the store, which a test may cut, or make forget its answers."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.is_cut = False
        self.answers_to_lose = 0
        self.commits: list[Txn] = []
        self.hold: asyncio.Event | None = None

    @property
    def name(self) -> str:
        return self._store.name

    def _check(self) -> None:
        if self.is_cut:
            raise Unavailable("cut", store=self.name)

    async def get(self, *keys: str) -> Found:
        self._check()
        return await self._store.get(*keys)

    async def list(self, prefix: str) -> Found:
        self._check()
        return await self._store.list(prefix)

    async def commit(self, txn: Txn) -> Committed | Refused:
        self._check()
        if self.hold is not None:
            await self.hold.wait()
        outcome = await self._store.commit(txn)
        if txn.put or txn.delete:
            self.commits.append(txn)
            if self.answers_to_lose:
                self.answers_to_lose -= 1
                raise Ambiguous("lost", store=self.name)
        return outcome

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[Any]:
        return self._store.watch(prefix, after=after)

    async def grant(self, ttl_s: float) -> Any:
        self._check()
        return await self._store.grant(ttl_s)

    async def keep_alive(self, lease: Any) -> None:
        keeping = asyncio.ensure_future(self._store.keep_alive(lease))
        try:
            while not keeping.done():
                await asyncio.wait({keeping}, timeout=0.5)
                if self.is_cut:
                    return
        finally:
            keeping.cancel()

    async def revoke(self, lease: Any) -> None:
        self._check()
        await self._store.revoke(lease)

    async def close(self) -> None:
        """The store is the world's."""


class MemoryBlobs:
    """A blob store of one blob."""

    async def read(self, sha256: str, offset_bytes: int) -> AsyncIterator[bytes]:
        yield f"{sha256}@{offset_bytes}".encode()


class NoImages:
    """Where no image waits for its bytes."""

    async def take(self, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> ImageRef:
        raise NotFound("no image waits", kind="image", name=offer.image_id)


class World:
    """See the module. Use as an async context manager."""

    def __init__(self) -> None:
        self.store = MemoryStore("east")
        self.networks = MemoryStore("global")
        self.clock = LoopClock()
        self.reaches: dict[str, Reach] = {}
        self.network_reaches: dict[str, Reach] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in [*self._tasks, *self._serving]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._serving, return_exceptions=True)

    async def conductor(self, name: str = "c1") -> ConductorService:
        """A conductor that runs."""
        reach = self.reaches[name] = Reach(self.store)
        networks = self.network_reaches[name] = Reach(self.networks)
        random = Random(name)
        service = ConductorService(
            ConductorSettings(cell="east", endpoint=f"{name}:7000"),
            reach,
            clock=self.clock,
            ids=CountingIds(name),
            jitter=random.random,
            blobs=MemoryBlobs(),
            images=NoImages(),
            global_store=networks,
        )
        self._tasks.append(asyncio.create_task(service.run()))
        await asyncio.sleep(0.01)
        return service

    def dial(self, service: ConductorService, host: str, *, serial: str = SERIAL) -> ScriptedHost:
        """A stream from a host to a conductor."""
        here, there = memory_pair()
        serving = asyncio.create_task(service.serve_host(host, serial, there))
        self._serving.add(serving)
        return ScriptedHost(here, serving)

    async def approve(self, name: str, **facts: Any) -> Host:
        """What the administrator writes of a host."""
        host = Host(
            name=name,
            cell="east",
            zone="z1",
            capacity=CAPACITY,
            cert_serial=SERIAL,
            guest_cidr="10.1.0.0/24",
            slots=100,
            update_time_ms=self.clock.now_ms(),
        )
        host = replace(host, **facts)
        await self.put({HOST.at(name): host})
        return host

    async def place(self, number: int, host: str, **facts: Any) -> Instance:
        """What a scheduler's claim writes."""
        inventory = await self.get(HOST, host)
        assert inventory is not None
        request = Request(guest=guest(number), network_id="net", network_name="default")
        use = await self.get(USE, host) or Use(host=host)
        slot = use.free_slot(100)
        assert slot is not None
        ports = (port_at(inventory, slot, instance_id=instance_id(number), request=request),)
        now_ms = self.clock.now_ms()
        instance = Instance(
            id=instance_id(number),
            request=request,
            vm_state=VmState.BUILDING,
            task=TaskState.SPAWNING,
            host=host,
            placement_epoch=1,
            slot=slot,
            ports=ports,
            task_start_ms=now_ms,
            task_deadline_ms=now_ms + 600_000,
            create_time_ms=now_ms,
            op_id=f"claim-{number}",
        )
        instance = replace(instance, **facts)
        await self.put(
            {
                INSTANCE.at(instance.id): instance,
                ASSIGNMENT.at(host, instance.id): assignment_of(instance),
                USE.at(host): use.plus(GUEST, slot, op_id=f"claim-{number}"),
            }
        )
        return instance

    async def intend(self, instance: Instance) -> None:
        """What the API writes for an action: the record, and the assignment that follows it."""
        await self.put(
            {
                INSTANCE.at(instance.id): instance,
                ASSIGNMENT.at(instance.host, instance.id): assignment_of(instance),
            }
        )

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await asyncio.sleep(seconds)

    async def put(self, values: dict[str, object]) -> None:
        await self.store.commit(Txn(put={key: encode(value) for key, value in values.items()}))

    async def get(self, row: Key[V], *fields: str) -> V | None:
        key = row.at(*fields)
        value = (await self.store.get(key)).value(key)
        return None if value is None else decode(row.record, value)

    async def instance(self, number: int) -> Instance:
        found = await self.get(INSTANCE, instance_id(number))
        assert found is not None
        return found

    async def session(self, host: str) -> Session:
        found = await self.get(SESSION, host)
        assert found is not None
        return found

    async def up(self, service: ConductorService, name: str) -> ScriptedHost:
        """A host that has come all the way to UP."""
        host = self.dial(service, name)
        await host.join()
        await host.say(Inventory(epoch=host.epoch))
        await until(lambda: self._is_up(name))
        return host

    async def _is_up(self, name: str) -> bool:
        return (await self.session(name)).state is SessionState.UP

    async def everything(self) -> dict[str, bytes]:
        """The whole store."""
        return {key: entry.value for key, entry in (await self.store.list("")).entries.items()}


class ScriptedHost:
    """The host's end of a session, saying what it is told to say, and remembering what it hears."""

    def __init__(self, stream: MemoryStream, serving: asyncio.Task[None]) -> None:
        self.stream = stream
        self.serving = serving
        self.epoch = 0
        self.heard: list[FromConductor] = []
        self._beats = 0
        self._beating: asyncio.Task[None] | None = None

    async def say(self, message: FromHost) -> None:
        await self.stream.send(pack_from_host(message))

    async def next(self) -> FromConductor:
        message = unpack_from_conductor(await self.stream.receive())
        self.heard.append(message)
        return message

    async def hear(self, kind: type[V], *, within_s: float = 30.0) -> V:
        """The next message of this kind; others are remembered on the way."""
        async with asyncio.timeout(within_s):
            while True:
                message = await self.next()
                if isinstance(message, kind):
                    return message

    async def hears_nothing_of(self, kind: type, *, for_s: float) -> bool:
        """Whether no such message comes for so long."""
        try:
            await self.hear(kind, within_s=for_s)
        except (TimeoutError, StreamClosed):
            return True
        return False

    async def join(self, *, boot_id: str = "boot-1", highest_epoch: int = 0) -> Snapshot:
        """Say hello; the first snapshot's last part."""
        await self.say(Hello(boot_id=boot_id, agent_version="1.0", highest_epoch=highest_epoch))
        self.epoch = (await self.hear(Granted)).epoch
        return await self.hear(Snapshot)

    async def beat(self) -> int:
        self._beats += 1
        await self.say(Beat(seq=self._beats, epoch=self.epoch))
        return self._beats

    async def beat_and_hear(self) -> None:
        seq = await self.beat()
        while (await self.hear(BeatAck)).seq != seq:
            pass

    def keep_beating(self) -> None:
        """Beat every 2 s until the stream is over, hearing everything."""

        async def beats() -> None:
            try:
                while True:
                    await self.beat()
                    await asyncio.sleep(2.0)
            except StreamClosed:
                return

        async def hears() -> None:
            try:
                while True:
                    await self.next()
            except StreamClosed:
                return

        async def both() -> None:
            await asyncio.gather(beats(), hears())

        self._beating = asyncio.create_task(both())

    async def farewell(self) -> Goodbye:
        return await self.hear(Goodbye)

    def status(self, order: Order, state: HostState, **facts: Any) -> Status:
        """The plain answer to an order."""
        power = PowerState.RUNNING if state is HostState.ACTIVE else PowerState.NOSTATE
        status = Status(
            epoch=self.epoch,
            instance_id=order.guest.id,
            placement_epoch=order.placement_epoch,
            generation=order.generation,
            action_seq=order.action_seq,
            state=state,
            power=power,
        )
        return replace(status, **facts)

    def released(self, release: Release) -> Released:
        return Released(
            epoch=self.epoch, instance_id=release.instance_id, placement_epoch=release.placement_epoch
        )


def guest(number: int) -> Guest:
    return Guest(
        id=instance_id(number),
        name=f"web-{number}",
        hostname=f"web-{number}",
        project_id="nebula",
        user_id="user",
        vcpus=GUEST.vcpus,
        ram_mib=GUEST.ram_mib,
        disk_gib=GUEST.disk_gib,
        image=ImageRef(
            id=IMAGE,
            name="debian",
            format=ImageFormat.QCOW2,
            sha256="ab" * 32,
            size_bytes=1,
            virtual_size_bytes=1,
        ),
    )


def assignment_of(instance: Instance) -> Assignment:
    return Assignment(
        instance_id=instance.id,
        placement_epoch=instance.placement_epoch,
        generation=instance.generation,
        want=instance.want,
        action=instance.action if instance.action.seq else ActionMark(),
        guest=replace(instance.request.guest, ports=instance.ports),
    )


async def until(holds: Callable[[], Awaitable[bool]], *, within_s: float = 60.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(within_s):
        while not await holds():
            await asyncio.sleep(0.05)
