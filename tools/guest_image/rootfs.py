"""The guest's root file system, laid out in a folder: busybox, an SSH server, a guest agent, their libraries, and our own files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tools.guest_image import kernel as kernels
from tools.guest_image.commands import run
from tools.guest_image.libraries import closure

if TYPE_CHECKING:
    from tools.guest_image.kernel import Kernel
    from tools.guest_image.packages import PackageCache

OVERLAY = Path(__file__).parent / "overlay" / "rootfs"

# (package, file in the package): where it is found is where it goes.
# The static busybox: without a dynamic linker at work, starting an applet under emulation takes 6 ms, not 32 ms.
PROGRAMS = (
    ("busybox-static", "bin/busybox"),
    ("dropbear-bin", "usr/sbin/dropbear"),
    ("dropbear-bin", "usr/bin/dropbearkey"),
    ("e2fsprogs", "sbin/resize2fs"),
    ("qemu-guest-agent", "usr/sbin/qemu-ga"),
)
# Applets that are looked for in /sbin, by init itself or by habit.
_SBIN = ("acpid", "getty", "halt", "init", "ip", "modprobe", "poweroff", "reboot", "syslogd", "udhcpc")
# Package tools that would only pretend to work in this image, and shells under names nobody should find.
_LEFT_OUT = frozenset({"busybox", "dpkg", "dpkg-deb", "linuxrc", "mke2fs", "mkdosfs", "rpm", "rpm2cpio"})
_FOLDERS = (
    *("dev", "etc/dropbear", "home/fabric", "media/config", "mnt", "proc", "root", "run", "sys", "tmp"),
    *("usr/lib", "usr/bin", "usr/sbin", "bin", "sbin", "lib64", "var/lib/cellfabric", "var/log", "var/tmp"),
)

# Modes that git does not keep. Everything not named here: folders 0755, files 0755 if executable, else 0644.
MODES = {"etc/shadow": 0o600, "home/fabric": 0o700, "root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
# Owners other than root: path to (uid, gid).
OWNERS = {"home/fabric": (1000, 1000)}


def assemble(root: Path, kernel: Kernel, cache: PackageCache) -> None:
    """Lay the root file system out in the empty folder `root`.

    Owners are not set (that takes root's rights): `disk.ext4` writes them into the image.

    Raises:
        BuildError: a package is not to be had, or does not hold what it used to.
    """
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "var/run").symlink_to("/run")

    names = list(dict.fromkeys(package for package, _ in PROGRAMS))
    packages = dict(zip(names, cache.fetch(names), strict=True))
    programs = [packages[package].file(path) for package, path in PROGRAMS]
    for (_, path), program in zip(PROGRAMS, programs, strict=True):
        shutil.copyfile(program, root / path)
        (root / path).chmod(0o755)
    for soname, library in closure(programs, list(packages.values()), cache).items():
        at = "lib64" if soname.startswith("ld-linux") else "usr/lib"
        shutil.copyfile(library, root / at / soname)
        (root / at / soname).chmod(0o755)

    for applet in run([programs[0], "--list"]).split():
        if applet not in _LEFT_OUT:
            (root / "bin" / applet).symlink_to("busybox")
    for applet in _SBIN:
        (root / "sbin" / applet).symlink_to("/bin/busybox")

    _add_modules(root, kernel)
    for source in sorted(OVERLAY.rglob("*")):
        if source.is_file():
            target = root / source.relative_to(OVERLAY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    for folder in (each for each in root.rglob("*") if each.is_dir() and not each.is_symlink()):
        folder.chmod(0o755)
    for name, mode in MODES.items():
        (root / name).chmod(mode)


def _add_modules(root: Path, kernel: Kernel) -> None:
    base = root / "usr/lib/modules" / kernel.release
    base.mkdir(parents=True)
    copies = []
    for source in kernel.load_order(kernels.GUEST_MODULES):
        copy = base / source.name
        shutil.copyfile(source, copy)
        copies.append(copy)
    (base / "modules.dep").write_text(kernels.modules_dep(kernel, copies, base))
