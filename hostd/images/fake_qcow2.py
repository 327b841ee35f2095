"""Images that simulated disks become: real qcow2 headers around what a simulated guest has written, so that the real checks see them."""

from __future__ import annotations

import struct
from typing import Final

_MAGIC: Final = b"QFI\xfb"
_CLUSTER_BITS: Final = 12
_CLUSTER: Final = 1 << _CLUSTER_BITS
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_LENGTH: Final = struct.Struct(">Q")


def wrap(written: bytes, virtual_size_bytes: int) -> bytes:
    """A qcow2 image (version 2) of a disk of this size. What was written stands behind its tables, where no other reader looks."""
    l1_entries = max(1, -(-virtual_size_bytes // (_CLUSTER * _CLUSTER // 8)))
    l1_clusters = -(-l1_entries * 8 // _CLUSTER)
    header = _HEADER.pack(
        _MAGIC, 2, 0, 0, _CLUSTER_BITS, virtual_size_bytes, 0, l1_entries, 2 * _CLUSTER, _CLUSTER, 1, 0, 0
    )
    # Header, reference counts, L1 table; behind the header no extension.
    tables = header.ljust((2 + l1_clusters) * _CLUSTER, b"\0")
    return tables + _LENGTH.pack(len(written)) + written


def unwrap(image: bytes) -> bytes:
    """What was written to the disk that `wrap` made this image of; nothing, for any other image."""
    if len(image) < _HEADER.size or not image.startswith(_MAGIC):
        return b""
    l1_entries = _HEADER.unpack_from(image)[7]
    begin = (2 + -(-l1_entries * 8 // _CLUSTER)) * _CLUSTER
    if len(image) < begin + _LENGTH.size:
        return b""
    (length,) = _LENGTH.unpack_from(image, begin)
    return image[begin + _LENGTH.size :][:length]
