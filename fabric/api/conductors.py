"""What the API asks of conductors, over gRPC: a host's session record says which conductor, by `host:port`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import grpc.aio

from fabric.deadlines import within
from fabric.errors import FabricError, InvalidRequest, Reason, Unavailable
from fabric.model.console import ConsoleKind
from fabric.model.session import Diagnostics
from fabric.pb.host.v1 import conductor_service_pb2 as pb
from fabric.pb.host.v1 import host_session_service_pb2 as pb_session
from fabric.pb.host.v1.conductor_service_pb2_grpc import ConductorServiceStub
from fabric.rpc import frames
from fabric.rpc.call_stream import CallStream
from fabric.rpc.channel import channel
from fabric.rpc.session_codec import unpack_diagnostics
from fabric.rpc.status import DETAILS_KEY, from_status
from fabric.rpc.stream import StreamClosed
from fabric.rpc.tls import TlsFiles

if TYPE_CHECKING:
    from fabric.pb.host.v1.conductor_service_pb2_grpc import ConductorServiceAsyncStub

CONSOLE_TIMEOUT_S = 12.0
"""A little more than a conductor waits for the host."""

PROGRESS_TIMEOUT_S = 0.5

PASSWORD_TIMEOUT_S = 24.0
"""A little more than a conductor waits, and less than a call may take."""

CHANNELS = 64
"""Conductors that are kept connected; the one not asked for longest is let go."""


_OPEN_CONSOLE = f"/{pb.DESCRIPTOR.services_by_name['ConductorService'].full_name}/OpenConsole"


class RemoteConductors:
    """Asks conductors. Belongs to the event loop it is first used on."""

    def __init__(self, tls: TlsFiles | None) -> None:
        self._tls = tls
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()

    async def console_log(
        self, endpoint: str, host: str, instance_id: str, placement_epoch: int, tail_bytes: int
    ) -> bytes:
        """The end of a serial console. Raises Unavailable, NotFound."""
        request = pb.ReadConsoleLogRequest(
            host=host, instance_id=instance_id, placement_epoch=placement_epoch, tail_bytes=tail_bytes
        )
        stub = await self._stub(endpoint)
        try:
            answer = await stub.ReadConsoleLog(request, timeout=CONSOLE_TIMEOUT_S)
        except grpc.aio.AioRpcError as raised:
            raise _error(raised) from None
        return answer.data

    async def progress(self, endpoint: str, instance_ids: Sequence[str]) -> Mapping[str, str]:
        """How far steps are, for those that have a word. Raises Unavailable."""
        stub = await self._stub(endpoint)
        try:
            answer = await stub.ReadProgress(
                pb.ReadProgressRequest(instance_ids=instance_ids), timeout=PROGRESS_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as raised:
            raise _error(raised) from None
        return dict(answer.progress)

    async def diagnostics(
        self, endpoint: str, host: str, instance_id: str, placement_epoch: int
    ) -> Diagnostics:
        """A guest's counters. Raises WrongState where it is off, Unavailable."""
        request = pb.ReadDiagnosticsRequest(
            host=host, instance_id=instance_id, placement_epoch=placement_epoch
        )
        stub = await self._stub(endpoint)
        try:
            answer = await stub.ReadDiagnostics(request, timeout=CONSOLE_TIMEOUT_S)
        except grpc.aio.AioRpcError as raised:
            raise _error(raised) from None
        return unpack_diagnostics(answer.diagnostics)

    async def set_password(
        self,
        endpoint: str,
        host: str,
        instance_id: str,
        placement_epoch: int,
        request_id: str,
        user: str,
        password: str,
    ) -> None:
        """Set a password inside a guest. Raises WrongState where it has no agent, or its agent refuses; Unavailable."""
        request = pb.SetPasswordRequest(
            host=host,
            instance_id=instance_id,
            placement_epoch=placement_epoch,
            request_id=request_id,
            user=user,
            password=password,
        )
        stub = await self._stub(endpoint)
        try:
            await stub.SetPassword(request, timeout=PASSWORD_TIMEOUT_S)
        except grpc.aio.AioRpcError as raised:
            raise _error(raised) from None

    async def open_console(
        self,
        endpoint: str,
        host: str,
        instance_id: str,
        placement_epoch: int,
        kind: ConsoleKind,
        *,
        take_over: bool,
    ) -> frames.Line[pb.ConsoleOpened]:
        """Open a console. Raises WrongState where somebody has it or the guest is off, TooMuch, Unavailable."""
        stream = CallStream((await self._channel(endpoint)).stream_stream(_OPEN_CONSOLE)())
        line = frames.to_conductor(stream)
        wanted = pb.ConsoleWanted(
            host=host,
            instance_id=instance_id,
            placement_epoch=placement_epoch,
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
        """Let go of the connections."""
        while self._channels:
            await self._channels.popitem()[1].close()

    async def _stub(self, endpoint: str) -> ConductorServiceAsyncStub:
        return ConductorServiceStub(await self._channel(endpoint))

    async def _channel(self, endpoint: str) -> grpc.aio.Channel:
        if not endpoint:
            raise Unavailable("the host has no session with any conductor", reason=Reason.HOST_UNAVAILABLE)
        if endpoint not in self._channels:
            self._channels[endpoint] = channel(endpoint, self._tls)
        self._channels.move_to_end(endpoint)
        if len(self._channels) > CHANNELS:
            await self._channels.popitem(last=False)[1].close()
        return self._channels[endpoint]


def _error(raised: grpc.aio.AioRpcError) -> FabricError:
    """What the conductor said; where it could not be reached, that the host cannot be."""
    details = next((value for key, value in raised.trailing_metadata() or () if key == DETAILS_KEY), b"")
    if not details:
        return Unavailable("the host's conductor does not answer", reason=Reason.HOST_UNAVAILABLE)
    return from_status(
        raised.code().value[0], raised.details() or "", details if isinstance(details, bytes) else b""
    )
