"""The header of a qcow2 image, read by ourselves before any other program may open the file. Pure.

A qcow2 may name files that whoever opens it opens too: a backing file, an external data file (CVE-2024-32498). Layout: QEMU,
docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

HEADER_BYTES: Final = 104
_MAGIC: Final = b"QFI\xfb"
_INCOMPATIBLE_DIRTY: Final = 1 << 0
_INCOMPATIBLE_COMPRESSION: Final = 1 << 3
_HARMLESS: Final = _INCOMPATIBLE_DIRTY | _INCOMPATIBLE_COMPRESSION


class UnsafeImage(Exception):
    """The image is not a self-contained qcow2; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2:
    """What we need to know of an image that is safe to open."""

    version: int
    virtual_size_bytes: int


def inspect(header: bytes) -> Qcow2:
    """Read the file's first `HEADER_BYTES`. Raises UnsafeImage for whatever is not a plain image by itself."""
    if len(header) < 72 or not header.startswith(_MAGIC):
        raise UnsafeImage("it is not a qcow2 image")
    version, backing_offset = struct.unpack_from(">IQ", header, 4)
    cluster_bits, size, encryption = struct.unpack_from(">IQI", header, 20)
    snapshots = struct.unpack_from(">I", header, 60)[0]
    if version not in {2, 3}:
        raise UnsafeImage(f"qcow2 version {version} is unknown")
    if backing_offset:
        raise UnsafeImage("it has a backing file")
    if encryption:
        raise UnsafeImage("it is encrypted")
    if snapshots:
        raise UnsafeImage("it has internal snapshots")
    if not 9 <= cluster_bits <= 21:
        raise UnsafeImage("its cluster size is out of range")
    if version == 3:
        if len(header) < HEADER_BYTES:
            raise UnsafeImage("its header is cut off")
        incompatible = struct.unpack_from(">Q", header, 72)[0]
        if incompatible & ~_HARMLESS:
            raise UnsafeImage("it needs features that are not allowed here, an external data file perhaps")
    return Qcow2(version=version, virtual_size_bytes=size)


def virtual_size(header: bytes) -> int:
    """How large a disk a qcow2 header says to be, whatever else it says. Raises UnsafeImage where it is no such header."""
    if len(header) < 32 or not header.startswith(_MAGIC):
        raise UnsafeImage("it is not a qcow2 image")
    size: int = struct.unpack_from(">Q", header, 24)[0]
    return size
