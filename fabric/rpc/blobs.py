"""Image bytes from and to the API servers' internal port, for a conductor that relays them for its hosts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

import grpc
import grpc.aio

from fabric.errors import FabricError, Unavailable
from fabric.model.image import ImageFormat, ImageOffer
from fabric.model.instance import ImageRef
from fabric.pb.image.v1 import blob_service_pb2, blob_service_pb2_grpc
from fabric.rpc.channel import channel
from fabric.rpc.status import error_of
from fabric.rpc.tls import TlsFiles
from fabric.rpc.uploads import send_all


class RemoteBlobs:
    """Asks one API server after the other until one answers. Belongs to the event loop it is first used on.

    Which one is asked first is chance, so that all of them carry the bytes: each of them has every blob. In turn, of images that come in
    pairs, a kernel and its disk, all disks would be one server's.
    """

    def __init__(
        self, endpoints: Sequence[str], tls: TlsFiles | None, *, jitter: Callable[[], float]
    ) -> None:
        self._channels = tuple(channel(endpoint, tls) for endpoint in endpoints)
        self._jitter = jitter

    def _from_any(self) -> tuple[grpc.aio.Channel, ...]:
        """All of them, from any one on."""
        first = int(self._jitter() * len(self._channels))
        return self._channels[first:] + self._channels[:first]

    async def read(self, sha256: str, offset_bytes: int) -> AsyncIterator[bytes]:
        """A blob's bytes from an offset. Raises NotFound, Unavailable.

        Another server is asked only as long as nothing was read: from then on the host goes on from where it is.
        """
        failure: FabricError = Unavailable("no API server is configured to have images from")
        for each in self._from_any():
            is_begun = False
            request = blob_service_pb2.ReadBlobRequest(sha256=sha256, offset_bytes=offset_bytes)
            stub = blob_service_pb2_grpc.BlobServiceStub(each)
            call = stub.ReadBlob(request)
            try:
                async for response in call:
                    is_begun = True
                    yield response.data
            except grpc.aio.AioRpcError as raised:
                failure = error_of(raised)
                if is_begun or not isinstance(failure, Unavailable):
                    raise failure from None
            else:
                return
            finally:
                call.cancel()
        raise failure

    async def take(self, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> ImageRef:
        """Hand an image in. Raises NotFound where none waits for it, InvalidRequest, TooMuch, Unavailable.

        Another server is asked only as long as no byte was taken from the chunks: who offers them offers them once.
        """
        failure: FabricError = Unavailable("no API server is configured to hand images to")
        has_begun = False

        async def requests() -> AsyncGenerator[blob_service_pb2.TakeImageRequest, None]:
            nonlocal has_begun
            header = blob_service_pb2.OfferedImage(
                image_id=offer.image_id,
                instance_id=offer.instance_id,
                sha256=offer.sha256,
                size_bytes=offer.size_bytes,
                virtual_size_bytes=offer.virtual_size_bytes,
            )
            yield blob_service_pb2.TakeImageRequest(header=header)
            async for chunk in chunks:
                has_begun = True
                yield blob_service_pb2.TakeImageRequest(data=chunk)

        for each in self._from_any():
            try:
                # A server that is away shows before the first byte: the header is written to a connection that stands.
                taken = await send_all(blob_service_pb2_grpc.BlobServiceStub(each).TakeImage(), requests())
            except Unavailable as away:
                failure = away
                if has_begun:
                    break
            else:
                return ImageRef(
                    id=taken.id,
                    name=taken.name,
                    format=ImageFormat(taken.format),
                    sha256=taken.sha256,
                    size_bytes=taken.size_bytes,
                    virtual_size_bytes=taken.virtual_size_bytes,
                )
        raise failure

    async def close(self) -> None:
        """Let go of the connections."""
        for each in self._channels:
            await each.close()
