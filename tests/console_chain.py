"""Everything between a person's console and a guest that only pretends, in one process: tickets, conductor, tunnel, host."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.consoles import ConsoleOptions, Consoles
from fabric.api.placed import Whereabouts
from fabric.conductor.service import ConductorService
from fabric.deadlines import within
from fabric.errors import FabricError, Unavailable
from fabric.identity.tokens import Tokens
from fabric.ids import RandomIds
from fabric.model.console import ConsoleEnd, ConsoleKind
from fabric.model.identity import Principal, Role, Token
from fabric.model.instance import Location
from fabric.model.quota import Charge
from fabric.model.states import VmState
from fabric.pb.host.v1 import conductor_service_pb2 as pb
from fabric.rpc import frames
from fabric.rpc.stream import StreamClosed, memory_pair
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import LOCATION, token_key
from fabric.store.memory import MemoryStore
from hostd.driver.fake import FakeMachine
from tests.console_doubles import NoGuests
from tests.unit.conductor.test_with_hostd import Hosts, OneBlob, _at_rest, _is_up, _place
from tests.unit.conductor.worlds import World, instance_id, until

PROJECT = "00000000-0000-4000-8000-00000000000f"
ENDPOINT = "c1:7000"


class InProcess(NoGuests):
    """The conductors, without gRPC."""

    def __init__(self, conductors: dict[str, ConductorService]) -> None:
        self._conductors = conductors
        self._serving: set[asyncio.Task[None]] = set()

    async def open_console(self, where: Whereabouts, kind: ConsoleKind, *, take_over: bool) -> frames.Line:
        here, there = memory_pair(limit=4)
        failed: list[FabricError] = []

        async def serve() -> None:
            try:
                await self._conductors[where.conductor].open_console(there)
            except FabricError as error:
                failed.append(error)
            finally:
                await there.close()

        serving = asyncio.create_task(serve())
        self._serving.add(serving)
        line = frames.to_conductor(here)
        wanted = pb.ConsoleWanted(
            host=where.host,
            instance_id=where.instance_id,
            placement_epoch=where.placement_epoch,
            kind=int(kind),  # type: ignore[arg-type]  # the same numbers
            take_over=take_over,
        )
        try:
            await line.open("wanted", wanted)
            await line.head("opened")
        except StreamClosed:
            raise (failed[0] if failed else Unavailable("the conductor hung up")) from None
        return line

    async def hang_up(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


@dataclass
class Viewer:
    """A person's end: what is typed is queued, what is shown is kept."""

    shown: bytes = b""
    typed: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    why: ConsoleEnd | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes) -> None:
        self.shown += data
        self._changed.set()

    async def receive(self) -> bytes | ConsoleEnd:
        typed = await self.typed.get()
        if typed is None:
            raise StreamClosed
        return typed

    async def end(self, why: ConsoleEnd) -> None:
        self.why = why

    async def sees(self, words: bytes) -> None:
        async with within(60.0):
            while words not in self.shown:
                self._changed.clear()
                await self._changed.wait()


@dataclass
class Chain:
    """The servers and the host, with server number 1 running on it; `apis` are two API servers over the same stores."""

    world: World
    machine: FakeMachine
    conductor: ConductorService
    store: MemoryStore
    apis: tuple[Consoles, Consoles]
    me: Principal

    @property
    def instance_id(self) -> str:
        return instance_id(1)


@asynccontextmanager
async def a_chain(options: ConsoleOptions | None = None) -> AsyncIterator[Chain]:
    """Build it, and take it down."""
    async with World() as cell:
        conductor = await cell.conductor()
        conductor._blobs = OneBlob()
        await cell.approve("h1")
        async with Hosts({ENDPOINT: conductor}) as hosts:
            machine = hosts.start("h1")
            await until(lambda: _is_up(cell, "h1"))
            await _place(cell, 1, "h1")
            await until(functools.partial(_at_rest, cell, 1, VmState.ACTIVE))
            async with _apis(cell, conductor, options or ConsoleOptions()) as (store, apis, me):
                yield Chain(cell, machine, conductor, store, apis, me)


@asynccontextmanager
async def _apis(
    cell: World, conductor: ConductorService, options: ConsoleOptions
) -> AsyncIterator[tuple[MemoryStore, tuple[Consoles, Consoles], Principal]]:
    store, ids, clock = MemoryStore("global"), RandomIds(), cell.clock
    me, token = _somebody(clock.now_ms())
    record = await cell.instance(1)
    location = Location(
        instance_id=record.id,
        project_id=PROJECT,
        user_id="me",
        cell="east",
        name="web",
        charge=Charge(instances=1),
        create_time_ms=clock.now_ms(),
    )
    await store.commit(
        Txn(put={LOCATION.at(record.id): encode(location), f"token/{me.token_id}": encode(token)})
    )
    catalogue = Catalogue(store, clock=clock)
    cells = Cells({"east": cell.store}, clock=clock)
    conductors = InProcess({ENDPOINT: conductor})
    running = [asyncio.create_task(each.run()) for each in (catalogue, cells)]
    first, second = (
        Consoles(
            catalogue=catalogue,
            cells=cells,
            conductors=conductors,
            tokens=Tokens(store, clock=clock, ids=ids),
            options=options,
            clock=clock,
            ids=ids,
        )
        for _ in range(2)
    )
    try:
        yield store, (first, second), me
    finally:
        await conductors.hang_up()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _somebody(now_ms: int) -> tuple[Principal, Token]:
    token_id = token_key("fab_mine").removeprefix("token/")
    token = Token(
        id=token_id,
        user_id="me",
        user_name="me",
        project_id=PROJECT,
        project_name="p",
        role=Role.MEMBER,
        issue_time_ms=now_ms,
        expire_time_ms=now_ms + 3_600_000,
    )
    principal = Principal(
        user_id="me", user_name="me", project_id=PROJECT, role=Role.MEMBER, token_id=token_id
    )
    return principal, token
