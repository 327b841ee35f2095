"""BlobService: the bytes of images for conductors, which relay them to the hosts that need them, and from the hosts that make them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fabric.errors import InvalidRequest
from fabric.images.base import Blobs
from fabric.images.intake import Intake
from fabric.model.identity import Principal
from fabric.model.image import ImageOffer
from fabric.pb.image.v1 import blob_service_pb2 as pb


class BlobHandlers:
    """The RPCs, as functions of a request and who asks: a server of the fabric, by its certificate."""

    def __init__(self, blobs: Blobs, intake: Intake) -> None:
        self._blobs = blobs
        self._intake = intake

    async def read_blob(
        self, request: pb.ReadBlobRequest, principal: Principal
    ) -> AsyncIterator[pb.ReadBlobResponse]:
        async for piece in self._blobs.read(request.sha256, request.offset_bytes):
            yield pb.ReadBlobResponse(data=piece)

    async def take_image(
        self, requests: AsyncIterator[pb.TakeImageRequest], principal: Principal
    ) -> pb.TakeImageResponse:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("piece") != "header":
            raise InvalidRequest("the first piece must be the header", field="header")
        offer = ImageOffer(
            image_id=first.header.image_id,
            instance_id=first.header.instance_id,
            # The conductor's to have checked: here only the image waits, whoever has the instance.
            placement_epoch=0,
            sha256=first.header.sha256,
            size_bytes=first.header.size_bytes,
            virtual_size_bytes=first.header.virtual_size_bytes,
        )
        image = await self._intake.take(offer, _data(requests))
        return pb.TakeImageResponse(
            id=image.id,
            name=image.name,
            # Numbers of the two enums are the same: a test compares their names.
            format=image.format,  # type: ignore[arg-type]  # enums travel by number
            sha256=image.sha256,
            size_bytes=image.size_bytes,
            virtual_size_bytes=image.virtual_size_bytes,
        )


async def _data(requests: AsyncIterator[pb.TakeImageRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("piece") != "data":
            raise InvalidRequest("after the header come bytes, and nothing else", field="data")
        yield request.data
