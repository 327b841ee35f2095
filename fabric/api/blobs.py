"""BlobService: the bytes of images for conductors, which relay them to the hosts that need them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fabric.images.base import Blobs
from fabric.model.identity import Principal
from fabric.pb.image.v1 import blob_service_pb2 as pb


class BlobHandlers:
    """The RPCs, as functions of a request and who asks: a server of the fabric, by its certificate."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def read_blob(
        self, request: pb.ReadBlobRequest, principal: Principal
    ) -> AsyncIterator[pb.ReadBlobResponse]:
        async for piece in self._blobs.read(request.sha256, request.offset_bytes):
            yield pb.ReadBlobResponse(data=piece)
