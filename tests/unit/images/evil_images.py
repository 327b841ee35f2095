"""Images that nobody should accept, made on the spot, and the plain ones that everybody should: bytes only."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from fabric.model.image import ImageFormat

RAW, QCOW2, KERNEL, RAMDISK = ImageFormat.RAW, ImageFormat.QCOW2, ImageFormat.KERNEL, ImageFormat.RAMDISK

MIB = 1024 * 1024
CLUSTER = 65_536


def qcow2(
    *,
    version: int = 3,
    backing: tuple[int, int] = (0, 0),
    cluster_bits: int = 16,
    size: int = 64 * MIB,
    crypt: int = 0,
    l1: tuple[int, int] = (1, 3 * CLUSTER),
    refcount: tuple[int, int] = (CLUSTER, 1),
    snapshots: int = 0,
    incompatible: int = 0,
    refcount_order: int = 4,
    header_length: int = 112,
    compression: int = 0,
    extensions: bytes = b"\0" * 8,
    clusters: int = 4,
) -> bytes:
    """A qcow2 file that is fine unless told otherwise."""
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        *backing,
        cluster_bits,
        size,
        crypt,
        *l1,
        *refcount,
        snapshots,
        0,
    )
    if version != 2:
        head += struct.pack(">QQQII", incompatible, 0, 0, refcount_order, header_length)
        head += bytes([compression]) + b"\0" * 7
    return (head + extensions).ljust(clusters * CLUSTER, b"\0")


def disk(*placed: tuple[int, bytes], size: int = MIB) -> bytes:
    """A flat file with bytes at offsets; negative ones count from the end."""
    data = bytearray(size)
    for offset, what in placed:
        begin = offset if offset >= 0 else size + offset
        data[begin : begin + len(what)] = what
    return bytes(data)


MBR = (510, b"\x55\xaa")
GPT = (512, b"EFI PART")
ISO = (0x8001, b"CD001")


def extension(kind: int, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack(">II", kind, len(data) if length is None else length) + data.ljust(
        -(-len(data) // 8) * 8, b"\0"
    )


EVIL: Mapping[str, tuple[ImageFormat, bytes]] = {
    # declared qcow2
    "qcow2 with a backing file": (QCOW2, qcow2(backing=(512, 11))),
    "qcow2 with a backing file's offset only": (QCOW2, qcow2(backing=(512, 0))),
    "qcow2 with a backing file's length only": (QCOW2, qcow2(backing=(0, 11))),
    "qcow2 version 2 with a backing file": (QCOW2, qcow2(version=2, backing=(512, 11))),
    "qcow2 with an external data file": (QCOW2, qcow2(incompatible=1 << 2)),
    "qcow2 that names an external data file": (
        QCOW2,
        qcow2(extensions=extension(0x44415441, b"/etc/shadow")),
    ),
    "qcow2 that names a backing format": (QCOW2, qcow2(extensions=extension(0xE2792ACA, b"raw"))),
    "qcow2 with bitmaps": (QCOW2, qcow2(extensions=extension(0x23852875, b"\0" * 24))),
    "qcow2 encrypted by extension": (QCOW2, qcow2(extensions=extension(0x0537BE77, b"\0" * 16))),
    "qcow2 with an unknown extension": (QCOW2, qcow2(extensions=extension(0x12345678, b"x"))),
    "qcow2 with an endless extension": (QCOW2, qcow2(extensions=extension(0x6803F857, length=0xFFFFFFF0))),
    "qcow2 whose extensions do not end": (QCOW2, qcow2(extensions=extension(0x6803F857, b"\0" * 8) * 8192)),
    "qcow2 with AES": (QCOW2, qcow2(crypt=1)),
    "qcow2 with LUKS": (QCOW2, qcow2(crypt=2)),
    "qcow2 marked dirty": (QCOW2, qcow2(incompatible=1)),
    "qcow2 marked corrupt": (QCOW2, qcow2(incompatible=2)),
    "qcow2 with extended L2 entries": (QCOW2, qcow2(incompatible=1 << 4)),
    "qcow2 with an unknown feature": (QCOW2, qcow2(incompatible=1 << 63)),
    "qcow2 with an unknown compression": (QCOW2, qcow2(incompatible=1 << 3, compression=7)),
    "qcow2 with a compression it does not announce": (QCOW2, qcow2(compression=1)),
    "qcow2 with internal snapshots": (QCOW2, qcow2(snapshots=3)),
    "qcow2 of version 1": (QCOW2, qcow2(version=1)),
    "qcow2 of version 4": (QCOW2, qcow2(version=4)),
    "qcow2 with clusters of 2^63": (QCOW2, qcow2(cluster_bits=63)),
    "qcow2 with clusters of 2^8": (QCOW2, qcow2(cluster_bits=8)),
    "qcow2 of no size": (QCOW2, qcow2(size=0)),
    "qcow2 of 2^63 bytes": (QCOW2, qcow2(size=1 << 63)),
    "qcow2 just above the limit": (QCOW2, qcow2(size=1024**4 + 512, l1=(4096, 3 * CLUSTER))),
    "qcow2 with an L1 table at 2^63": (QCOW2, qcow2(l1=(1, 1 << 63))),
    "qcow2 with an L1 table of 2^32 entries": (QCOW2, qcow2(l1=(0xFFFFFFFF, 3 * CLUSTER))),
    "qcow2 with an L1 table too short for its disk": (QCOW2, qcow2(size=1024**4, l1=(1, 3 * CLUSTER))),
    "qcow2 with an L1 table over its header": (QCOW2, qcow2(l1=(1, 0))),
    "qcow2 with a crooked L1 table": (QCOW2, qcow2(l1=(1, 3 * CLUSTER + 8))),
    "qcow2 with an L1 table outside the file": (QCOW2, qcow2(l1=(1, 400 * CLUSTER))),
    "qcow2 with reference counts outside the file": (QCOW2, qcow2(refcount=(64 * CLUSTER, 1))),
    "qcow2 without reference counts": (QCOW2, qcow2(refcount=(CLUSTER, 0))),
    "qcow2 with endless reference counts": (QCOW2, qcow2(refcount=(CLUSTER, 0xFFFFFFFF))),
    "qcow2 with reference counts of 2^7 bits": (QCOW2, qcow2(refcount_order=7)),
    "qcow2 with a short header": (QCOW2, qcow2(header_length=64)),
    "qcow2 with a crooked header": (QCOW2, qcow2(header_length=107)),
    "qcow2 with a header longer than a cluster": (QCOW2, qcow2(header_length=CLUSTER + 8)),
    "qcow2 cut off in its header": (QCOW2, qcow2()[:50]),
    "qcow2 cut off before version 3's part": (QCOW2, qcow2()[:90]),
    "qcow2 cut off in its tables": (QCOW2, qcow2()[: 2 * CLUSTER]),
    "a raw disk declared qcow2": (QCOW2, disk(MBR)),
    "a VMDK declared qcow2": (QCOW2, disk((0, b"KDMV\1\0\0\0"))),
    "nothing declared qcow2": (QCOW2, b""),
    # declared raw
    "a qcow2 declared raw": (RAW, qcow2()),
    "a qcow2 with a backing file declared raw": (RAW, qcow2(backing=(512, 11))),
    "a qcow2 header in an odd file declared raw": (RAW, b"QFI\xfb"),
    "a QED declared raw": (RAW, disk((0, b"QED\0"))),
    "a sparse VMDK declared raw": (RAW, disk((0, b"KDMV\1\0\0\0"))),
    "an ESX VMDK declared raw": (RAW, disk((0, b"COWD\1\0\0\0"))),
    "an SE sparse VMDK declared raw": (RAW, disk((0, b"\xbe\xba\xfe\xca\0\0\0\0"))),
    "a flat VMDK's descriptor declared raw": (
        RAW,
        b'# Disk DescriptorFile\nversion=1\nRW 63 FLAT "/etc/shadow" 0\n'.ljust(1024, b"\0"),
    ),
    "a VMDK descriptor behind comments": (
        RAW,
        b"#\n# hello\n\n  \nversion=1\nRW 63 FLAT x 0\n".ljust(1024, b"\0"),
    ),
    "a VHD declared raw": (RAW, disk((0, b"conectix"))),
    "a fixed VHD, known by its footer": (RAW, disk(MBR, (-512, b"conectix"))),
    "an old fixed VHD, its footer a byte short": (RAW, disk(MBR, (-511, b"conectix"))),
    "a VHDX declared raw": (RAW, disk((0, b"vhdxfile"))),
    "a VDI declared raw": (RAW, disk((0x40, b"\x7f\x10\xda\xbe"))),
    "a Parallels image declared raw": (RAW, disk((0, b"WithoutFreeSpace"))),
    "an extended Parallels image declared raw": (RAW, disk((0, b"WithouFreSpacExt"))),
    "a Bochs image declared raw": (RAW, disk((0, b"Bochs Virtual HD Image"))),
    "a cloop declared raw": (RAW, disk((0, b"#!/bin/sh\n#V2.0 Format\n"))),
    "a DMG declared raw": (RAW, disk((-512, b"koly"))),
    "a LUKS volume declared raw": (RAW, disk((0, b"LUKS\xba\xbe\0\2"))),
    "a LUKS volume by its second header": (RAW, disk((0x4000, b"SKUL\xba\xbe\0\2"))),
    "a CD declared raw": (RAW, disk(ISO)),
    "a CD that is a disk too": (RAW, disk(MBR, GPT, ISO)),
    "a CD whose label comes late": (RAW, disk(MBR, (20 * 2048 + 1, b"CD001"))),
    "a UDF disc declared raw": (RAW, disk((0x8001, b"BEA01"), (0x8801, b"NSR03"))),
    "a user-mode Linux COW image": (RAW, disk((0, b"OOOM\0\0\0\2"))),
    "gzip declared raw": (RAW, disk((0, b"\x1f\x8b\x08"))),
    "xz declared raw": (RAW, disk((0, b"\xfd7zXZ\0"))),
    "zstd declared raw": (RAW, disk((0, b"\x28\xb5\x2f\xfd"))),
    "a tar (an OVA) declared raw": (RAW, disk((257, b"ustar\x0000"))),
    "a zip declared raw": (RAW, disk((0, b"PK\x03\x04"))),
    "a program declared raw": (RAW, disk((0, b"\x7fELF\2\1\1"))),
    "a kernel declared raw": (RAW, disk(MBR, (0x202, b"HdrS"))),
    "a disk of half a sector": (RAW, b"\0" * 700),
    "nothing declared raw": (RAW, b""),
    # declared kernel or ramdisk
    "a disk declared a kernel": (KERNEL, disk(MBR)),
    "a qcow2 declared a kernel": (KERNEL, qcow2()),
    "a script declared a kernel": (KERNEL, b"#!/bin/sh\n" + b"\0" * 1024),
    "a qcow2 declared a ramdisk": (RAMDISK, qcow2(backing=(512, 11))),
    "a kernel declared a ramdisk": (RAMDISK, disk(MBR, (0x202, b"HdrS"))),
    "zeros declared a ramdisk": (RAMDISK, b"\0" * 4096),
}

GOOD: Mapping[str, tuple[ImageFormat, bytes, int]] = {
    "a qcow2": (QCOW2, qcow2(), 64 * MIB),
    "a qcow2 of version 2": (QCOW2, qcow2(version=2), 64 * MIB),
    "a qcow2 with names for its features": (
        QCOW2,
        qcow2(extensions=extension(0x6803F857, b"\0" * 96) + b"\0" * 8),
        64 * MIB,
    ),
    "a qcow2 compressed with zstd": (QCOW2, qcow2(incompatible=1 << 3, compression=1), 64 * MIB),
    "a qcow2 of odd size": (QCOW2, qcow2(size=64 * MIB - 3), 64 * MIB - 3),
    "an empty disk": (RAW, disk(), MIB),
    "a disk with an MBR": (RAW, disk(MBR), MIB),
    "a disk with a GPT": (RAW, disk(MBR, GPT), MIB),
    "a disk smaller than what is looked at": (RAW, disk(MBR, size=1024), 1024),
    "a kernel for x86": (KERNEL, disk(MBR, (0x202, b"HdrS"), size=4096), 4096),
    "a kernel for arm64": (KERNEL, disk((0x38, b"ARM\x64"), size=4096), 4096),
    "a ramdisk in gzip": (RAMDISK, disk((0, b"\x1f\x8b\x08"), size=4000), 4000),
    "a ramdisk in cpio": (RAMDISK, disk((0, b"070701"), size=4096), 4096),
}
