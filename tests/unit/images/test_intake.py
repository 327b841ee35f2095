"""Bytes for an image that waits, and what becomes of images that wait in vain."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from fabric.errors import FabricError, InvalidRequest, NotFound, TooMuch
from fabric.images.core import snapshots
from fabric.images.core.inspect import ImageLimits
from fabric.images.intake import Intake
from fabric.images.memory import MemoryBlobs
from fabric.lifecycle.core import begin
from fabric.model.image import Image, ImageFormat, ImageOffer, ImageState
from fabric.model.instance import ActionMark, ImageRef, Instance, OneShot
from fabric.model.states import Action, TaskState, VmState
from fabric.store.base import Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import IMAGE, IMAGE_NAME
from fabric.store.memory import MemoryStore
from hostd.images.fake_qcow2 import wrap
from tests.unit.lifecycle.records import instance

GIB = 1 << 30
DATA = wrap(b"what a guest has written", GIB)


class Clock:
    def now_ms(self) -> int:
        return 1_700_000_000_000

    def boot_s(self) -> float:
        return 1.0


SERVER = instance()


def waiting(number: int = 1, **properties: str) -> Image:
    return snapshots.queued(
        SERVER,
        image_id=f"00000000-0000-4000-8000-{number:012d}",
        name=f"image-{number}",
        properties=properties,
        base=None,
        now_ms=number,
    )


def offer(image: Image, data: bytes = DATA, **facts: Any) -> ImageOffer:
    made = ImageOffer(
        image_id=image.id,
        instance_id=SERVER.id,
        placement_epoch=0,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        virtual_size_bytes=GIB,
    )
    return replace(made, **facts)


async def pieces(data: bytes = DATA) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


class Shop:
    """A store with images, and an intake."""

    def __init__(self, limits: ImageLimits | None = None) -> None:
        self.store = MemoryStore("global")
        self.blobs = MemoryBlobs(Clock())
        self.intake = Intake(
            self.store, self.blobs, limits=limits or ImageLimits(), clock=Clock(), jitter=lambda: 0.0
        )

    async def put(self, *images: Image) -> None:
        put = {IMAGE.at(image.id): encode(image) for image in images}
        names = {IMAGE_NAME.at(image.project_id, image.name): encode(image.id) for image in images}
        await self.store.commit(Txn(put=put | names))

    async def all(self) -> dict[str, Image]:
        listed = await self.store.list(IMAGE.under())
        return {image.id: image for image in (decode(Image, each.value) for each in listed.entries.values())}


async def test_an_image_that_waits_gets_its_bytes_and_is_one_to_boot_from() -> None:
    shop, image = Shop(), waiting()
    await shop.put(image)

    taken = await shop.intake.take(offer(image), pieces())

    assert (taken.state, taken.min_disk_gib) == (ImageState.ACTIVE, 1)
    assert (await shop.all())[image.id] == taken
    assert b"".join([piece async for piece in shop.blobs.read(taken.sha256)]) == DATA


async def test_the_first_bytes_that_come_are_the_image() -> None:
    shop, image = Shop(), waiting()
    await shop.put(image)
    first = await shop.intake.take(offer(image), pieces())
    other = wrap(b"another instant", GIB)

    assert await shop.intake.take(offer(image, other), pieces(other)) == first


async def test_a_broken_image_keeps_no_backup_from_coming() -> None:
    """Who rotates backups reads all images, and one that did not parse refused every backup that came."""
    shop = Shop()
    backup = waiting(
        1, **{snapshots.KIND: snapshots.BACKUP, snapshots.BACKUP_TYPE: "daily", snapshots.ROTATION: "1"}
    )
    await shop.put(backup)
    await shop.store.commit(Txn(put={IMAGE.at("broken"): b"\xff"}))

    assert (await shop.intake.take(offer(backup), pieces())).state is ImageState.ACTIVE


@pytest.mark.parametrize(
    ("facts", "data", "refusal"),
    [
        ({"image_id": "00000000-0000-4000-8000-000000000099"}, DATA, NotFound),
        ({"instance_id": "00000000-0000-4000-8000-000000000099"}, DATA, NotFound),
        ({}, DATA[:-1], InvalidRequest),
        ({"virtual_size_bytes": 2 * GIB}, DATA, InvalidRequest),
        ({"size_bytes": 3}, DATA, InvalidRequest),
        ({"sha256": hashlib.sha256(b"#!/bin/sh").hexdigest()}, b"#!/bin/sh", InvalidRequest),
    ],
)
async def test_nothing_but_what_was_offered_and_is_an_image_is_taken(
    facts: dict[str, Any], data: bytes, refusal: type[FabricError]
) -> None:
    shop, image = Shop(), waiting()
    await shop.put(image)

    with pytest.raises(refusal):
        await shop.intake.take(replace(offer(image), **facts), pieces(data))

    assert (await shop.all())[image.id] == image
    assert (await shop.blobs.list(), shop.blobs.uploads) == ((), 0)


async def test_an_image_over_the_limits_is_refused_on_its_way() -> None:
    shop, image = Shop(ImageLimits(max_bytes=2000)), waiting()
    await shop.put(image)

    with pytest.raises(TooMuch):
        await shop.intake.take(offer(image), pieces())


async def test_a_backup_that_has_come_lets_the_oldest_of_its_kind_go() -> None:
    shop = Shop()
    kept = {snapshots.KIND: snapshots.BACKUP, snapshots.ROTATION: "2"}
    old = [
        replace(waiting(number, **kept, backup_type=kind), state=ImageState.ACTIVE, sha256=f"{number:064d}")
        for number, kind in ((1, "daily"), (2, "daily"), (3, "weekly"), (4, "daily"))
    ]
    latest = waiting(5, **kept, backup_type="daily")
    await shop.put(*old, latest)

    await shop.intake.take(offer(latest), pieces())

    assert sorted(image.name for image in (await shop.all()).values()) == ["image-3", "image-4", "image-5"]
    names = await shop.store.list(IMAGE_NAME.under())
    assert len(names.entries) == 3


async def test_two_that_bring_the_same_image_at_once_leave_one() -> None:
    shop, image = Shop(), waiting()
    await shop.put(image)

    first, second = await asyncio.gather(*(shop.intake.take(offer(image), pieces()) for _ in range(2)))

    assert first == second


# ------------------------------------------------------------ values


def test_what_says_where_it_can_run_is_inherited_and_what_is_ours_cannot_be_said_otherwise() -> None:
    made_of = SERVER.request.guest.image
    assert made_of is not None
    base = Image(
        id=made_of.id,
        name="base",
        project_id="p",
        format=ImageFormat.QCOW2,
        min_ram_mib=64,
        properties={"hw_firmware_type": "uefi", "trait:FAST": "required", "note": "theirs"},
    )

    image = snapshots.queued(
        SERVER,
        image_id="i",
        name="n",
        properties={"note": "mine", snapshots.INSTANCE: "another"},
        base=base,
        now_ms=1,
    )

    assert image.properties["hw_firmware_type"] == "uefi"
    assert image.properties["trait:FAST"] == "required"
    assert image.properties["note"] == "mine"
    assert image.properties[snapshots.INSTANCE] == SERVER.id
    assert image.min_ram_mib == 64
    assert image.project_id == SERVER.request.guest.project_id


def under_way(image: Image, **facts: Any) -> Instance:
    active = replace(SERVER, vm_state=VmState.ACTIVE, task=TaskState.NONE, host="h1", placement_epoch=1)
    begun = begin(active, Action.CREATE_IMAGE, now_ms=1, op_id="o", image_id=image.id)
    return replace(begun, **facts)


@pytest.mark.parametrize(
    ("server", "after_ms", "is_given_up"),
    [
        (under_way(waiting()), 10**9, False),
        (under_way(waiting(), task=TaskState.NONE), 0, True),
        (under_way(waiting(), observed_action=1), 0, True),
        (
            under_way(waiting(), action=ActionMark(seq=2, kind=OneShot.SNAPSHOT, image_id="newer")),
            10**9,
            True,
        ),
        (under_way(waiting(), action=ActionMark()), 1000, False),
        (None, 1000, False),
        (None, snapshots.BEGUN_WITHIN_MS + 10, True),
    ],
)
def test_an_image_waits_as_long_as_its_action_may_still_bring_it(
    server: Instance | None, after_ms: int, is_given_up: bool
) -> None:
    assert snapshots.is_given_up(waiting(), server, now_ms=1 + after_ms) is is_given_up


def test_an_image_whose_bytes_are_noted_is_not_given_up() -> None:
    image = waiting()
    noted = ImageRef(
        id=image.id, name="", format=ImageFormat.QCOW2, sha256="", size_bytes=1, virtual_size_bytes=1
    )

    assert not snapshots.is_given_up(
        image, under_way(image, task=TaskState.NONE, uploaded=noted), now_ms=10**9
    )
