"""What goes into the small guest image, step by step."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Mapping
from pathlib import Path

from tools.guest_image import disk, kernel, rootfs
from tools.guest_image.builder import Builder, Say
from tools.guest_image.kernel import Kernel
from tools.guest_image.packages import PackageCache

DISK_IMAGE = "cellfabric-guest.qcow2"
"""Boots by itself from a BIOS."""
ROOT_IMAGE = "cellfabric-guest-root.ext4"
"""The root file system alone: the disk of an image that is given with a kernel and a RAM disk."""
KERNEL = "vmlinuz"
INITRD = "initrd.img"

_SOURCES = Path(__file__).parent
_INIT = _SOURCES / "overlay" / "initramfs" / "init"


def make(work: Path, cache: PackageCache, say: Say) -> Mapping[str, object]:
    """Make the four outputs in `work`; returns what the manifest says of them.

    Raises:
        BuildError: a program or package is missing, or failed.
    """
    say("fetching the kernel, busybox, the SSH server and their libraries")
    linux = kernel.fetch(cache)
    boot_files(work, linux, cache, say)
    say("laying out the root file system")
    root = work / "root"
    root.mkdir()
    rootfs.assemble(root, linux, cache)
    disk.ext4(root, work / ROOT_IMAGE, owners=rootfs.OWNERS)
    return joined(work, ROOT_IMAGE, DISK_IMAGE, linux, cache, say)


def boot_files(work: Path, linux: Kernel, cache: PackageCache, say: Say) -> None:
    """The kernel and the initial RAM disk, into `work`."""
    (static,) = cache.fetch(["busybox-static"])
    say(f"making the initial RAM disk for Linux {linux.release}")
    shutil.copyfile(linux.image, work / KERNEL)
    archive = kernel.initrd(linux, _INIT, static.file("bin/busybox"))
    (work / INITRD).write_bytes(gzip.compress(archive, mtime=0))


def joined(
    work: Path, root: str, image: str, linux: Kernel, cache: PackageCache, say: Say
) -> Mapping[str, object]:
    """Join the boot files and the root file system of `work` to the disk `image`; returns what the manifest says of it."""
    say("joining the disk")
    raw = work / "disk.raw"
    disk.bootable(raw, kernel=work / KERNEL, initrd=work / INITRD, root=work / root, cache=cache)
    disk.qcow2(raw, work / image)
    return {
        "kernel_release": linux.release,
        "kernel_command_line": disk.KERNEL_COMMAND_LINE,
        "disk_bytes": raw.stat().st_size,
    }


BUILDER = Builder(
    what="guest image",
    module="tools.guest_image",
    folder=".cache/guest-image",
    outputs=(DISK_IMAGE, ROOT_IMAGE, KERNEL, INITRD),
    root=_SOURCES,
    sources=(".",),
    make=make,
)
