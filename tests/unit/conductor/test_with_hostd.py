"""The two ends of a session as they ship, joined in memory: what one says the other understands."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random

from fabric.conductor.service import ConductorService
from fabric.errors import FabricError, Unavailable
from fabric.lifecycle.core import begin
from fabric.model.faults import FaultCode
from fabric.model.host import SessionState
from fabric.model.image import ImageOffer
from fabric.model.instance import Instance
from fabric.model.states import Action, PowerState, TaskState, VmState
from fabric.rpc.stream import Stream, memory_pair
from fabric.store.keys import REPORT, SESSION, USE
from hostd.commands.journal_memory import JournalMemory, MemoryJournal
from hostd.driver.fake import FakeDriver, FakeMachine
from hostd.images.fake import FakeDisks
from hostd.network.fake import FakeWires
from hostd.service import HostDaemon
from hostd.settings import HostSettings
from hostd.volumes.fake import FakeVolumes
from tests.unit.conductor.worlds import SERIAL, MemoryBlobs, World, instance_id, run, until


class InMemory:
    """Dials conductors of this process."""

    def __init__(self, host: str, conductors: dict[str, ConductorService]) -> None:
        self._host = host
        self._conductors = conductors
        self._serving: set[asyncio.Task[None]] = set()

    async def dial(self, endpoint: str) -> Stream:
        if endpoint not in self._conductors:
            raise Unavailable("nobody there")
        here, there = memory_pair()
        serving = asyncio.create_task(self._conductors[endpoint].serve_host(self._host, SERIAL, there))
        self._serving.add(serving)
        return here

    def fetch_image(self, endpoint: str, image_id: str, offset: int) -> AsyncIterator[bytes]:
        return self._conductors[endpoint].fetch_image(self._host, SERIAL, image_id, offset)

    async def upload_image(self, endpoint: str, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> None:
        await self._conductors[endpoint].upload_image(self._host, SERIAL, offer, chunks)

    async def tunnel(self, endpoint: str) -> Stream:
        here, there = memory_pair()
        serving = asyncio.create_task(self._serve_tunnel(endpoint, there))
        self._serving.add(serving)
        return here

    async def _serve_tunnel(self, endpoint: str, stream: Stream) -> None:
        try:
            await self._conductors[endpoint].serve_tunnel(self._host, SERIAL, stream)
        except FabricError:
            pass
        finally:
            await stream.close()

    async def hang_up(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


class Hosts:
    """Daemons with their machines, running."""

    def __init__(self, conductors: dict[str, ConductorService]) -> None:
        self._conductors = conductors
        self.machines: dict[str, FakeMachine] = {}
        self._running: list[asyncio.Task[None]] = []
        self._dialers: list[InMemory] = []

    async def __aenter__(self) -> Hosts:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for dialer in self._dialers:
            await dialer.hang_up()

    def start(self, name: str) -> FakeMachine:
        machine = self.machines[name] = FakeMachine(name)
        dialer = InMemory(name, self._conductors)
        self._dialers.append(dialer)
        daemon = HostDaemon(
            HostSettings(host=name, conductors=tuple(self._conductors)),
            clock=World().clock,
            journal=MemoryJournal(JournalMemory()),
            driver=FakeDriver(machine),
            disks=FakeDisks(machine),
            volumes=FakeVolumes(machine),
            wires=FakeWires(machine),
            dialer=dialer,
            boot_id=f"boot-{name}",
            jitter=Random(name).random,
        )
        self._running.append(asyncio.create_task(daemon.run()))
        return machine


def _fetchable(instance: Instance) -> Instance:
    """The instance with an image whose bytes are what the world's blob store says."""
    image = instance.request.guest.image
    assert image is not None
    data = f"{image.sha256}@0".encode()
    honest = replace(image, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    guest = replace(instance.request.guest, image=honest)
    return replace(instance, request=replace(instance.request, guest=guest))


class OneBlob(MemoryBlobs):
    """The bytes that `_fetchable` promises, whatever their name."""

    async def read(self, sha256: str, offset_bytes: int) -> AsyncIterator[bytes]:
        yield f"{'ab' * 32}@0".encode()[offset_bytes:]


async def _place(cell: World, number: int, host: str, **facts: object) -> None:
    placed = await cell.place(number, host, **facts)
    await cell.intend(_fetchable(placed))


async def _act(cell: World, number: int, action: Action) -> None:
    now = await cell.instance(number)
    await cell.intend(begin(now, action, now_ms=cell.clock.now_ms(), op_id=f"{action}"))


async def _at_rest(cell: World, number: int, state: VmState) -> bool:
    now = await cell.instance(number)
    return (now.vm_state, now.task, now.observed_generation) == (state, TaskState.NONE, now.generation)


async def _is_up(cell: World, host: str) -> bool:
    session = await cell.get(SESSION, host)
    return session is not None and session.state is SessionState.UP


def test_a_server_lives_its_whole_life() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            service._blobs = OneBlob()
            await cell.approve("h1")
            async with Hosts({"c1:7000": service}) as hosts:
                machine = hosts.start("h1")
                await until(lambda: _is_up(cell, "h1"))
                await _place(cell, 1, "h1")

                await until(lambda: _at_rest(cell, 1, VmState.ACTIVE))
                assert machine.domains[instance_id(1)].power is PowerState.RUNNING
                for action, state in (
                    (Action.STOP, VmState.STOPPED),
                    (Action.START, VmState.ACTIVE),
                    (Action.REBOOT_HARD, VmState.ACTIVE),
                    (Action.REBOOT_SOFT, VmState.ACTIVE),
                ):
                    await _act(cell, 1, action)
                    await until(functools.partial(_at_rest, cell, 1, state), within_s=200)
                await _act(cell, 1, Action.DELETE)
                await until(lambda: _is_gone(cell, 1), within_s=200)

                assert machine.domains == {}
                use = await cell.get(USE, "h1")
                assert use is not None
                assert (use.instances, use.slots) == (0, ())
                assert await cell.get(REPORT, "h1") is not None

    run(world)


def test_a_host_that_cannot_spawn_gives_the_server_to_the_next() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            service._blobs = OneBlob()
            await cell.approve("h1")
            await cell.approve("h2", guest_cidr="10.2.0.0/24")
            async with Hosts({"c1:7000": service}) as hosts:
                broken = hosts.start("h1")
                hosts.start("h2")
                broken.fail_next["start"] = deque([FaultCode.DOMAIN_START_FAILED] * 50)
                for name in ("h1", "h2"):
                    await until(functools.partial(_is_up, cell, name))
                await _place(cell, 1, "h1", alternates=("h2",))

                await until(lambda: _at_rest(cell, 1, VmState.ACTIVE), within_s=300)
                await until(lambda: _has_no_tombstones(cell))

                assert (await cell.instance(1)).host == "h2"
                assert broken.domains == {}
                assert hosts.machines["h2"].domains[instance_id(1)].power is PowerState.RUNNING

    run(world)


def test_a_conductor_lost_costs_a_session_and_nothing_else() -> None:
    async def world() -> None:
        async with World() as cell:
            conductors = {"c1:7000": await cell.conductor("c1"), "c2:7000": await cell.conductor("c2")}
            for service in conductors.values():
                service._blobs = OneBlob()
            await cell.approve("h1")
            async with Hosts(conductors) as hosts:
                machine = hosts.start("h1")
                await until(lambda: _is_up(cell, "h1"))
                await _place(cell, 1, "h1")
                await until(lambda: _at_rest(cell, 1, VmState.ACTIVE))
                first = await cell.session("h1")
                boots = machine.domains[instance_id(1)].boots

                conductors[first.conductor].stop()
                await until(lambda: _is_elsewhere(cell, first.conductor))
                await until(lambda: _is_up(cell, "h1"))
                await _act(cell, 1, Action.STOP)
                await until(lambda: _at_rest(cell, 1, VmState.STOPPED), within_s=200)

                assert (await cell.session("h1")).epoch > first.epoch
                assert machine.domains[instance_id(1)].boots == boots

    run(world)


async def _is_gone(cell: World, number: int) -> bool:
    return f"instance/{instance_id(number)}" not in await cell.everything()


async def _has_no_tombstones(cell: World) -> bool:
    return not [key for key in await cell.everything() if key.startswith("tombstone/")]


async def _is_elsewhere(cell: World, conductor: str) -> bool:
    return (await cell.session("h1")).conductor != conductor
