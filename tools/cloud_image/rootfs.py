"""The root file system: Debian's packages as Debian installs them, and the few files of ours that make them a quick guest."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from tools.containers import debian
from tools.guest_image import kernel as kernels
from tools.guest_image.commands import run
from tools.guest_image.errors import BuildError

if TYPE_CHECKING:
    from tools.guest_image.kernel import Kernel

OVERLAY: Final = Path(__file__).parent / "overlay"

# What Debian's own cloud images do it with: netplan writes for systemd-networkd what cloud-init has read.
PACKAGES: Final = (
    *("systemd", "systemd-sysv", "systemd-resolved", "udev", "dbus", "kmod"),
    *("cloud-init", "netplan.io", "openssh-server", "sudo", "iproute2"),
)

# Beside what every guest of ours may need; systemd's automounts ask for it.
_MODULES: Final = (*kernels.GUEST_MODULES, "autofs4")

# Work for machines that live long: under emulation each delays the first login by what it takes.
_MASKED: Final = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("fstrim.timer", "e2scrub_reap.service", "proc-sys-fs-binfmt_misc.automount"),
)

# What belongs to one machine, or to the build: the host keys first, which would be the same in every server.
_REMOVED: Final = (
    *("etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed"),
    *("etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/apt/apt.conf.d/99mmdebstrap", "var/cache/ldconfig/aux-cache"),
    *("var/lib/apt/lists/*_*", "var/cache/apt/*.bin", "var/cache/debconf/*-old", "var/lib/dpkg/*-old"),
    *("var/log/*.log", "var/log/apt/*", "dev/*"),
)


def assemble(root: Path, linux: Kernel) -> dict[str, str]:
    """Install into the empty folder `root`; returns the version of every package that is in it.

    Raises:
        BuildError: mmdebstrap failed, or a package does not hold what it used to.
    """
    try:
        with debian.archive(debian.RootFs("cloud", PACKAGES)) as stream:
            complaint = _unpack(stream, root)
    except debian.BuildError as failed:
        raise BuildError(str(failed)) from failed
    # Only now: where there was no whole archive, its maker has said why, better than who reads it can.
    if complaint:
        raise BuildError(f"tar failed: {complaint}")
    for pattern in _REMOVED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for source in sorted(each for each in OVERLAY.rglob("*") if each.is_file()):
        target = root / source.relative_to(OVERLAY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)
    for unit in _MASKED:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    # There, and empty: systemd makes one, and does not ask anybody about time zones as at an installation's first boot.
    (root / "etc/machine-id").write_bytes(b"")
    resolv = root / "etc/resolv.conf"
    resolv.unlink(missing_ok=True)
    resolv.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    _add_modules(root, linux)
    return dict(versions((root / "var/lib/dpkg/status").read_text()))


def owners(root: Path) -> dict[str, tuple[int, int]]:
    """Every file that is not root's, as `disk.ext4` wants it."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        if (status.st_uid, status.st_gid) != (0, 0):
            found[path.relative_to(root).as_posix()] = (status.st_uid, status.st_gid)
    return found


def package_times(root: Path, *, before_s: float) -> dict[str, int]:
    """When each file that came in a package was last changed: Python runs its bytecode only where it is of that very time.

    Files that were made by the build, since `before_s`, have no time of their own: two builds shall be alike.
    """
    return {
        path.relative_to(root).as_posix(): int(changed_s)
        for path in root.rglob("*")
        if (changed_s := path.lstat().st_mtime) < before_s
    }


def _unpack(stream: IO[bytes], root: Path) -> str:
    """Unpack as root: owners and all. Returns what tar has to complain about."""
    done = subprocess.run(
        ("tar", "--extract", "--numeric-owner", "--same-permissions", "--directory", root),
        stdin=stream,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"status {done.returncode}: {done.stderr.strip()[-500:]}" if done.returncode else ""


def versions(status: str) -> Iterator[tuple[str, str]]:
    """Names and versions of a dpkg database's packages."""
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version): (.*)$", paragraph, flags=re.MULTILINE))
        if len(fields) == 2:
            yield fields["Package"], fields["Version"]


def _add_modules(root: Path, linux: Kernel) -> None:
    base = root / "usr/lib/modules" / linux.release
    base.mkdir(parents=True)
    for source in linux.load_order(_MODULES):
        shutil.copyfile(source, base / source.name)
    # The guest's own depmod, for the guest's own modprobe: the index is binary.
    run(["chroot", root, "depmod", linux.release])
