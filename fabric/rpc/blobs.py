"""Image bytes from the API servers' internal port, for a conductor that relays them to its hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio

from fabric.errors import FabricError, Unavailable
from fabric.pb.image.v1 import blob_service_pb2, blob_service_pb2_grpc
from fabric.rpc.channel import channel
from fabric.rpc.status import DETAILS_KEY, from_status
from fabric.rpc.tls import TlsFiles


class RemoteBlobs:
    """Asks one API server after the other until one answers. Belongs to the event loop it is first used on."""

    def __init__(self, endpoints: Sequence[str], tls: TlsFiles | None) -> None:
        self._channels = tuple(channel(endpoint, tls) for endpoint in endpoints)

    async def read(self, sha256: str, offset_bytes: int) -> AsyncIterator[bytes]:
        """A blob's bytes from an offset. Raises NotFound, Unavailable.

        Another server is asked only as long as nothing was read: from then on the host goes on from where it is.
        """
        failure: FabricError = Unavailable("no API server is configured to have images from")
        for each in self._channels:
            is_begun = False
            request = blob_service_pb2.ReadBlobRequest(sha256=sha256, offset_bytes=offset_bytes)
            stub = blob_service_pb2_grpc.BlobServiceStub(each)
            call = stub.ReadBlob(request)
            try:
                async for response in call:
                    is_begun = True
                    yield response.data
            except grpc.aio.AioRpcError as raised:
                failure = _error(raised)
                if is_begun or not isinstance(failure, Unavailable):
                    raise failure from None
            else:
                return
            finally:
                call.cancel()
        raise failure

    async def close(self) -> None:
        """Let go of the connections."""
        for each in self._channels:
            await each.close()


def _error(raised: grpc.aio.AioRpcError) -> FabricError:
    details = next((value for key, value in raised.trailing_metadata() or () if key == DETAILS_KEY), b"")
    return from_status(
        raised.code().value[0], raised.details() or "", details if isinstance(details, bytes) else b""
    )
