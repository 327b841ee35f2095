"""What the API asks of conductors, over gRPC: a host's session record says which conductor, by `host:port`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import grpc.aio

from fabric.errors import FabricError, Reason, Unavailable
from fabric.pb.host.v1 import conductor_service_pb2 as pb
from fabric.pb.host.v1.conductor_service_pb2_grpc import ConductorServiceStub
from fabric.rpc.channel import channel
from fabric.rpc.status import DETAILS_KEY, from_status
from fabric.rpc.tls import TlsFiles

if TYPE_CHECKING:
    from fabric.pb.host.v1.conductor_service_pb2_grpc import ConductorServiceAsyncStub

CONSOLE_TIMEOUT_S = 12.0
"""A little more than a conductor waits for the host."""

PROGRESS_TIMEOUT_S = 0.5

CHANNELS = 64
"""Conductors that are kept connected; the one not asked for longest is let go."""


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

    async def close(self) -> None:
        """Let go of the connections."""
        while self._channels:
            await self._channels.popitem()[1].close()

    async def _stub(self, endpoint: str) -> ConductorServiceAsyncStub:
        if not endpoint:
            raise Unavailable("the host has no session with any conductor", reason=Reason.HOST_UNAVAILABLE)
        if endpoint not in self._channels:
            self._channels[endpoint] = channel(endpoint, self._tls)
        self._channels.move_to_end(endpoint)
        if len(self._channels) > CHANNELS:
            await self._channels.popitem(last=False)[1].close()
        return ConductorServiceStub(self._channels[endpoint])


def _error(raised: grpc.aio.AioRpcError) -> FabricError:
    """What the conductor said; where it could not be reached, that the host cannot be."""
    details = next((value for key, value in raised.trailing_metadata() or () if key == DETAILS_KEY), b"")
    if not details:
        return Unavailable("the host's conductor does not answer", reason=Reason.HOST_UNAVAILABLE)
    return from_status(
        raised.code().value[0], raised.details() or "", details if isinstance(details, bytes) else b""
    )
