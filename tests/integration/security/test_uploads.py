"""Images that lie, and uploads that end too early, sent to a whole API server: nothing becomes an image, and nothing is left."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import grpc.aio
import pytest

from fabric.errors import InvalidRequest, Reason, TooMuch
from fabric.pb.image.v1 import image_service_pb2 as pb
from tests.integration.api.front_door import PATIENCE_S, FrontDoor
from tests.unit.images.evil_images import EVIL, disk

SERVICE = "fabric.image.v1.ImageService"
PATH = f"/{SERVICE}/CreateImage"
PIECE = 600 * 512
"""Whole sectors: the part that arrives is a disk as good as the whole."""


def header(
    name: str, data: bytes, *, declared: int = pb.IMAGE_FORMAT_RAW, sha256: str | None = None
) -> bytes:
    image = pb.Image(
        name=name,
        format=pb.ImageFormat.ValueType(declared),
        sha256=hashlib.sha256(data).hexdigest() if sha256 is None else sha256,
    )
    return pb.CreateImageRequest(
        header=pb.ImageHeader(request_id=name.encode().hex()[-64:], image=image)
    ).SerializeToString()


def pieces(data: bytes) -> list[bytes]:
    return [
        pb.CreateImageRequest(data=data[begin : begin + PIECE]).SerializeToString()
        for begin in range(0, len(data), PIECE)
    ]


async def images_of(door: FrontDoor) -> list[str]:
    answer = await door.ask(SERVICE, "ListImages", pb.ListImagesRequest(), "own member")
    return [image.name for image in pb.ListImagesResponse.FromString(answer).images]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_no_image_of_the_evil_corpus_gets_in(door: FrontDoor, tmp_path: Path) -> None:
    before = door.store.revision

    for number, (what, (declared, data)) in enumerate(EVIL.items()):
        with pytest.raises(InvalidRequest) as refused:
            await door.send(
                PATH,
                [header(f"evil-{number}", data, declared=int(declared)), *pieces(data)],
                door.tokens["own member"],
            )
        assert (refused.value.reason, refused.value.field) == (Reason.IMAGE_REJECTED, "image"), what

    assert len(EVIL) >= 40
    assert door.store.revision == before
    assert await images_of(door) == []
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("sha256", "field"),
    [("", "header.image.sha256"), ("0" * 63, "header.image.sha256"), ("0" * 64, "image.sha256")],
)
async def test_bytes_of_another_digest_or_of_none_are_refused(
    door: FrontDoor, tmp_path: Path, sha256: str, field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await door.send(
            PATH, [header("x", disk(), sha256=sha256), *pieces(disk())], door.tokens["own member"]
        )

    assert refused.value.field == field
    assert await images_of(door) == []
    assert files(tmp_path) == []


async def _send_when_there_is_room(door: FrontDoor, data: list[bytes]) -> None:
    """A project has two uploads at once: one more goes through only when those broken off have given back their place.

    That takes until the server has noticed, which is not the moment in which their caller broke them off.
    """
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await door.send(PATH, data, door.tokens["own member"])
            except TooMuch:
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_part_of_an_image_never_becomes_one(door: FrontDoor, tmp_path: Path) -> None:
    """The part is a good disk itself, and a server may be told that the upload is over when it was only broken off (measured)."""
    metadata = (("authorization", f"Bearer {door.tokens['own member']}"),)
    upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = door.wire.stream_unary(PATH)
    for number in range(60):
        name = f"half-{number}"
        call = upload(metadata=metadata, timeout=10)
        await call.write(header(name, disk()))
        await call.write(pieces(disk())[0])
        await asyncio.sleep(0.0005 * (number % 10))
        call.cancel()
    with pytest.raises(InvalidRequest):
        await _send_when_there_is_room(door, [header("ended", disk()), pieces(disk())[0]])
    await _send_when_there_is_room(door, [header("whole", disk()), *pieces(disk())])
    async with asyncio.timeout(PATIENCE_S):
        while any(path.parent.name == "partial" for path in files(tmp_path)):
            await asyncio.sleep(0.05)

    assert await images_of(door) == ["whole"]
    assert [path.name for path in files(tmp_path)] == [hashlib.sha256(disk()).hexdigest()]
