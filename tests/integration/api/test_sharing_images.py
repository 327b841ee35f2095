"""Which API server a conductor has images from, and hands them to: any of them, over real gRPC."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fabric.clock import SystemClock
from fabric.errors import Unavailable
from fabric.ids import RandomIds
from fabric.model.identity import Principal
from fabric.model.image import ImageOffer
from fabric.pb.image.v1 import blob_service_pb2 as pb
from fabric.rpc import stages
from fabric.rpc.blobs import RemoteBlobs
from fabric.rpc.call import bind
from fabric.rpc.server import RpcServer, ServerSettings

SHA256 = "0" * 64
OFFER = ImageOffer(
    image_id="00000000-0000-4000-8000-0000000000cc",
    instance_id="00000000-0000-4000-8000-000000000001",
    placement_epoch=1,
    sha256=SHA256,
    size_bytes=4,
    virtual_size_bytes=4,
)


class Api:
    """Has every image, and takes every one."""

    def __init__(self) -> None:
        self.reads = 0
        self.takes = 0

    async def read_blob(
        self, request: pb.ReadBlobRequest, principal: Principal
    ) -> AsyncIterator[pb.ReadBlobResponse]:
        self.reads += 1
        yield pb.ReadBlobResponse(data=b"data")

    async def take_image(
        self, requests: AsyncIterator[pb.TakeImageRequest], principal: Principal
    ) -> pb.TakeImageResponse:
        self.takes += 1
        async for _ in requests:
            pass
        return pb.TakeImageResponse(id=OFFER.image_id, sha256=SHA256)


@asynccontextmanager
async def served(*apis: Api) -> AsyncGenerator[list[str]]:
    servers = [
        RpcServer(
            ServerSettings(listen="127.0.0.1:0", drain_s=0.1),
            bind(pb.DESCRIPTOR.services_by_name["BlobService"], each),
            (stages.report(SystemClock(), RandomIds().new_id),),
        )
        for each in apis
    ]
    try:
        yield [f"127.0.0.1:{await each.start()}" for each in servers]
    finally:
        for each in servers:
            await each.stop()


async def read(blobs: RemoteBlobs) -> bytes:
    return b"".join([piece async for piece in blobs.read(SHA256, 0)])


async def some_bytes() -> AsyncIterator[bytes]:
    yield b"data"


async def test_all_api_servers_carry_images() -> None:
    """The first that was configured was always asked first: it carried all bytes of all images, and the others were there for when it was
    away.
    """
    apis = Api(), Api(), Api()
    turns = itertools.cycle((0.0, 0.5, 0.99))
    async with served(*apis) as endpoints:
        blobs = RemoteBlobs(endpoints, None, jitter=lambda: next(turns))
        for _ in range(6):
            assert await read(blobs) == b"data"
        for _ in range(3):
            await blobs.take(OFFER, some_bytes())
        await blobs.close()

    assert [(each.reads, each.takes) for each in apis] == [(2, 1)] * 3


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.99])
async def test_whichever_is_first_the_one_that_is_there_is_found(chance: float, unused_tcp_port: int) -> None:
    api = Api()
    async with served(api) as endpoints:
        away = f"127.0.0.1:{unused_tcp_port}"
        blobs = RemoteBlobs((away, *endpoints, away), None, jitter=lambda: chance)
        assert await read(blobs) == b"data"
        await blobs.take(OFFER, some_bytes())
        await blobs.close()

    assert (api.reads, api.takes) == (1, 1)


async def test_with_none_configured_images_are_not_to_be_had() -> None:
    with pytest.raises(Unavailable, match="no API server is configured"):
        await read(RemoteBlobs((), None, jitter=lambda: 0.5))
