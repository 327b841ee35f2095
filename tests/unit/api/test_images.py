"""Images through their handlers: what people do with those that wait for their bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fabric.api.images import ImageHandlers
from fabric.clock import SystemClock
from fabric.errors import InvalidRequest, NotFound
from fabric.ids import RandomIds
from fabric.images.blobs import FileBlobs
from fabric.images.core.inspect import ImageLimits
from fabric.model.identity import Principal, Role
from fabric.model.image import Image, ImageFormat, ImageState
from fabric.pb.image.v1 import image_service_pb2 as pb
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import IMAGE, IMAGE_NAME
from fabric.store.memory import MemoryStore
from fabric.workers import Inline

WHO = Principal(user_id="u", project_id="p", role=Role.MEMBER)


async def test_an_image_that_waits_can_be_deleted(tmp_path: Path) -> None:
    """It has no bytes, and that they are not there was said to whoever wanted it gone: the image of a server whose host was away stayed,
    with its name, for as long.
    """
    store = MemoryStore()
    clock, ids = SystemClock(), RandomIds()
    blobs = FileBlobs(tmp_path, workers=Inline(), clock=clock, ids=ids, total_bytes=1, uploads=1)
    handlers = ImageHandlers(store, blobs, limits=ImageLimits(), clock=clock, ids=ids, jitter=lambda: 0.5)
    waiting = Image(
        id=ids.new_id(), name="golden", project_id="p", format=ImageFormat.QCOW2, state=ImageState.QUEUED
    )
    name_key = IMAGE_NAME.at("p", "golden")
    await store.commit(Txn(put={IMAGE.at(waiting.id): encode(waiting), name_key: encode(waiting.id)}))

    await handlers.delete_image(pb.DeleteImageRequest(request_id="r", image="golden"), WHO)

    assert name_key not in (await store.get(name_key)).entries
    with pytest.raises(NotFound):
        await handlers.get_image(pb.GetImageRequest(image=waiting.id), WHO)


async def header_only(**properties: str) -> AsyncIterator[pb.CreateImageRequest]:
    image = pb.Image(name="golden", format=pb.IMAGE_FORMAT_RAW, sha256="ab" * 32, properties=properties)
    yield pb.CreateImageRequest(header=pb.ImageHeader(request_id="r", image=image))


async def test_an_image_that_insists_on_secure_boot_is_one_for_uefi(tmp_path: Path) -> None:
    """It was taken, and its servers booted by BIOS: nothing enforced what it said."""
    store = MemoryStore()
    clock, ids = SystemClock(), RandomIds()
    blobs = FileBlobs(tmp_path, workers=Inline(), clock=clock, ids=ids, total_bytes=1, uploads=1)
    handlers = ImageHandlers(store, blobs, limits=ImageLimits(), clock=clock, ids=ids, jitter=lambda: 0.5)

    with pytest.raises(InvalidRequest, match="hw_firmware_type") as refused:
        await handlers.create_image(header_only(os_secure_boot="required"), WHO)

    assert refused.value.field == "image.properties[os_secure_boot]"
