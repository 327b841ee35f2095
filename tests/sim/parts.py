"""What the processes of a simulated world are made of: the shipped code on the world's clock, stores, streams and machines."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.core.accept import ref_of
from fabric.api.instances import InstanceHandlers
from fabric.api.network_desk import Desk
from fabric.api.pages import Pages
from fabric.api.placed import Whereabouts
from fabric.api.ports import PortHandlers
from fabric.api.volumes import VolumeHandlers
from fabric.conductor.service import ConductorService
from fabric.deadlines import within
from fabric.errors import FabricError, Unavailable
from fabric.images.core.inspect import ImageLimits
from fabric.images.intake import Intake
from fabric.model.image import ImageOffer
from fabric.model.instance import ImageRef
from fabric.model.network_plan import PlanState
from fabric.model.quota import NetworkLimits
from fabric.quota.ledger import Ledger
from fabric.rpc.stream import StreamClosed
from tests.console_doubles import NoGuests, NoTunnels
from tests.sim.loop import SimLoop
from tests.sim.network import SimStream

if TYPE_CHECKING:
    from tests.sim.world import World

EPOCH_MS: Final = 1_700_000_000_000
"""Wall time at the beginning of every simulation."""

IMAGE_BYTES: Final = b"cellfabric" * 1000
CERT_SERIAL: Final = "00"

TRANSFER_S: Final = 20.0
"""How long a transfer between processes may stand still."""

PASSWORD_S: Final = 24.0
"""How long an API server waits for a conductor to have a password set."""

T = TypeVar("T")


class SimClock:
    """The loop's time, as both clocks."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return EPOCH_MS + int(self._loop.time() * 1000)

    def boot_s(self) -> float:
        return 1000.0 + self._loop.time()


class SimIds:
    """Ids from the seed."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def new_id(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def new_secret(self, nbytes: int = 32) -> bytes:
        return self._random.randbytes(nbytes)


class ApiServer:
    """What fabric-api is made of, less gRPC and logins."""

    def __init__(self, world: World, name: str) -> None:
        catalogue_store = world.store_for(name, "global")
        self.catalogue = Catalogue(catalogue_store, clock=world.clock)
        self.cells = Cells({cell: world.store_for(name, cell) for cell in world.cells}, clock=world.clock)
        self.desk = Desk(
            catalogue_store, limits=NetworkLimits(), clock=world.clock, ids=world.ids, jitter=world.jitter
        )
        self.handlers = InstanceHandlers(
            catalogue=self.catalogue,
            cells=self.cells,
            ledger=Ledger(
                catalogue_store, ids=world.ids, jitter=world.jitter, failpoints=world.failpoints_of(name)
            ),
            desk=self.desk,
            conductors=SimConductors(world, name),
            pages=Pages(),
            clock=world.clock,
            ids=world.ids,
            jitter=world.jitter,
            failpoints=world.failpoints_of(name),
            reclaim_s=world.topology.reclaim_s,
        )

        self.ports = PortHandlers(self.desk)
        self.volumes = VolumeHandlers(
            catalogue_store,
            self.cells,
            image=self.catalogue.image,
            clock=world.clock,
            ids=world.ids,
            jitter=world.jitter,
        )
        self.intake = Intake(
            catalogue_store, world.blobs, limits=ImageLimits(), clock=world.clock, jitter=world.jitter
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.catalogue.run())
            tasks.create_task(self.cells.run())
            tasks.create_task(self.handlers.waiting_images.run())


class SimConductors(NoGuests):
    """How an API server reaches conductors."""

    def __init__(self, world: World, api: str) -> None:
        self._world = world
        self._api = api

    async def console_log(self, where: Whereabouts, *, tail_bytes: int) -> bytes:
        service = await self._reach(where.conductor)
        return await service.read_console_log(
            where.host, where.instance_id, where.placement_epoch, tail_bytes
        )

    async def plan_state(self, endpoint: str, host: str) -> PlanState | None:
        return (await self._reach(endpoint)).read_plan_state(host)

    async def progress(self, endpoint: str, instance_ids: Sequence[str]) -> Mapping[str, str]:
        return (await self._reach(endpoint)).read_progress(instance_ids)

    async def set_password(self, where: Whereabouts, *, request_id: str, user: str, password: str) -> None:
        service = await self._reach(where.conductor)
        setting = service.set_password(
            where.host, where.instance_id, where.placement_epoch, request_id, user, password
        )
        # In the conductor's process, and not in this one's: it dies with that one.
        await _within(self._world.processes[where.conductor].call(_answer(setting)), PASSWORD_S)

    async def _reach(self, endpoint: str) -> ConductorService:
        await asyncio.sleep(self._world.network.latency_s())
        process = self._world.processes[endpoint]
        if not isinstance(process.service, ConductorService) or process.is_paused:
            raise Unavailable(f"{endpoint} is down")
        return process.service


class SimBlobs:
    """How a conductor reaches images, through any API server that lives."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def read(self, sha256: str, offset_bytes: int) -> AsyncIterator[bytes]:
        async for data in self._world.blobs.read(sha256, offset_bytes):
            for start in range(0, len(data), 4096):
                await asyncio.sleep(0.005)
                yield data[start : start + 4096]

    async def take(self, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> ImageRef:
        data = b"".join([chunk async for chunk in chunks])
        await asyncio.sleep(self._world.network.latency_s())
        for name, process in self._world.processes.items():
            if name.startswith("api") and isinstance(process.service, ApiServer):
                answer = await _within(
                    process.call(_answer(process.service.intake.take(offer, _pieces(data))))
                )
                return ref_of(answer)
        raise Unavailable("no API server lives")


class SimDialer(NoTunnels):
    """How a host reaches its conductors."""

    def __init__(self, world: World, host: str) -> None:
        self._world = world
        self._host = host

    async def dial(self, endpoint: str) -> SimStream:
        network = self._world.network
        await asyncio.sleep(network.latency_s())
        process = self._world.processes[endpoint]
        if network.is_cut(self._host, endpoint):
            await asyncio.sleep(2.0)
            raise Unavailable(f"{endpoint} cannot be reached")
        if not isinstance(process.service, ConductorService):
            raise Unavailable(f"{endpoint} refuses connections")
        here, there = SimStream.pair(network, self._host, endpoint)
        self._world.streams.setdefault(self._host, []).append(here)
        self._world.streams.setdefault(endpoint, []).append(there)
        process.call(_serve(process.service, self._host, there))
        return here

    async def upload_image(self, endpoint: str, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> None:
        network = self._world.network
        data = b""
        async for chunk in chunks:
            await asyncio.sleep(network.latency_s())
            data += chunk
            process = self._world.processes[endpoint]
            if network.is_cut(self._host, endpoint) or not isinstance(process.service, ConductorService):
                await asyncio.sleep(1.0)
                raise Unavailable(f"{endpoint} cannot be reached")
        service = self._world.processes[endpoint].service
        if not isinstance(service, ConductorService):
            raise Unavailable(f"{endpoint} cannot be reached")
        await _within(
            self._world.processes[endpoint].call(
                _answer(service.upload_image(self._host, CERT_SERIAL, offer, _pieces(data)))
            )
        )
        await asyncio.sleep(network.latency_s())
        if network.is_cut(self._host, endpoint):
            raise Unavailable(f"{endpoint} went away")

    async def fetch_image(self, endpoint: str, image_id: str, offset: int) -> AsyncIterator[bytes]:
        network = self._world.network
        process = self._world.processes[endpoint]
        if network.is_cut(self._host, endpoint) or not isinstance(process.service, ConductorService):
            await asyncio.sleep(1.0)
            raise Unavailable(f"{endpoint} cannot be reached")
        async for piece in process.service.fetch_image(self._host, CERT_SERIAL, image_id, offset):
            await asyncio.sleep(network.latency_s())
            if network.is_cut(self._host, endpoint) or not process.is_up or process.is_paused:
                raise Unavailable(f"{endpoint} went away")
            yield piece


async def _serve(service: ConductorService, host: str, stream: SimStream) -> None:
    try:
        await service.serve_host(host, CERT_SERIAL, stream)
    except StreamClosed:
        pass
    finally:
        await stream.close()


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 4096):
        yield data[start : start + 4096]


async def _answer(work: Awaitable[T]) -> T | FabricError:
    """The result, or its error as a value: an exception of a task whose caller gave up would be nobody's."""
    try:
        return await work
    except FabricError as error:
        return error


async def _within(answer: asyncio.Future[T | FabricError], timeout_s: float = TRANSFER_S) -> T:
    """What another process answers, if it lives to answer. Raises what it raised, Unavailable where it says nothing."""
    try:
        # A dead process answers nothing, not even to being cancelled.
        async with within(timeout_s):
            result = await asyncio.shield(answer)
    except TimeoutError:
        raise Unavailable("there was no answer") from None
    if isinstance(result, FabricError):
        raise result
    return result
