"""The way to conductors over gRPC: one mutually authenticated channel per conductor, a session's stream and image downloads on it.

Sessions travel as bytes: what they mean is the session's to read, and a message that does not parse ends the session, not the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import grpc
import grpc.aio

from fabric.deadlines import within
from fabric.errors import FabricError, Unavailable
from fabric.pb.host.v1 import host_session_service_pb2 as pb
from fabric.rpc.channel import channel
from fabric.rpc.status import DETAILS_KEY, from_status
from fabric.rpc.stream import Stream, StreamClosed
from fabric.rpc.tls import TlsFiles

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["HostSessionService"].full_name
_SESSION: Final = f"/{_SERVICE}/Session"
_FETCH_IMAGE: Final = f"/{_SERVICE}/FetchImage"

CONNECT_S: Final = 5.0
"""How long a conductor's port may take to answer, TLS included."""
FETCH_S: Final = 3600.0
"""How long one transfer may take. A longer one ends, and goes on where it ended."""

Call = grpc.aio.StreamStreamCall[bytes, bytes]


class SessionStream:
    """`Stream` over a gRPC call with both directions streamed."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def send(self, data: bytes) -> None:
        with _closed_when_over():
            await self._call.write(data)

    async def receive(self) -> bytes:
        with _closed_when_over():
            data = await self._call.read()
        if not isinstance(data, bytes):
            raise StreamClosed("the conductor has ended the session")
        return data

    async def close(self) -> None:
        self._call.cancel()


class GrpcDialer:
    """`Dialer` by gRPC. Channels are kept: a session and the images fetched meanwhile share one."""

    def __init__(self, tls: TlsFiles | None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def dial(self, endpoint: str) -> Stream:
        # A new channel for each session: the certificate may have been renewed, the conductor moved.
        await self._drop(endpoint)
        opened = channel(endpoint, self._tls)
        self._channels[endpoint] = opened
        try:
            async with within(CONNECT_S):
                await opened.channel_ready()
        except TimeoutError as late:
            await self._drop(endpoint)
            raise Unavailable(f"{endpoint} cannot be reached within {CONNECT_S:.0f} s") from late
        return SessionStream(opened.stream_stream(_SESSION)())

    async def fetch_image(self, endpoint: str, image_id: str, offset: int) -> AsyncIterator[bytes]:
        opened = self._channels.get(endpoint)
        if opened is None:
            raise Unavailable(f"there is no connection to {endpoint}")
        request = pb.FetchImageRequest(image_id=image_id, offset_bytes=offset)
        fetch = opened.unary_stream(
            _FETCH_IMAGE,
            request_serializer=pb.FetchImageRequest.SerializeToString,
            response_deserializer=pb.FetchImageResponse.FromString,
        )
        call = fetch(request, timeout=FETCH_S)
        try:
            async for piece in call:
                yield piece.data
        except grpc.aio.AioRpcError as failed:
            raise _error(failed) from None
        except asyncio.CancelledError:
            if _is_cancelling():
                raise
            raise Unavailable("the connection to the conductor was closed") from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Let go of every connection."""
        for endpoint in list(self._channels):
            await self._drop(endpoint)

    async def _drop(self, endpoint: str) -> None:
        old = self._channels.pop(endpoint, None)
        if old is not None:
            await old.close()


@contextmanager
def _closed_when_over() -> Iterator[None]:
    """Say StreamClosed for every way in which gRPC says that a call is over."""
    try:
        yield
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as over:
        raise StreamClosed(_words(over)) from None
    except asyncio.CancelledError:
        if _is_cancelling():
            raise
        raise StreamClosed("the session was ended here") from None


def _is_cancelling() -> bool:
    """Whether this task is being cancelled. gRPC raises CancelledError for a call that was cancelled, too: that is not the same."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _error(failed: grpc.aio.AioRpcError) -> FabricError:
    details = b""
    with suppress(TypeError):
        for key, value in failed.trailing_metadata() or ():
            if key == DETAILS_KEY and isinstance(value, bytes):
                details = value
    return from_status(failed.code().value[0], failed.details() or "", details)


def _words(over: BaseException) -> str:
    if isinstance(over, grpc.aio.AioRpcError):
        return f"{over.code().name}: {over.details()}"
    return "the session has ended"
