"""Consoles that a host brings, or does not: only those that were asked of it, within what a console may carry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from fabric.conductor.service import ConductorService
from fabric.conductor.tunnels import TUNNELS_LIMIT
from fabric.errors import FabricError, NotFound, PermissionDenied, TooMuch, Unavailable, WrongState
from fabric.model.console import CHUNK_BYTES, ConsoleEnd, ConsoleKind
from fabric.model.session import Goodbye, TunnelRefused, TunnelWanted
from fabric.pb.host.v1 import conductor_service_pb2, host_session_service_pb2
from fabric.rpc import frames
from fabric.rpc.stream import Stream, memory_pair
from tests.unit.conductor.worlds import SERIAL, ScriptedHost, World, instance_id, run


@dataclass
class Asked:
    """An API server that asked for a console of server 1 of a host that is up."""

    cell: World
    conductor: ConductorService
    host: ScriptedHost
    api: frames.Line
    asking: asyncio.Task[None]
    wanted: TunnelWanted

    def dial(self, *, host: str = "h1", serial: str = SERIAL) -> tuple[Stream, asyncio.Task[None]]:
        """A tunnel from a host, and the conductor at its other end."""
        here, there = memory_pair()
        serving = asyncio.ensure_future(self.conductor.serve_tunnel(host, serial, there))
        self.cell._serving.add(serving)
        return here, serving

    async def come(self, **facts: int) -> tuple[frames.Tunnel, Stream, asyncio.Task[None]]:
        """The tunnel as an honest host opens it, but for `facts`."""
        stream, serving = self.dial()
        line = frames.to_tunnel(stream)
        hello = {"epoch": self.host.epoch, "question": self.wanted.question} | facts
        await frames.say_hello(line, epoch=hello["epoch"], question=hello["question"])
        return line, stream, serving


async def ask(conductor: ConductorService, cell: World) -> tuple[frames.Line, asyncio.Task[None]]:
    here, there = memory_pair()
    asking = asyncio.ensure_future(conductor.open_console(there))
    cell._serving.add(asking)
    line = frames.to_conductor(here)
    wanted = conductor_service_pb2.ConsoleWanted(
        host="h1",
        instance_id=instance_id(1),
        placement_epoch=1,
        kind=host_session_service_pb2.CONSOLE_KIND_SERIAL,
    )
    await line.open("wanted", wanted)
    return line, asking


def asked(claim: Callable[[Asked], Awaitable[None]]) -> None:
    async def world() -> None:
        async with World() as cell:
            conductor = await cell.conductor()
            for name in ("h1", "h2"):
                await cell.approve(name)
            host = await cell.up(conductor, "h1")
            api, asking = await ask(conductor, cell)
            wanted = await host.hear(TunnelWanted)
            assert (wanted.instance_id, wanted.kind) == (instance_id(1), ConsoleKind.SERIAL)
            await claim(Asked(cell, conductor, host, api, asking, wanted))

    run(world)


async def ends_with(task: asyncio.Task[None], kind: type[FabricError]) -> None:
    with pytest.raises(kind):
        await asyncio.wait_for(asyncio.shield(task), 30)


def test_bytes_go_both_ways_until_the_host_says_that_it_is_over() -> None:
    async def claim(it: Asked) -> None:
        tunnel, _, serving = await it.come()
        await it.api.head("opened")

        await tunnel.send(b"login: ")
        assert await it.api.receive() == b"login: "
        await it.api.send(b"root\r")
        assert await tunnel.receive() == b"root\r"
        await tunnel.end(ConsoleEnd.GUEST_OFF)

        assert await it.api.receive() is ConsoleEnd.GUEST_OFF
        await asyncio.gather(it.asking, serving)

    asked(claim)


@pytest.mark.parametrize("steps", range(8))
def test_a_tunnel_that_comes_to_somebody_who_has_just_gone_is_let_go(steps: int) -> None:
    """Whoever asked was cancelled between the host's hello and its own next step: the tunnel was held for ever, and 64 of those kept a
    host's guests from having consoles.
    """

    async def claim(it: Asked) -> None:
        _, _, serving = await it.come()
        for _ in range(steps):
            await asyncio.sleep(0)
        it.asking.cancel()
        await asyncio.wait({it.asking})

        await asyncio.wait({serving}, timeout=5)
        assert serving.done()
        await asyncio.gather(serving, return_exceptions=True)

    asked(claim)


def test_a_host_gives_no_reason_that_is_not_its_own() -> None:
    async def claim(it: Asked) -> None:
        tunnel, _, _ = await it.come()
        await it.api.head("opened")

        await tunnel.end(ConsoleEnd.REVOKED)

        assert await it.api.receive() is ConsoleEnd.UNSPECIFIED

    asked(claim)


def test_a_host_that_hangs_up_is_lost() -> None:
    async def claim(it: Asked) -> None:
        _, stream, _ = await it.come()
        await it.api.head("opened")

        await stream.close()

        assert await it.api.receive() is ConsoleEnd.HOST_LOST

    asked(claim)


def test_a_refusal_says_why() -> None:
    async def claim(it: Asked) -> None:
        await it.host.say(TunnelRefused(question=it.wanted.question, fault_code="CONSOLE_IN_USE"))

        await ends_with(it.asking, WrongState)

    asked(claim)


def test_a_host_that_does_not_come_is_not_waited_for_for_ever() -> None:
    async def claim(it: Asked) -> None:
        await ends_with(it.asking, Unavailable)
        _, _, serving = await it.come()

        await ends_with(serving, FabricError)

    asked(claim)


def test_a_console_nobody_asked_for_is_not_taken() -> None:
    async def claim(it: Asked) -> None:
        _, _, serving = await it.come(question=it.wanted.question + 1)
        await ends_with(serving, NotFound)

        await it.come()
        await it.api.head("opened")
        _, _, twice = await it.come()

        await ends_with(twice, NotFound)

    asked(claim)


@pytest.mark.parametrize(("host", "serial"), [("h2", SERIAL), ("h1", "bad0bad0"), ("nobody", SERIAL)])
def test_another_host_brings_nothing(host: str, serial: str) -> None:
    async def claim(it: Asked) -> None:
        stream, serving = it.dial(host=host, serial=serial)
        await frames.say_hello(frames.to_tunnel(stream), epoch=it.host.epoch, question=it.wanted.question)

        await ends_with(serving, PermissionDenied)

    asked(claim)


def test_a_tunnel_of_an_earlier_session_is_not_taken() -> None:
    async def claim(it: Asked) -> None:
        _, _, serving = await it.come(epoch=it.host.epoch - 1)

        await ends_with(serving, PermissionDenied)

    asked(claim)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff",
        b"",
        host_session_service_pb2.TunnelRequest(data=b"x" * (CHUNK_BYTES + 2048)).SerializeToString(),
        host_session_service_pb2.TunnelRequest(
            hello=host_session_service_pb2.TunnelHello(epoch=1, question=1)
        ).SerializeToString(),
    ],
    ids=["noise", "nothing", "too much", "another hello"],
)
def test_what_no_console_says_ends_it_and_counts_against_the_host(frame: bytes) -> None:
    async def claim(it: Asked) -> None:
        api = it.api
        for number in range(3):
            if number:
                api, _ = await ask(it.conductor, it.cell)
                it.wanted = await it.host.hear(TunnelWanted)
            _, stream, _ = await it.come()
            await api.head("opened")
            await stream.send(frame)
            assert await api.receive() is ConsoleEnd.HOST_LOST

        assert "quarantined" in (await it.host.hear(Goodbye)).reason

    asked(claim)


def test_the_end_of_a_session_is_the_end_of_its_consoles() -> None:
    async def claim(it: Asked) -> None:
        tunnel, _, _ = await it.come()
        await it.api.head("opened")

        await it.host.stream.close()

        assert await it.api.receive() is ConsoleEnd.HOST_LOST
        assert await tunnel.receive() is ConsoleEnd.HOST_LOST

    asked(claim)


def test_an_api_server_that_goes_away_lets_the_host_go() -> None:
    async def claim(it: Asked) -> None:
        tunnel, _, serving = await it.come()
        await it.api.head("opened")

        await it.api.close()

        assert await tunnel.receive() is ConsoleEnd.UNSPECIFIED
        await asyncio.wait_for(serving, 30)

    asked(claim)


def test_a_host_has_only_so_many_consoles() -> None:
    async def claim(it: Asked) -> None:
        tunnels = [
            it.conductor._granted["h1"].tunnels.open(instance_id(1), 1, ConsoleKind.VNC, take_over=False)
        ]
        it.conductor._granted["h1"].tunnels._expected.update(
            {-number: asyncio.get_running_loop().create_future() for number in range(TUNNELS_LIMIT)}
        )

        with pytest.raises(TooMuch):
            await tunnels[0]

    asked(claim)
