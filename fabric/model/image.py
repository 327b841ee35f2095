"""Images: what a guest's disk starts as, and the properties that say where it can run."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class ImageFormat(enum.IntEnum):
    """Formats that are accepted at all; everything else is refused at the door (security.md, malicious image)."""

    UNSPECIFIED = 0
    RAW = 1
    QCOW2 = 2
    KERNEL = 3
    RAMDISK = 4


class ImageState(enum.IntEnum):
    """QUEUED: no bytes yet. SAVING: being uploaded. ACTIVE: verified, usable, immutable. ERROR: refused, reason recorded."""

    UNSPECIFIED = 0
    QUEUED = 1
    SAVING = 2
    ACTIVE = 3
    ERROR = 4


class Visibility(enum.IntEnum):
    """PRIVATE: the owner project's. PUBLIC: everybody's to use."""

    UNSPECIFIED = 0
    PRIVATE = 1
    PUBLIC = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image's record. Bytes are in the blob store, under `sha256`.

    `properties` understands `hw_architecture`, `hw_firmware_type` (bios | uefi), `os_secure_boot` (required | optional | disabled) and
    `trait:NAME` = `required`, as the ImagePropertiesFilter of the reference does. A `hidden` one serves a move of a server, and is in no
    list.
    """

    id: str
    name: str
    project_id: str
    format: ImageFormat
    state: ImageState = ImageState.QUEUED
    visibility: Visibility = Visibility.PRIVATE
    size_bytes: int = 0
    virtual_size_bytes: int = 0
    sha256: str = ""
    min_disk_gib: int = 0
    min_ram_mib: int = 0
    kernel_id: str = ""
    ramdisk_id: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""
    create_time_ms: int = 0
    update_time_ms: int = 0
    hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOffer:
    """A disk that a host hands in as the image that it was told to make: a whole qcow2, and what its bytes must be."""

    image_id: str
    instance_id: str
    placement_epoch: int
    sha256: str
    size_bytes: int
    virtual_size_bytes: int
