"""Images that are made of servers' disks: what is recorded before the bytes come, what becomes of it, and when nobody waits any more.

Such an image waits (QUEUED) from when the action is asked for until its bytes are in; then it is an image like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from fabric.model.image import Image, ImageFormat, ImageState, Visibility
from fabric.model.instance import Instance, OneShot
from fabric.model.states import TaskState

INSTANCE: Final = "instance_uuid"
BASE: Final = "base_image_ref"
KIND: Final = "image_type"
BACKUP_TYPE: Final = "backup_type"
ROTATION: Final = "backup_rotation"
OURS: Final = frozenset({INSTANCE, BASE, KIND, BACKUP_TYPE, ROTATION})
"""Properties that only we write on such an image; most as the reference names them."""

SNAPSHOT: Final = "snapshot"
BACKUP: Final = "backup"

_INHERITED: Final = ("hw_", "os_", "trait:")

BEGUN_WITHIN_MS: Final = 600_000
"""An image whose action has not begun so long after it was recorded was left by a crash: whoever asked would have asked again by now."""

_GIB: Final = 1 << 30


def queued(
    instance: Instance,
    *,
    image_id: str,
    name: str,
    properties: Mapping[str, str],
    base: Image | None,
    now_ms: int,
    hidden: bool = False,
) -> Image:
    """The record of an image that a snapshot of the instance is to become.

    What says where it can run comes from the image that the instance was made from (`base`, None where that is deleted), and from the
    instance itself; `properties` are added, and win but for those that are ours.
    """
    guest = instance.request.guest
    inherited = {
        "hw_firmware_type": guest.firmware,
        **({"os_secure_boot": "required"} if guest.secure_boot else {}),
        **({"hw_architecture": instance.request.architecture} if instance.request.architecture else {}),
        **({"os_command_line": guest.kernel_args} if guest.kernel_args else {}),
    }
    if base is not None:
        inherited |= {key: value for key, value in base.properties.items() if key.startswith(_INHERITED)}
    return Image(
        id=image_id,
        name=name,
        project_id=guest.project_id,
        format=ImageFormat.QCOW2,
        state=ImageState.QUEUED,
        visibility=Visibility.PRIVATE,
        min_ram_mib=base.min_ram_mib if base is not None else 0,
        kernel_id=guest.kernel.id if guest.kernel is not None else "",
        ramdisk_id=guest.ramdisk.id if guest.ramdisk is not None else "",
        properties={
            **inherited,
            KIND: SNAPSHOT,
            **properties,
            INSTANCE: instance.id,
            BASE: "" if guest.image is None else guest.image.id,
        },
        create_time_ms=now_ms,
        update_time_ms=now_ms,
        hidden=hidden,
    )


def taken(image: Image, *, sha256: str, size_bytes: int, virtual_size_bytes: int, now_ms: int) -> Image:
    """The image with its bytes in."""
    return replace(
        image,
        state=ImageState.ACTIVE,
        sha256=sha256,
        size_bytes=size_bytes,
        virtual_size_bytes=virtual_size_bytes,
        min_disk_gib=-(-virtual_size_bytes // _GIB),
        update_time_ms=now_ms,
    )


def rotated_out(latest: Image, images: Iterable[Image]) -> Sequence[Image]:
    """The backups that go when `latest` has come: the oldest of its instance and type, beyond how many are to be kept.

    Raises nothing for what people have written into properties: what is not ours to read keeps everything.
    """
    if latest.properties.get(KIND) != BACKUP or not latest.properties.get(ROTATION, "").isdecimal():
        return ()
    kept = int(latest.properties[ROTATION])
    alike = [
        image
        for image in images
        if image.id != latest.id
        and image.state is ImageState.ACTIVE
        and image.project_id == latest.project_id
        and all(
            image.properties.get(key) == latest.properties.get(key) for key in (KIND, INSTANCE, BACKUP_TYPE)
        )
    ]
    newest_first = sorted(alike, key=lambda image: (image.create_time_ms, image.id), reverse=True)
    return newest_first[max(0, kept - 1) :]


def is_given_up(image: Image, instance: Instance | None, *, now_ms: int) -> bool:
    """Whether an image that waits waits in vain: its server is gone, or its action over, or it never began."""
    if image.state is not ImageState.QUEUED or INSTANCE not in image.properties:
        return False
    if instance is not None and instance.action.image_id == image.id:
        is_under_way = (
            instance.task is not TaskState.NONE
            and instance.action.kind is OneShot.SNAPSHOT
            and instance.observed_action < instance.action.seq
        )
        has_bytes = instance.uploaded is not None and instance.uploaded.id == image.id
        return not is_under_way and not has_bytes
    return now_ms - image.create_time_ms > BEGUN_WITHIN_MS
