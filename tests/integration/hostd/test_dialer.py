"""The real dialer against a real server: sessions both ways, images, refusals, and ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.clock import SystemClock
from fabric.errors import FabricError, InvalidRequest, NotFound, PermissionDenied, TooMuch, Unavailable
from fabric.ids import RandomIds
from fabric.model.image import ImageOffer
from fabric.rpc import conductor_handlers, stages
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.rpc.stream import Stream, StreamClosed
from fabric.rpc.tls import TlsFiles
from fabric.server.pki import Authority, create_authority, save
from hostd.rpc.dialer import GrpcDialer
from tests.console_doubles import NoConsoles

IMAGE_ID = "6f1c1f0e-3b0a-4f3e-9d7e-000000000001"
NOW_MS = time.time_ns() // 1_000_000


class Conductor(NoConsoles):
    """Echoes what a host says; has one image, in ten pieces, of which it may deliver only some."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.ended = asyncio.Event()
        self.cut_after: int | None = None
        self.taken: list[tuple[str, ImageOffer, bytes]] = []
        self.refuses: FabricError | None = None
        self.broken = 0

    async def upload_image(
        self, host: str, cert_serial: str, offer: ImageOffer, chunks: AsyncIterator[bytes]
    ) -> None:
        if self.refuses is not None:
            raise self.refuses
        data = b""
        try:
            async for chunk in chunks:
                data += chunk
        finally:
            # However it ends: what is not whole is not taken.
            self.broken += len(data) < offer.size_bytes
        if len(data) == offer.size_bytes:
            self.taken.append((host, offer, data))

    async def serve_host(self, host: str, cert_serial: str, stream: Stream) -> None:
        self.hosts.append(host)
        try:
            while (data := await stream.receive()) != b"end":
                await stream.send(b"heard " + data)
        except StreamClosed:
            pass
        finally:
            self.ended.set()

    async def fetch_image(
        self, host: str, cert_serial: str, image_id: str, offset_bytes: int
    ) -> AsyncIterator[bytes]:
        if image_id != IMAGE_ID:
            raise NotFound("there is no such image")
        for number in range(offset_bytes // 4, 10):
            if number == self.cut_after:
                raise Unavailable("the image's store is away")
            yield f"<{number:02}>".encode()

    async def read_console_log(
        self, host: str, instance_id: str, placement_epoch: int, tail_bytes: int
    ) -> bytes:
        return b""

    def read_progress(self, instance_ids: object) -> dict[str, str]:
        return {}


@pytest.fixture
def authority() -> Authority:
    return create_authority("test", now_ms=NOW_MS)


@pytest.fixture
def conductor() -> Conductor:
    return Conductor()


@pytest.fixture
async def endpoint(authority: Authority, conductor: Conductor, tmp_path: Path) -> AsyncIterator[str]:
    issued = authority.issue_service("conductor", now_ms=NOW_MS, cell="c1", addresses=("127.0.0.1",))
    files = save(issued, authority, tmp_path, "conductor")
    made = RpcServer(
        ServerSettings(listen="127.0.0.1:0", tls=files, client_certificates=True),
        conductor_handlers.bound(conductor, "c1"),
        (
            stages.report(SystemClock(), RandomIds().new_id),
            stages.deadline,
            stages.authenticate(None),
            stages.authorize,
        ),
    )
    yield f"127.0.0.1:{await made.start()}"
    await made.stop()


def host_files(authority: Authority, folder: Path, *, cell: str = "c1") -> TlsFiles:
    return save(authority.issue_host(cell, "h1", now_ms=NOW_MS), authority, folder, f"host-{cell}")


@pytest.fixture
async def dialer(authority: Authority, tmp_path: Path) -> AsyncIterator[GrpcDialer]:
    made = GrpcDialer(host_files(authority, tmp_path))
    yield made
    await made.close()


async def test_messages_travel_both_ways_under_the_name_of_the_certificate(
    endpoint: str, dialer: GrpcDialer, conductor: Conductor
) -> None:
    stream = await dialer.dial(endpoint)
    for message in (b"one", b"", b"\xff" * 100_000):
        await stream.send(message)
        assert await stream.receive() == b"heard " + message

    assert conductor.hosts == ["h1"]
    await stream.close()


async def test_an_end_by_the_conductor_is_an_end_of_the_stream(endpoint: str, dialer: GrpcDialer) -> None:
    stream = await dialer.dial(endpoint)
    await stream.send(b"end")

    with pytest.raises(StreamClosed):
        await stream.receive()
    with pytest.raises(StreamClosed):
        await stream.send(b"more")


async def test_an_end_by_the_host_reaches_the_conductor(
    endpoint: str, dialer: GrpcDialer, conductor: Conductor
) -> None:
    stream = await dialer.dial(endpoint)
    await stream.send(b"one")
    await stream.receive()
    receiving = asyncio.create_task(stream.receive())
    await asyncio.sleep(0)
    await stream.close()

    with pytest.raises(StreamClosed):
        await receiving
    await asyncio.wait_for(conductor.ended.wait(), 10)


async def test_a_host_of_another_cell_gets_no_session(
    endpoint: str, authority: Authority, tmp_path: Path, conductor: Conductor
) -> None:
    dialer = GrpcDialer(host_files(authority, tmp_path, cell="c2"))
    stream = await dialer.dial(endpoint)

    with pytest.raises(StreamClosed, match="PERMISSION_DENIED"):
        await stream.receive()
    assert conductor.hosts == []
    with pytest.raises(PermissionDenied):
        [piece async for piece in dialer.fetch_image(endpoint, IMAGE_ID, 0)]
    await dialer.close()


async def test_an_image_comes_from_an_offset_on(endpoint: str, dialer: GrpcDialer) -> None:
    await dialer.dial(endpoint)

    pieces = [piece async for piece in dialer.fetch_image(endpoint, IMAGE_ID, 28)]

    assert pieces == [b"<07>", b"<08>", b"<09>"]


async def test_a_transfer_that_breaks_delivers_what_came_and_then_says_so(
    endpoint: str, dialer: GrpcDialer, conductor: Conductor
) -> None:
    conductor.cut_after = 2
    await dialer.dial(endpoint)
    pieces: list[bytes] = []

    async def collect() -> None:
        async for piece in dialer.fetch_image(endpoint, IMAGE_ID, 0):
            pieces.append(piece)  # noqa: PERF401 - what came before the error is the claim

    with pytest.raises(Unavailable):
        await collect()
    assert pieces == [b"<00>", b"<01>"]


def an_offer(size_bytes: int) -> ImageOffer:
    return ImageOffer(
        image_id=IMAGE_ID,
        instance_id=IMAGE_ID,
        placement_epoch=3,
        sha256="0" * 64,
        size_bytes=size_bytes,
        virtual_size_bytes=1 << 20,
    )


async def chunks_of(data: bytes, *, breaks_after: int | None = None) -> AsyncIterator[bytes]:
    for number, start in enumerate(range(0, len(data), 1 << 20)):
        if number == breaks_after:
            # What was sent before has come.
            await asyncio.sleep(0.2)
            raise OSError("the disk is gone")
        yield data[start : start + (1 << 20)]


async def test_an_image_is_handed_in_whole_under_the_name_of_the_certificate(
    endpoint: str, dialer: GrpcDialer, conductor: Conductor
) -> None:
    await dialer.dial(endpoint)
    data = bytes(range(256)) * 20_000

    await dialer.upload_image(endpoint, an_offer(len(data)), chunks_of(data))

    assert conductor.taken == [("h1", an_offer(len(data)), data)]


@pytest.mark.parametrize("refusal", [NotFound("nobody wants it"), TooMuch("too large")])
async def test_a_refusal_is_heard_before_everything_is_sent(
    endpoint: str, dialer: GrpcDialer, conductor: Conductor, refusal: FabricError
) -> None:
    conductor.refuses = refusal
    await dialer.dial(endpoint)
    data = bytes(64 << 20)

    with pytest.raises(type(refusal)):
        await dialer.upload_image(endpoint, an_offer(len(data)), chunks_of(data))


async def test_an_upload_that_its_host_breaks_off_is_not_taken(
    endpoint: str, dialer: GrpcDialer, conductor: Conductor
) -> None:
    await dialer.dial(endpoint)
    data = bytes(5 << 20)

    with pytest.raises(OSError, match="the disk is gone"):
        await dialer.upload_image(endpoint, an_offer(len(data)), chunks_of(data, breaks_after=3))
    async with asyncio.timeout(10):
        while not conductor.broken:
            await asyncio.sleep(0.01)
    assert conductor.taken == []


async def test_a_header_that_is_no_offer_is_refused(endpoint: str, dialer: GrpcDialer) -> None:
    await dialer.dial(endpoint)

    with pytest.raises(InvalidRequest):
        await dialer.upload_image(endpoint, replace(an_offer(1), sha256="../../etc"), chunks_of(b"1"))


async def test_an_image_that_is_not_ours_is_an_error_of_its_own(endpoint: str, dialer: GrpcDialer) -> None:
    await dialer.dial(endpoint)

    with pytest.raises(NotFound):
        [piece async for piece in dialer.fetch_image(endpoint, IMAGE_ID.replace("1", "2"), 0)]


async def test_a_conductor_that_is_not_there_is_unavailable(
    dialer: GrpcDialer, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Five seconds of patience are for networks; loopback needs none.
    monkeypatch.setattr("hostd.rpc.dialer.CONNECT_S", 0.3)

    with pytest.raises(Unavailable):
        await dialer.dial(f"127.0.0.1:{unused_tcp_port}")
    with pytest.raises(Unavailable):
        [piece async for piece in dialer.fetch_image("127.0.0.1:1", IMAGE_ID, 0)]
