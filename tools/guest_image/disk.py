"""The disk: a small FAT partition that the BIOS boot loader reads, and an ext4 root that grows with the disk."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from tools.guest_image.commands import run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.guest_image.packages import PackageCache

_MIB = 1024 * 1024
_SECTOR = 512
ROOT_LABEL = "fabric-root"
"""How the initial RAM disk finds the root, whatever the disk is called on the host's kind of bus."""
KERNEL_COMMAND_LINE = f"root=LABEL={ROOT_LABEL} console=tty0 console=ttyS0 panic=5 random.trust_cpu=on"

# Fixed, so that the same inputs give the same image. They name file systems, and guard nothing.
_ROOT_UUID = "5c9a1f7e-3b0d-4c56-9a53-0f6f2d0c7a11"
_HASH_SEED = "7d0c2f46-52c1-4f8e-8f0b-6b6b6c1c9e02"
_VOLUME_ID = "cf0001ab"
_DISK_SIGNATURE = 0xCF0001AB
_EPOCH_S = 1704067200  # 2024-01-01: file times of the image, and what the guest's clock can never be before

_BOOT_START = _MIB
_BOOT_PATHS = ("vmlinuz", "initrd.img", "syslinux.cfg")
_BOOT_SLACK = 1 * _MIB  # FAT tables, the boot loader's own file, and cluster rounding
# The root as shipped. Room to boot even where the disk is not one byte larger than the image.
_ROOT_SLACK = 24 * _MIB
# Named one by one, so that neither the host's mke2fs.conf nor a newer mke2fs adds what the guest's kernel cannot read.
_ROOT_FEATURES = (
    "dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,has_journal,huge_file,large_file,resize_inode,"
    "sparse_super"
)
# A partition table of this kind ends at 2 TiB: block groups for so much can be added while mounted.
_LARGEST_ROOT_BLOCKS = 2 * 1024**4 // 4096


def ext4(
    source: Path,
    image: Path,
    *,
    owners: Mapping[str, tuple[int, int]],
    mtimes: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write the folder `source` as an ext4 file system into the new file `image`.

    Needs neither root nor a mount. Every file belongs to root except those that `owners` names, and was last changed at the image's
    epoch except those that `mtimes` names, in seconds since 1970.

    Raises:
        BuildError: the file system tools failed.
    """
    used = sum(-(-path.lstat().st_size // 4096) * 4096 for path in source.rglob("*"))
    size = -(-(used + _ROOT_SLACK) // (4 * _MIB)) * 4 * _MIB
    with image.open("xb") as stream:
        stream.truncate(size)
    env = {"E2FSPROGS_FAKE_TIME": str(_EPOCH_S), "MKE2FS_CONFIG": os.devnull}
    run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "1", "-L", ROOT_LABEL),
            *("-U", _ROOT_UUID, "-J", "size=4", "-O", f"none,{_ROOT_FEATURES}", "-d", source),
            *(
                "-E",
                f"hash_seed={_HASH_SEED},root_owner=0:0,resize={_LARGEST_ROOT_BLOCKS},lazy_itable_init=0",
            ),
            image,
        ],
        env=env,
    )
    script = image.with_suffix(".debugfs")
    script.write_text("".join(_inode_commands(source, owners, mtimes)))
    try:
        # debugfs ends with 0 whatever happened; after its banner, every line on the error output is a complaint.
        run(["debugfs", "-w", "-f", script, image], env=env, complaint=r"^(?!debugfs \d).*\S.*$")
    finally:
        script.unlink()


def _inode_commands(
    source: Path, owners: Mapping[str, tuple[int, int]], mtimes: Mapping[str, int]
) -> list[str]:
    """What mke2fs takes over from the builder's disk and must not: owners and times."""
    commands = []
    for path in (source, *sorted(source.rglob("*"))):
        name = path.relative_to(source).as_posix()
        uid, gid = owners.get(name, (0, 0))
        fields = {"uid": uid, "gid": gid} | dict.fromkeys(("atime", "ctime", "mtime", "crtime"), _EPOCH_S)
        fields |= dict.fromkeys(("atime_extra", "ctime_extra", "mtime_extra", "crtime_extra"), 0)
        fields["mtime"] = mtimes.get(name, _EPOCH_S)
        at = "/" if path == source else f"/{name}"
        commands += [
            f"set_inode_field {at} {field} {_debugfs_value(field, v)}\n" for field, v in fields.items()
        ]
    return commands


def _debugfs_value(field: str, value: int) -> str:
    return f"@{value}" if field.endswith("time") else str(value)


def bootable(image: Path, *, kernel: Path, initrd: Path, root: Path, cache: PackageCache) -> None:
    """Write a disk into the new file `image` that boots `kernel` and `initrd` from a BIOS, with `root` as partition 2.

    Raises:
        BuildError: the boot loader could not be installed.
    """
    syslinux, common, mtools, dosfstools = cache.fetch(
        ["syslinux", "syslinux-common", "mtools", "dosfstools"]
    )
    boot = image.with_suffix(".boot")
    config = image.with_suffix(".cfg")
    config.write_text(
        "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n"
        f"  KERNEL vmlinuz\n  INITRD initrd.img\n  APPEND {KERNEL_COMMAND_LINE}\n"
    )
    env = {
        "SOURCE_DATE_EPOCH": str(_EPOCH_S),
        "MTOOLS_SKIP_CHECK": "1",
        "MTOOLSRC": os.devnull,
        "TZ": "UTC",
    }
    tools = mtools.root / "usr/bin"  # syslinux runs them by name
    files = dict(zip(_BOOT_PATHS, (kernel, initrd, config), strict=True))
    boot_size = -(-(sum(file.stat().st_size for file in files.values()) + _BOOT_SLACK) // _MIB) * _MIB
    try:
        with boot.open("xb") as stream:
            stream.truncate(boot_size)
        make_fat = dosfstools.file("sbin/mkfs.fat")
        hidden = str(_BOOT_START // _SECTOR)
        run(
            [make_fat, "-F", "16", "-n", "BOOT", "-i", _VOLUME_ID, "--invariant", "-h", hidden, boot], env=env
        )
        for name, file in files.items():
            run(["mcopy", "-i", boot, file, f"::{name}"], env=env, path_first=tools)
        run([syslinux.file("usr/bin/syslinux"), "--install", boot], env=env, path_first=tools)
        _join(image, common.file("usr/lib/syslinux/mbr/mbr.bin").read_bytes(), boot, root)
    finally:
        boot.unlink(missing_ok=True)
        config.unlink()


def _join(image: Path, boot_code: bytes, boot: Path, root: Path) -> None:
    root_start = _BOOT_START + boot.stat().st_size
    table = bytearray(_SECTOR)
    table[: len(boot_code)] = boot_code
    struct.pack_into("<I", table, 440, _DISK_SIGNATURE)
    _partition(table, 0, active=True, kind=0x0E, start=_BOOT_START, size=boot.stat().st_size)
    _partition(table, 1, active=False, kind=0x83, start=root_start, size=root.stat().st_size)
    table[510:] = b"\x55\xaa"
    with image.open("xb") as stream:
        stream.write(table)
        for start, file in ((_BOOT_START, boot), (root_start, root)):
            _copy_sparse(file, stream.fileno(), start)
        stream.truncate(root_start + root.stat().st_size)


def _partition(table: bytearray, index: int, *, active: bool, kind: int, start: int, size: int) -> None:
    """One entry of a DOS partition table, addressed by sectors; the cylinder fields say "see the sectors"."""
    beyond = b"\xfe\xff\xff"
    entry = (0x80 if active else 0, beyond, kind, beyond, start // _SECTOR, size // _SECTOR)
    struct.pack_into("<B3sB3sII", table, 446 + 16 * index, *entry)


def _copy_sparse(source: Path, target: int, offset: int) -> None:
    with source.open("rb") as stream:
        while chunk := stream.read(64 * 1024):
            if chunk.strip(b"\0"):
                os.pwrite(target, chunk, offset)
            offset += len(chunk)


def qcow2(raw: Path, image: Path) -> None:
    """Convert to qcow2. Not compressed: a guest booting under emulation would pay seconds for every boot.

    Raises:
        BuildError: qemu-img failed.
    """
    run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1,lazy_refcounts=off", raw, image]
    )
