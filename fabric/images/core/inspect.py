"""Whether an image is what it is declared to be, decided while its bytes stream by.

No other program sees bytes that this has not accepted. What is found must equal what was declared; for a raw disk that means: nothing else
that any tool would take it for, at its beginning, at its end, or where a CD's label is, because a program that guesses the format would
be led by the guest (CVE-2022-47951, CVE-2024-40767, CVE-2026-24708). Partition tables are a disk's own business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fabric.errors import InvalidRequest, Reason, TooMuch
from fabric.images.core import qcow2
from fabric.images.core.qcow2 import refuse
from fabric.model.image import ImageFormat

HEAD_BYTES: Final = 128 * 1024
"""How much of the beginning is looked at: past the labels of CDs, and any header that we accept."""

TAIL_BYTES: Final = 1024
SECTOR: Final = 512

_AT: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, qcow2.MAGIC, "a qcow2 image"),
    (0, b"QED\0", "a QED image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK image"),
    (0, b"\xbe\xba\xfe\xca\0\0\0\0", "a VMDK image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"Bochs Virtual HD Image", "a Bochs image"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "a cloop image"),
    (0, b"LUKS\xba\xbe", "an encrypted (LUKS) volume"),
    (0x4000, b"SKUL\xba\xbe", "an encrypted (LUKS) volume"),
    (0, b"OOOM", "a user-mode Linux COW image"),
    (0, b"MOOO", "a user-mode Linux COW image"),
    (0, b"\x7fELF", "an ELF program"),
    (0, b"\x1f\x8b", "gzip; unpack it first"),
    (0, b"\xfd7zXZ\0", "xz; unpack it first"),
    (0, b"BZh", "bzip2; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd; unpack it first"),
    (0, b"PK\x03\x04", "a zip archive; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (0x202, b"HdrS", "a Linux kernel"),
    *((sector * 2048 + 1, label, "a CD image (ISO 9660 or UDF)") for sector in range(16, 33)
      for label in (b"CD001", b"BEA01", b"NSR02", b"NSR03")),
)  # fmt: skip
"""What a raw disk may not look like: offset, bytes, and what that is."""

_AT_END: Final[tuple[tuple[bytes, str], ...]] = (
    (b"conectix", "a VHD image, by its footer"),
    (b"koly", "a DMG image, by its trailer"),
)
"""What may not stand at the beginning of one of the last sectors."""

_KERNELS: Final[tuple[tuple[int, bytes], ...]] = (
    (0x202, b"HdrS"),  # bzImage, x86
    (0x38, b"ARM\x64"),  # Image, arm64
    (0, b"\x7fELF"),  # vmlinux, PVH
    (4, b"zimg"),  # EFI zboot
)

_RAMDISKS: Final[tuple[bytes, ...]] = (
    b"070701",  # cpio, newc
    b"070702",
    b"\x1f\x8b",  # gzip
    b"\xfd7zXZ\0",  # xz
    b"BZh",
    b"\x28\xb5\x2f\xfd",  # zstd
    b"\x02\x21\x4c\x18",  # lz4, legacy
    b"\x04\x22\x4d\x18",  # lz4
    b"\x89LZO",
    b"\x5d\x00\x00",  # lzma
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """How large images may be."""

    max_bytes: int = 64 * 1024**3
    max_virtual_bytes: int = 1024**4


@dataclass(frozen=True, slots=True)
class Accepted:
    """An image that was looked at completely."""

    size_bytes: int
    virtual_size_bytes: int


class Inspection:
    """One image being looked at. Feed it every byte in order, then `finish`; either raises when the image is refused."""

    def __init__(self, declared: ImageFormat, limits: ImageLimits) -> None:
        if declared is ImageFormat.UNSPECIFIED:
            raise InvalidRequest(
                "image.format is required: raw, qcow2, kernel or ramdisk", field="image.format"
            )
        self._declared = declared
        self._limits = limits
        self._head = bytearray()
        self._tail = b""
        self._size = 0
        self._is_head_accepted = False

    def feed(self, data: bytes) -> None:
        """Take in the next bytes.

        Raises:
            InvalidRequest: what has come so far cannot become an image that is accepted.
            TooMuch: there is more of it than an image may have.
        """
        self._size += len(data)
        if self._size > self._limits.max_bytes:
            raise TooMuch(
                f"the image has more than {self._limits.max_bytes} bytes",
                reason=Reason.TOO_LARGE,
                limit=self._limits.max_bytes,
            )
        self._tail = (self._tail + data[-TAIL_BYTES:])[-TAIL_BYTES:]
        if not self._is_head_accepted:
            self._head += data[: HEAD_BYTES - len(self._head)]
            if len(self._head) == HEAD_BYTES:
                self._check(file_bytes=None)
                self._is_head_accepted = True

    def finish(self) -> Accepted:
        """All bytes have come. Raises InvalidRequest."""
        if not self._size:
            raise refuse("it is empty")
        return Accepted(self._size, self._check(file_bytes=self._size))

    def _check(self, *, file_bytes: int | None) -> int:
        """Look at what there is; returns the disk's size. `file_bytes` is known at the end."""
        head = bytes(self._head)
        match self._declared:
            case ImageFormat.QCOW2:
                if not head.startswith(qcow2.MAGIC):
                    raise refuse(
                        f"it is declared qcow2, but looks like {_looks_like(head) or 'no qcow2 image'}"
                    )
                return qcow2.virtual_size(
                    head, file_bytes=file_bytes, most_bytes=self._limits.max_virtual_bytes
                )
            case ImageFormat.KERNEL:
                if not any(head.startswith(magic, offset) for offset, magic in _KERNELS):
                    raise refuse(f"it is declared a kernel, but looks like {_looks_like(head) or 'none'}")
            case ImageFormat.RAMDISK:
                if not head.startswith(_RAMDISKS):
                    raise refuse(f"it is declared a ramdisk, but looks like {_looks_like(head) or 'none'}")
            case _:
                self._check_raw(head, file_bytes)
        return file_bytes or 0

    def _check_raw(self, head: bytes, file_bytes: int | None) -> None:
        other = _looks_like(head)
        if file_bytes is not None:
            other = other or _ends_like(self._tail)
            if not other and file_bytes % SECTOR:
                raise refuse(f"a raw disk is made of {SECTOR}-byte sectors; this has {file_bytes} bytes")
            if file_bytes > self._limits.max_virtual_bytes:
                raise refuse(f"its disk has more than {self._limits.max_virtual_bytes} bytes")
        if other:
            raise refuse(f"it is declared raw, but looks like {other}")


def _looks_like(head: bytes) -> str:
    """What the beginning of a file is taken for, other than a plain disk; empty for nothing."""
    found = next((what for offset, magic, what in _AT if head.startswith(magic, offset)), "")
    return found or ("a VMDK descriptor" if _is_vmdk_text(head) else "")


def _is_vmdk_text(head: bytes) -> bool:
    """A VMDK descriptor is text: comments and empty lines, then a version (as QEMU's own probe has it)."""
    for line in head[:2048].splitlines():
        text = line.strip()
        if text.lower().startswith(b"# disk descriptorfile") or text.lower().startswith(b"version="):
            return True
        if text and not text.startswith(b"#"):
            return False
    return False


def _ends_like(tail: bytes) -> str:
    # A VHD footer is 512 bytes, 511 where an old tool wrote it.
    for back in (SECTOR, SECTOR - 1):
        for magic, what in _AT_END:
            if tail[-back:].startswith(magic):
                return what
    return ""
