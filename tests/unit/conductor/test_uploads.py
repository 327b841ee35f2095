"""A host hands in the disk of an instance on it, as the image that the latest action names, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from fabric.conductor.core import uploads
from fabric.conductor.service import ConductorService
from fabric.errors import FabricError, InvalidRequest, NotFound, PermissionDenied, TooMuch, Unavailable
from fabric.lifecycle.core import begin, failed
from fabric.model.image import ImageFormat, ImageOffer
from fabric.model.instance import Fault, ImageRef, Instance
from fabric.model.states import Action, TaskState, VmState
from tests.unit.conductor.worlds import SERIAL, World, instance_id, run

IMAGE = "00000000-0000-4000-8000-0000000000bb"
DATA = b"a disk" * 100
GIB = 1 << 30


def offer(**facts: Any) -> ImageOffer:
    made = ImageOffer(
        image_id=IMAGE,
        instance_id=instance_id(1),
        placement_epoch=1,
        sha256="0" * 64,
        size_bytes=len(DATA),
        virtual_size_bytes=GIB,
    )
    return replace(made, **facts)


async def chunks(data: bytes = DATA, *, size: int = 64) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@dataclass
class Sink:
    """The API servers: keeps what comes whole."""

    taken: list[bytes] = field(default_factory=list)
    away: bool = False

    async def take(self, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> ImageRef:
        data = b"".join([chunk async for chunk in chunks])
        if self.away:
            raise Unavailable("no API server answers")
        self.taken.append(data)
        return ImageRef(
            id=offer.image_id,
            name="made",
            format=ImageFormat.QCOW2,
            sha256=offer.sha256,
            size_bytes=offer.size_bytes,
            virtual_size_bytes=offer.virtual_size_bytes,
        )


async def asked(cell: World, *, number: int = 1, host: str = "h1") -> Instance:
    """A running server whose disk is wanted as an image."""
    placed = await cell.place(number, host, vm_state=VmState.ACTIVE, task=TaskState.NONE, task_deadline_ms=0)
    now = begin(placed, Action.CREATE_IMAGE, now_ms=cell.clock.now_ms(), op_id="asked", image_id=IMAGE)
    await cell.intend(now)
    return now


async def a_cell(cell: World) -> tuple[Sink, ConductorService]:
    service = await cell.conductor()
    sink = Sink()
    service._uploads._images = sink
    await cell.approve("h1")
    await cell.approve("h2", cert_serial="another")
    return sink, service


def test_an_image_that_is_wanted_is_taken_once_and_noted_on_the_record() -> None:
    async def world() -> None:
        async with World() as cell:
            sink, service = await a_cell(cell)
            await asked(cell)

            for _ in range(2):
                await service.upload_image("h1", SERIAL, offer(), chunks())

            assert sink.taken == [DATA]
            uploaded = (await cell.instance(1)).uploaded
            assert uploaded is not None
            assert uploaded.id == IMAGE

    run(world)


@pytest.mark.parametrize(
    ("host", "serial", "forged", "refusal"),
    [
        ("h2", "another", offer(), NotFound),
        ("h1", "stolen", offer(), PermissionDenied),
        ("h3", SERIAL, offer(), PermissionDenied),
        ("h1", SERIAL, offer(image_id=instance_id(7)), NotFound),
        ("h1", SERIAL, offer(instance_id=instance_id(2)), NotFound),
        ("h1", SERIAL, offer(placement_epoch=2), NotFound),
        ("h1", SERIAL, offer(virtual_size_bytes=GIB + 1), TooMuch),
        ("h1", SERIAL, offer(size_bytes=2 * GIB), TooMuch),
        ("h1", SERIAL, offer(size_bytes=len(DATA) - 1), InvalidRequest),
        ("h1", SERIAL, offer(size_bytes=len(DATA) + 1), InvalidRequest),
    ],
)
def test_nothing_else_is_taken(
    host: str, serial: str, forged: ImageOffer, refusal: type[FabricError]
) -> None:
    async def world() -> None:
        async with World() as cell:
            sink, service = await a_cell(cell)
            await asked(cell)
            before = await cell.everything()

            with pytest.raises(refusal):
                await service.upload_image(host, serial, forged, chunks())

            assert sink.taken == []
            assert await cell.everything() == before

    run(world)


def test_an_action_that_is_over_takes_no_image() -> None:
    async def world() -> None:
        async with World() as cell:
            sink, service = await a_cell(cell)
            now = await asked(cell)
            overdue = failed(now, Fault(code="TASK_TIMEOUT", message="late"), now_ms=0, op_id="over")
            await cell.intend(overdue)

            with pytest.raises(NotFound):
                await service.upload_image("h1", SERIAL, offer(), chunks())
            assert sink.taken == []

    run(world)


def test_a_host_sends_no_faster_than_it_may() -> None:
    async def world() -> None:
        async with World() as cell:
            _, service = await a_cell(cell)
            await asked(cell)
            service._uploads._bytes_per_s = 100.0
            began_s = asyncio.get_running_loop().time()

            await service.upload_image("h1", SERIAL, offer(), chunks())

            assert asyncio.get_running_loop().time() - began_s >= len(DATA) / 100.0

    run(world)


def test_with_the_api_away_nothing_is_noted() -> None:
    async def world() -> None:
        async with World() as cell:
            sink, service = await a_cell(cell)
            sink.away = True
            await asked(cell)

            with pytest.raises(Unavailable):
                await service.upload_image("h1", SERIAL, offer(), chunks())

            assert (await cell.instance(1)).uploaded is None

    run(world)


def test_the_tables_of_the_fullest_image_fit() -> None:
    """qcow2 with clusters of 64 KiB: eight bytes in an L2 table and two of reference count for each."""
    for disk_gib in (1, 100, 4096):
        clusters = disk_gib * GIB // 65536
        fullest = disk_gib * GIB + clusters * 10 + 4 * 65536
        most = disk_gib * GIB + disk_gib * GIB // uploads._TABLES_SHARE + uploads._TABLES_BYTES

        assert fullest <= most
