"""What the API asks of conductors, over gRPC: a host's session record says which conductor, by `host:port`."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc.aio

from fabric.api.placed import Whereabouts
from fabric.deadlines import within
from fabric.errors import FabricError, InvalidRequest, Reason, TooMuch, Unavailable
from fabric.model.console import ConsoleKind
from fabric.model.network_plan import PlanState
from fabric.model.session import Diagnostics
from fabric.pb.host.v1 import conductor_service_pb2 as pb
from fabric.pb.host.v1 import host_session_service_pb2 as pb_session
from fabric.pb.host.v1.conductor_service_pb2_grpc import ConductorServiceStub
from fabric.rpc import frames
from fabric.rpc.call_stream import BytesCall, CallStream, is_cancelling
from fabric.rpc.channel import channel
from fabric.rpc.plan_codec import unpack_plan_state
from fabric.rpc.server import MAX_STREAMS
from fabric.rpc.session_codec import unpack_diagnostics
from fabric.rpc.status import details_of, error_of
from fabric.rpc.stream import StreamClosed
from fabric.rpc.tls import TlsFiles

if TYPE_CHECKING:
    from fabric.pb.host.v1.conductor_service_pb2_grpc import ConductorServiceAsyncStub

CONSOLE_TIMEOUT_S = 12.0
"""A little more than a conductor waits for the host."""

PROGRESS_TIMEOUT_S = 0.5

PLAN_STATE_TIMEOUT_S = 2.0
"""The conductor asks nobody for it."""

PASSWORD_TIMEOUT_S = 24.0
"""A little more than a conductor waits, and less than a call may take."""

CHANNELS = 64
"""Conductors that are kept connected; the one not asked for longest is let go."""

CONSOLES = MAX_STREAMS - 10
"""Consoles that are open through one conductor. What is left of their connection is for those that have ended here and not yet there."""


_OPEN_CONSOLE = f"/{pb.DESCRIPTOR.services_by_name['ConductorService'].full_name}/OpenConsole"


class RemoteConductors:
    """Asks conductors. Belongs to the event loop it is first used on.

    `most` conductors are kept connected. More are while more are asked at once: a connection is never closed under a call, whose caller
    gRPC would tell that it was cancelled. Consoles, which last, have connections of their own: a question never waits behind them.
    """

    def __init__(self, tls: TlsFiles | None, *, most: int = CHANNELS, consoles: int = CONSOLES) -> None:
        self._asked = _Ways(tls, most)
        self._looked_through = _Ways(tls, most)
        self._consoles = consoles

    async def console_log(self, where: Whereabouts, *, tail_bytes: int) -> bytes:
        """The end of a serial console. Raises Unavailable, NotFound."""
        request = pb.ReadConsoleLogRequest(
            host=where.host,
            instance_id=where.instance_id,
            placement_epoch=where.placement_epoch,
            tail_bytes=tail_bytes,
        )
        async with self._asking(where.conductor) as stub:
            answer = await stub.ReadConsoleLog(request, timeout=CONSOLE_TIMEOUT_S)
        return answer.data

    async def progress(self, endpoint: str, instance_ids: Sequence[str]) -> Mapping[str, str]:
        """How far steps are, for those that have a word. Raises Unavailable."""
        request = pb.ReadProgressRequest(instance_ids=instance_ids)
        async with self._asking(endpoint) as stub:
            answer = await stub.ReadProgress(request, timeout=PROGRESS_TIMEOUT_S)
        return dict(answer.progress)

    async def plan_state(self, endpoint: str, host: str) -> PlanState | None:
        """How far a host has got with its network plans; None where it is told none. Raises Unavailable."""
        async with self._asking(endpoint) as stub:
            answer = await stub.ReadPlanState(
                pb.ReadPlanStateRequest(host=host), timeout=PLAN_STATE_TIMEOUT_S
            )
        return unpack_plan_state(answer.state) if answer.HasField("state") else None

    async def diagnostics(self, where: Whereabouts) -> Diagnostics:
        """A guest's counters. Raises WrongState where it is off, Unavailable."""
        request = pb.ReadDiagnosticsRequest(
            host=where.host, instance_id=where.instance_id, placement_epoch=where.placement_epoch
        )
        async with self._asking(where.conductor) as stub:
            answer = await stub.ReadDiagnostics(request, timeout=CONSOLE_TIMEOUT_S)
        return unpack_diagnostics(answer.diagnostics)

    async def set_password(self, where: Whereabouts, *, request_id: str, user: str, password: str) -> None:
        """Set a password inside a guest. Raises WrongState where it has no agent, or its agent refuses; Unavailable."""
        request = pb.SetPasswordRequest(
            host=where.host,
            instance_id=where.instance_id,
            placement_epoch=where.placement_epoch,
            request_id=request_id,
            user=user,
            password=password,
        )
        async with self._asking(where.conductor) as stub:
            await stub.SetPassword(request, timeout=PASSWORD_TIMEOUT_S)

    async def open_console(
        self, where: Whereabouts, kind: ConsoleKind, *, take_over: bool
    ) -> frames.Line[pb.ConsoleOpened]:
        """Open a console. Raises WrongState where somebody has it or the guest is off, TooMuch, Unavailable."""
        async with self._looked_through.using(where.conductor) as way:
            if way.calls > self._consoles:  # this one is among them
                raise TooMuch(
                    f"too many consoles are open from here through the host's conductor: {self._consoles} may be",
                    retry_after_s=5.0,
                    limit=self._consoles,
                )
            call: BytesCall = way.channel.stream_stream(_OPEN_CONSOLE)()
            # The console is used for longer than it takes to open it.
            way.calls += 1
            call.add_done_callback(way.left)
        stream = CallStream(call)
        line = frames.to_conductor(stream)
        wanted = pb.ConsoleWanted(
            host=where.host,
            instance_id=where.instance_id,
            placement_epoch=where.placement_epoch,
            kind=pb_session.ConsoleKind.ValueType(kind),
            take_over=take_over,
        )
        try:
            async with within(CONSOLE_TIMEOUT_S):
                await line.open("wanted", wanted)
                await line.head("opened")
        except StreamClosed:
            failed = await stream.error()
            raise (
                Unavailable("the host's conductor hung up", reason=Reason.HOST_UNAVAILABLE)
                if failed is None
                else _error(failed)
            ) from None
        except (TimeoutError, InvalidRequest):
            await stream.close()
            raise Unavailable(
                "the host's conductor opened no console in time", reason=Reason.HOST_UNAVAILABLE
            ) from None
        except BaseException:
            await stream.close()
            raise
        return line

    async def close(self) -> None:
        """Let go of the connections. Whoever still waits for a conductor hears Unavailable."""
        await self._asked.close()
        await self._looked_through.close()

    @asynccontextmanager
    async def _asking(self, endpoint: str) -> AsyncIterator[ConductorServiceAsyncStub]:
        """A conductor to ask, whose errors are raised as ours."""
        try:
            async with self._asked.using(endpoint) as way:
                yield ConductorServiceStub(way.channel)
        except grpc.aio.AioRpcError as raised:
            raise _error(raised) from None
        except asyncio.CancelledError:
            if is_cancelling():
                raise
            raise _silent() from None


@dataclass(slots=True)
class _Way:
    """A connection, and how many calls are under way on it."""

    channel: grpc.aio.Channel
    calls: int = 0

    def left(self, _: object) -> None:
        """One of them is over."""
        self.calls -= 1


class _Ways:
    """Connections of one purpose, by conductor."""

    def __init__(self, tls: TlsFiles | None, most: int) -> None:
        self._tls = tls
        self._most = most
        # In the order they were last used.
        self._ways: OrderedDict[str, _Way] = OrderedDict()

    def __iter__(self) -> Iterator[str]:
        return iter(self._ways)

    @asynccontextmanager
    async def using(self, endpoint: str) -> AsyncIterator[_Way]:
        """A connection on which one more call is under way meanwhile. Raises Unavailable where there is no conductor."""
        if not endpoint:
            raise Unavailable("the host has no session with any conductor", reason=Reason.HOST_UNAVAILABLE)
        if endpoint not in self._ways:
            self._ways[endpoint] = _Way(channel(endpoint, self._tls))
        self._ways.move_to_end(endpoint)
        way = self._ways[endpoint]
        way.calls += 1
        try:
            await self._make_room()
            yield way
        finally:
            way.calls -= 1

    async def close(self) -> None:
        """Let go of them all."""
        while self._ways:
            await self._ways.popitem()[1].channel.close()

    async def _make_room(self) -> None:
        idle = [endpoint for endpoint, way in self._ways.items() if not way.calls]
        for endpoint in idle[: max(0, len(self._ways) - self._most)]:
            # Taken out first: nobody may begin a call on what is being closed.
            way = self._ways.pop(endpoint, None)
            if way is not None:
                await way.channel.close()


def _error(raised: grpc.aio.AioRpcError) -> FabricError:
    """What the conductor said; where it could not be reached, that the host cannot be."""
    is_ours = details_of(raised.trailing_metadata() or ())
    return error_of(raised) if is_ours else _silent()


def _silent() -> Unavailable:
    return Unavailable("the host's conductor does not answer", reason=Reason.HOST_UNAVAILABLE)
