"""Whether a qcow2 header is one that we accept (format: QEMU's docs/interop/qcow2.rst, versions 2 and 3).

A qcow2 file can name other files: a backing file, an external data file. Either would have the host read what its sender chose
(CVE-2015-5162, CVE-2024-32498). So nothing is accepted that is not understood completely: no unknown feature, no unknown extension.
"""

from __future__ import annotations

import struct
from typing import Final

from fabric.errors import InvalidRequest, Reason

MAGIC: Final = b"QFI\xfb"

_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_3: Final = struct.Struct(">QQQII")

_CLUSTER_BITS: Final = range(9, 22)
_L1_BYTES_LIMIT: Final = 32 * 1024 * 1024
_REFCOUNT_BYTES_LIMIT: Final = 8 * 1024 * 1024

_INCOMPATIBLE: Final = {
    0: "it was not closed properly (dirty)",
    1: "it is marked corrupt",
    2: "it keeps its data in another file",
    4: "it has extended L2 entries",
}
_COMPRESSION_TYPE: Final = 1 << 3

_EXTENSION_END: Final = 0
_EXTENSION_FEATURE_NAMES: Final = 0x6803F857
_REFUSED_EXTENSIONS: Final = {
    0xE2792ACA: "it names a backing file's format",
    0x44415441: "it names an external data file",
    0x0537BE77: "it is encrypted",
    0x23852875: "it has persistent bitmaps",
}


def refuse(why: str) -> InvalidRequest:
    """The error for an image that is not accepted."""
    return InvalidRequest(f"the image is refused: {why}", field="image", reason=Reason.IMAGE_REJECTED)


def virtual_size(head: bytes, *, file_bytes: int | None, most_bytes: int) -> int:
    """How large a disk the image makes, in bytes.

    Args:
        head: the beginning of the file, at least up to the end of its header extensions.
        file_bytes: the file's whole length, once it is known: then tables outside the file are refused too.
        most_bytes: the largest disk that is accepted.

    Raises:
        InvalidRequest: it is not accepted; says why.
    """
    if len(head) < _HEADER.size:
        raise refuse("its qcow2 header is cut off")
    (
        _magic,
        version,
        backing_offset,
        backing_length,
        cluster_bits,
        size,
        crypt_method,
        l1_entries,
        l1_offset,
        refcount_offset,
        refcount_clusters,
        snapshots,
        _snapshots_offset,
    ) = _HEADER.unpack_from(head)
    if version not in (2, 3):
        raise refuse(f"its qcow2 version is {version}; 2 and 3 are accepted")
    if backing_offset or backing_length:
        raise refuse("it has a backing file")
    if crypt_method:
        raise refuse("it is encrypted")
    if snapshots:
        raise refuse("it has internal snapshots")
    if cluster_bits not in _CLUSTER_BITS:
        raise refuse(f"its cluster size of 2^{cluster_bits} bytes is not 2^9 to 2^21")
    cluster = 1 << cluster_bits
    if not 0 < size <= most_bytes:
        raise refuse(f"its disk of {size} bytes is not between 1 and {most_bytes}")
    _check_tables(
        cluster, size, l1_entries, l1_offset, refcount_offset, refcount_clusters, file_bytes=file_bytes
    )
    header_bytes = _HEADER.size if version == 2 else _version_3(head, cluster)
    _check_extensions(head, header_bytes, cluster)
    return int(size)


def _version_3(head: bytes, cluster: int) -> int:
    """Check what version 3 adds; returns the header's length."""
    if len(head) < _HEADER.size + _HEADER_3.size:
        raise refuse("its qcow2 header is cut off")
    incompatible, _compatible, _autoclear, refcount_order, header_bytes = _HEADER_3.unpack_from(
        head, _HEADER.size
    )
    for bit, why in _INCOMPATIBLE.items():
        if incompatible >> bit & 1:
            raise refuse(why)
    if incompatible & ~_COMPRESSION_TYPE:
        raise refuse("it needs a feature that we do not know")
    if refcount_order > 6:
        raise refuse("its reference counts are wider than 64 bits")
    if (
        header_bytes < _HEADER.size + _HEADER_3.size
        or header_bytes % 8
        or header_bytes > min(cluster, len(head))
    ):
        raise refuse("its header has an impossible length")
    compression = head[104] if header_bytes > 104 else 0
    if compression > 1 or bool(compression) != bool(incompatible & _COMPRESSION_TYPE):
        raise refuse("its compression is neither deflate nor zstd")
    return int(header_bytes)


def _check_tables(
    cluster: int,
    size: int,
    l1_entries: int,
    l1_offset: int,
    refcount_offset: int,
    refcount_clusters: int,
    *,
    file_bytes: int | None,
) -> None:
    by_one_l1_entry = cluster * (cluster // 8)
    needed = -(-size // by_one_l1_entry)
    if not needed <= l1_entries <= _L1_BYTES_LIMIT // 8:
        raise refuse(f"its L1 table has {l1_entries} entries; its disk needs {needed}")
    if not 0 < refcount_clusters * cluster <= max(_REFCOUNT_BYTES_LIMIT, cluster):
        raise refuse("its reference count table has an impossible size")
    tables = (
        ("L1", l1_offset, l1_entries * 8),
        ("reference count", refcount_offset, refcount_clusters * cluster),
    )
    for name, offset, length in tables:
        if offset < cluster or offset % cluster or offset >= 1 << 56:
            raise refuse(f"its {name} table is at an impossible place")
        if file_bytes is not None and offset + length > file_bytes:
            raise refuse(f"its {name} table is outside the file: it is cut off")


def _check_extensions(head: bytes, begin: int, cluster: int) -> None:
    limit = min(cluster, len(head))
    while begin + 8 <= limit:
        kind, length = struct.unpack_from(">II", head, begin)
        if kind == _EXTENSION_END:
            return
        if kind != _EXTENSION_FEATURE_NAMES:
            raise refuse(_REFUSED_EXTENSIONS.get(kind, "it has a header extension that we do not know"))
        begin += 8 + -(-length // 8) * 8
    raise refuse("its header extensions do not end")
