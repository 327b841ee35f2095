"""The way to conductors over gRPC: one mutually authenticated channel per conductor, a session's stream and image downloads on it.

Sessions travel as bytes: what they mean is the session's to read, and a message that does not parse ends the session, not the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import grpc
import grpc.aio

from fabric.deadlines import within
from fabric.errors import Unavailable
from fabric.model.image import ImageOffer
from fabric.pb.host.v1 import host_session_service_pb2 as pb
from fabric.rpc.call_stream import CallStream, is_cancelling
from fabric.rpc.channel import channel
from fabric.rpc.status import error_of
from fabric.rpc.stream import Stream
from fabric.rpc.tls import TlsFiles
from fabric.rpc.uploads import send_all

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["HostSessionService"].full_name
_SESSION: Final = f"/{_SERVICE}/Session"
_FETCH_IMAGE: Final = f"/{_SERVICE}/FetchImage"
_UPLOAD_IMAGE: Final = f"/{_SERVICE}/UploadImage"
_TUNNEL: Final = f"/{_SERVICE}/Tunnel"

CONNECT_S: Final = 5.0
"""How long a conductor's port may take to answer, TLS included."""
FETCH_S: Final = 3600.0
"""How long one transfer may take. A longer one ends, and goes on where it ended."""


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
        return CallStream(opened.stream_stream(_SESSION)())

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
            raise error_of(failed) from None
        except asyncio.CancelledError:
            if is_cancelling():
                raise
            raise Unavailable("the connection to the conductor was closed") from None
        finally:
            call.cancel()

    async def upload_image(self, endpoint: str, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> None:
        opened = self._channels.get(endpoint)
        if opened is None:
            raise Unavailable(f"there is no connection to {endpoint}")
        upload = opened.stream_unary(
            _UPLOAD_IMAGE,
            request_serializer=pb.UploadImageRequest.SerializeToString,
            response_deserializer=pb.UploadImageResponse.FromString,
        )
        header = pb.ImageOffer(
            image_id=offer.image_id,
            instance_id=offer.instance_id,
            placement_epoch=offer.placement_epoch,
            sha256=offer.sha256,
            size_bytes=offer.size_bytes,
            virtual_size_bytes=offer.virtual_size_bytes,
        )

        async def pieces() -> AsyncGenerator[pb.UploadImageRequest, None]:
            yield pb.UploadImageRequest(header=header)
            async for chunk in chunks:
                yield pb.UploadImageRequest(data=chunk)

        await send_all(upload(timeout=FETCH_S), pieces())

    async def tunnel(self, endpoint: str) -> Stream:
        opened = self._channels.get(endpoint)
        if opened is None:
            raise Unavailable(f"there is no connection to {endpoint}")
        return CallStream(opened.stream_stream(_TUNNEL)())

    async def close(self) -> None:
        """Let go of every connection."""
        for endpoint in list(self._channels):
            await self._drop(endpoint)

    async def _drop(self, endpoint: str) -> None:
        old = self._channels.pop(endpoint, None)
        if old is not None:
            await old.close()
