"""What goes into the Debian image with cloud-init, step by step."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tools.cloud_image import rootfs
from tools.containers import debian
from tools.guest_image import disk, kernel
from tools.guest_image.build import INITRD, KERNEL, boot_files, joined
from tools.guest_image.builder import Builder, Say
from tools.guest_image.errors import BuildError
from tools.guest_image.packages import PackageCache

DISK_IMAGE = "debian-cloud-init.qcow2"
"""Boots by itself from a BIOS."""
_ROOT_IMAGE = "root.ext4"
_TOOLS = Path(__file__).parents[1]


def make(work: Path, cache: PackageCache, say: Say) -> Mapping[str, object]:
    """Make the disk in `work`; returns what the manifest says of it.

    Raises:
        BuildError: this is not root, or a program or package is missing or failed.
    """
    if os.geteuid() != 0:
        raise BuildError("installing packages into a root file system takes root: use sudo")
    linux = kernel.fetch(cache)
    boot_files(work, linux, cache, say)
    say(f"installing Debian's {debian.SUITE} with {', '.join(rootfs.PACKAGES)}")
    root = work / "root"
    root.mkdir()
    begun_s = time.time()
    installed = rootfs.assemble(root, linux)
    say("writing the root file system")
    mtimes = rootfs.package_times(root, before_s=begun_s)
    disk.ext4(root, work / _ROOT_IMAGE, owners=rootfs.owners(root), mtimes=mtimes)
    return {
        "suite": debian.SUITE,
        "installed": installed,
        **joined(work, _ROOT_IMAGE, DISK_IMAGE, linux, cache, say),
    }


BUILDER = Builder(
    what="cloud image",
    module="tools.cloud_image",
    folder=".cache/cloud-image",
    outputs=(DISK_IMAGE, KERNEL, INITRD),
    root=_TOOLS,
    sources=(
        "cloud_image",
        "containers/debian.py",
        *(
            f"guest_image/{name}"
            for name in ("build.py", "disk.py", "kernel.py", "overlay/initramfs", "packages.py")
        ),
    ),
    make=make,
)
