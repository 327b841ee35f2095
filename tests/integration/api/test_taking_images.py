"""An image on its way from a conductor to an API server, over real gRPC: whole, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fabric.api.blobs import BlobHandlers
from fabric.clock import SystemClock
from fabric.errors import InvalidRequest, NotFound, Unavailable
from fabric.ids import RandomIds
from fabric.images.core import snapshots
from fabric.images.core.inspect import ImageLimits
from fabric.images.intake import Intake
from fabric.images.memory import MemoryBlobs
from fabric.model.image import ImageOffer
from fabric.pb.image.v1 import blob_service_pb2
from fabric.rpc import stages
from fabric.rpc.blobs import RemoteBlobs
from fabric.rpc.call import bind
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.server.pki import create_authority, save
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import IMAGE
from fabric.store.memory import MemoryStore
from hostd.images.fake_qcow2 import wrap
from tests.unit.lifecycle.records import instance

GIB = 1 << 30
NOW_MS = time.time_ns() // 1_000_000
IMAGE_ID = "00000000-0000-4000-8000-0000000000cc"
DATA = wrap(b"x" * (3 << 20), GIB)
SERVER = instance()


class Api:
    """The part of an API server that conductors see, with one image that waits."""

    def __init__(self) -> None:
        self.blobs = MemoryBlobs(SystemClock())
        self.store = MemoryStore("global")
        self.handlers = BlobHandlers(
            self.blobs,
            Intake(self.store, self.blobs, limits=ImageLimits(), clock=SystemClock(), jitter=lambda: 0.0),
        )

    async def wait_for(self, image_id: str) -> None:
        image = snapshots.queued(
            SERVER, image_id=image_id, name="made", properties={}, base=None, now_ms=NOW_MS
        )
        await self.store.commit(Txn(put={IMAGE.at(image_id): encode(image)}))


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
async def remote(api: Api, tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[RemoteBlobs]:
    authority = create_authority("test", now_ms=NOW_MS)
    names = ("127.0.0.1",)
    served = authority.issue_service("api", now_ms=NOW_MS, addresses=names)
    asking = authority.issue_service("conductor", now_ms=NOW_MS, cell="c1", addresses=names)
    server = RpcServer(
        ServerSettings(
            listen="127.0.0.1:0", tls=save(served, authority, tmp_path, "api"), client_certificates=True
        ),
        bind(blob_service_pb2.DESCRIPTOR.services_by_name["BlobService"], api.handlers),
        (
            stages.report(SystemClock(), RandomIds().new_id),
            stages.deadline,
            stages.authenticate(None),
            stages.authorize,
        ),
    )
    port = await server.start()
    # The first of them is away: that is found out before a byte was taken from the host.
    endpoints = (f"127.0.0.1:{unused_tcp_port}", f"127.0.0.1:{port}")
    made = RemoteBlobs(endpoints, save(asking, authority, tmp_path, "conductor"), jitter=lambda: 0.0)
    yield made
    await made.close()
    await server.stop()


def an_offer(data: bytes = DATA) -> ImageOffer:
    return ImageOffer(
        image_id=IMAGE_ID,
        instance_id=SERVER.id,
        placement_epoch=1,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        virtual_size_bytes=GIB,
    )


async def chunks(data: bytes = DATA, *, breaks: bool = False) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]
        if breaks:
            await asyncio.sleep(0.1)
            raise InvalidRequest("the host sent too much", field="data")


async def test_an_image_that_waits_is_taken_and_described(api: Api, remote: RemoteBlobs) -> None:
    await api.wait_for(IMAGE_ID)

    taken = await remote.take(an_offer(), chunks())
    again = await remote.take(an_offer(), chunks())

    assert taken == again
    assert (taken.id, taken.sha256, taken.virtual_size_bytes) == (IMAGE_ID, an_offer().sha256, GIB)
    assert b"".join([piece async for piece in remote.read(taken.sha256, 0)]) == DATA


async def test_without_an_image_that_waits_nothing_is_kept(api: Api, remote: RemoteBlobs) -> None:
    with pytest.raises(NotFound):
        await remote.take(an_offer(), chunks())

    assert await api.blobs.list() == ()


async def test_what_breaks_on_the_way_is_not_kept(api: Api, remote: RemoteBlobs) -> None:
    await api.wait_for(IMAGE_ID)

    with pytest.raises(InvalidRequest, match="too much"):
        await remote.take(an_offer(), chunks(breaks=True))
    async with asyncio.timeout(10):
        while api.blobs.uploads:
            await asyncio.sleep(0.01)

    assert await api.blobs.list() == ()


async def test_with_no_server_to_ask_nothing_is_taken_from_the_host(unused_tcp_port: int) -> None:
    away = RemoteBlobs((f"127.0.0.1:{unused_tcp_port}",), None, jitter=lambda: 0.0)

    with pytest.raises(Unavailable):
        await away.take(an_offer(), chunks())
    await away.close()
