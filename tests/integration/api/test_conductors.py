"""An API server's connections to conductors: kept for the next call, and let go of one at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric.api.conductors import RemoteConductors
from fabric.api.placed import Whereabouts
from fabric.clock import SystemClock
from fabric.deadlines import within
from fabric.errors import TooMuch, Unavailable
from fabric.ids import RandomIds
from fabric.model.console import ConsoleKind
from fabric.model.identity import Principal
from fabric.pb.host.v1 import conductor_service_pb2 as pb
from fabric.rpc import frames, stages
from fabric.rpc.call import bind
from fabric.rpc.server import MAX_STREAMS, RpcServer, ServerSettings
from fabric.rpc.stream import Stream
from tests.console_doubles import NoConsoles

INSTANCE = "00000000-0000-4000-8000-000000000001"


def _at(conductor: str) -> Whereabouts:
    return Whereabouts(conductor=conductor, host="h1", instance_id=INSTANCE, placement_epoch=1)


class Conductor(NoConsoles):
    """Reads of logs wait until they are let go; consoles say back what they hear."""

    def __init__(self) -> None:
        self.reads = 0
        self.let_go = asyncio.Event()

    async def read_progress(self, request: Any, principal: Principal) -> pb.ReadProgressResponse:
        return pb.ReadProgressResponse(progress=dict.fromkeys(request.instance_ids, "image 40 %"))

    async def read_console_log(self, request: Any, principal: Principal) -> pb.ReadConsoleLogResponse:
        self.reads += 1
        await self.let_go.wait()
        return pb.ReadConsoleLogResponse(data=b"login:")

    async def open_console(self, stream: Stream, principal: Principal) -> None:  # type: ignore[override]  # bound as a handler is
        line = frames.api_side(stream)
        await line.head("wanted")
        await frames.say_opened(line)
        while isinstance(said := await line.receive(), bytes):
            await line.send(said)


@pytest.fixture
def conductor() -> Conductor:
    return Conductor()


@pytest.fixture
async def port(conductor: Conductor) -> AsyncIterator[int]:
    server = RpcServer(
        ServerSettings(listen="127.0.0.1:0", drain_s=0.1),
        bind(pb.DESCRIPTOR.services_by_name["ConductorService"], conductor),
        (stages.report(SystemClock(), RandomIds().new_id),),
    )
    yield await server.start()
    await server.stop()


@pytest.fixture
async def conductors() -> AsyncIterator[RemoteConductors]:
    made = RemoteConductors(None, most=1)
    yield made
    await made.close()


async def test_a_call_under_way_outlives_its_turn_to_be_let_go_of(
    port: int, conductor: Conductor, conductors: RemoteConductors
) -> None:
    """The connection not asked for longest was closed although somebody waited on it: with more conductors than are kept connected, reading
    one server's console ended another's in CancelledError, which is no answer and looks like the caller's own doing.
    """
    reading = asyncio.create_task(conductors.console_log(_at(f"127.0.0.1:{port}"), tail_bytes=100))
    async with within(10.0):
        while not conductor.reads:
            await asyncio.sleep(0.01)
    await conductors.progress(f"localhost:{port}", [INSTANCE])
    conductor.let_go.set()

    assert await reading == b"login:"


async def test_an_open_console_outlives_it_too(port: int, conductors: RemoteConductors) -> None:
    line = await conductors.open_console(_at(f"127.0.0.1:{port}"), ConsoleKind.SERIAL, take_over=False)
    other = await conductors.open_console(_at(f"localhost:{port}"), ConsoleKind.SERIAL, take_over=False)
    await other.close()
    await line.send(b"ls\n")

    async with within(10.0):
        assert await line.receive() == b"ls\n"
    await line.close()


async def test_a_connection_that_nobody_uses_any_more_makes_room(
    port: int, conductors: RemoteConductors
) -> None:
    await conductors.progress(f"127.0.0.1:{port}", [INSTANCE])
    await conductors.progress(f"localhost:{port}", [INSTANCE])
    for conductor in (f"127.0.0.1:{port}", f"localhost:{port}"):
        line = await conductors.open_console(_at(conductor), ConsoleKind.SERIAL, take_over=False)
        await line.close()

    assert list(conductors._asked) == [f"localhost:{port}"]
    assert list(conductors._looked_through) == [f"localhost:{port}"]


async def test_questions_do_not_wait_behind_consoles(port: int, conductors: RemoteConductors) -> None:
    """All of it went over one connection, which carries 200 calls: with 200 consoles open through a conductor, whatever else was asked of
    it waited inside gRPC until its time was over. Logs, counters and passwords were not to be had, and nothing said why.
    """
    where = _at(f"127.0.0.1:{port}")
    lines = []
    with contextlib.suppress(TooMuch):
        for _ in range(MAX_STREAMS):
            lines.append(await conductors.open_console(where, ConsoleKind.SERIAL, take_over=False))  # noqa: PERF401 - those that are open are closed should one fail

    assert await conductors.progress(where.conductor, [INSTANCE]) == {INSTANCE: "image 40 %"}
    assert MAX_STREAMS / 2 < len(lines) < MAX_STREAMS


async def test_a_console_too_many_is_refused_until_another_is_over(port: int) -> None:
    """It waited inside gRPC, until whoever wanted it was told that the conductor had opened none in time."""
    conductors = RemoteConductors(None, consoles=2)
    where = _at(f"127.0.0.1:{port}")
    lines = [await conductors.open_console(where, ConsoleKind.VNC, take_over=False) for _ in range(2)]
    with pytest.raises(TooMuch, match="2 may be"):
        await conductors.open_console(where, ConsoleKind.VNC, take_over=False)
    await conductors.open_console(_at(f"localhost:{port}"), ConsoleKind.VNC, take_over=False)

    await lines[0].close()
    await asyncio.sleep(0.1)
    line = await conductors.open_console(where, ConsoleKind.VNC, take_over=False)
    await line.send(b"RFB")
    async with within(10.0):
        assert await line.receive() == b"RFB"
    await conductors.close()


async def test_whoever_still_waits_when_the_server_ends_hears_that_the_host_is_away(
    port: int, conductor: Conductor, conductors: RemoteConductors
) -> None:
    reading = asyncio.create_task(conductors.console_log(_at(f"127.0.0.1:{port}"), tail_bytes=100))
    async with within(10.0):
        while not conductor.reads:
            await asyncio.sleep(0.01)
    await conductors.close()

    with pytest.raises(Unavailable, match="does not answer"):
        await reading
    conductor.let_go.set()
