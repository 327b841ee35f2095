"""The folders that a private libvirtd puts its own over: made where the machine has none, and gone again with the last that used them.

What is made is marked by an extended attribute, so that no other folder, empty as it may be, is ever removed. As a command,
`python -m hostd.driver.libvirt.mount_points`, it removes what an end that was not in order has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostd.syscalls import MNT_DETACH, MS_BIND, mount, umount

FOLDERS: Final = (
    ("etc", "/etc/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("run", "/run/libvirt"),
    ("log", "/var/log/libvirt"),
    ("cache", "/var/cache/libvirt"),
)
"""A folder of ours, and what libvirt was compiled to use, where it finds it."""

_MARK: Final = "trusted.cellfabric"
_TOKEN: Final = ("common/system.token", "common")
"""What every client of libvirt that is root leaves in /run/libvirt, for as long as a libvirtd there may ask for it."""


def cover(source: Path, target: Path) -> None:
    """Put `source` over `target` in this mount namespace, making the target where there is none. Raises OSError."""
    with _alone(target):
        with contextlib.suppress(FileExistsError):
            target.mkdir()
            # Where that cannot be noted it stays, and is nobody's to remove.
            with contextlib.suppress(OSError):
                os.setxattr(target, _MARK, b"made")
        mount(str(source), str(target), flags=MS_BIND)


def uncover(target: Path) -> None:
    """Take away what `cover` put there, and the target with the last that is covered. Only where `cover` was called: see `remove`."""
    with contextlib.suppress(OSError):
        umount(str(target), MNT_DETACH)
    remove(target)


def remove(target: Path) -> None:
    """Remove a target that `cover` made and that nobody has covered; leave any other alone."""
    with _alone(target):
        if not _is_made(target) or _is_covered(target):
            return
        for name in _TOKEN:
            with contextlib.suppress(OSError):
                path = target / name
                path.rmdir() if path.is_dir() else path.unlink()
        with contextlib.suppress(OSError):
            target.rmdir()


def remove_all() -> None:
    """Remove every target that no private libvirtd of this machine uses any more."""
    for _, target in FOLDERS:
        remove(Path(target))


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time: between being made and being covered, a folder looks as if nobody had a use for it."""
    above = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(above, fcntl.LOCK_EX)
        yield
    finally:
        os.close(above)


def _is_made(target: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.getxattr(target, _MARK) == b"made"
    return False


def _is_covered(target: Path) -> bool:
    """Whether any process sees something mounted there: removing the folder would take it away from it, without a word (umount(2)).

    Not by the name alone: a process may have another filesystem there, as in a container.
    """
    own = _mounts("self")
    under = max(
        (mount for mount in own if target.parent.is_relative_to(mount.path)),
        key=lambda mount: len(mount.path.parts),
    )
    return any(
        mount.path == target and mount.device_under == under.device
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        for mount in _mounts(entry.name)
    )


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mount as a process sees it: where, and the device on top and the one underneath, as `major:minor`."""

    path: Path
    device: str
    device_under: str


def _mounts(process: str) -> list[_Mount]:
    """Everything that a process sees mounted (proc(5), mountinfo); nothing for one that is gone."""
    try:
        text = (Path("/proc") / process / "mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.split()[:5] for line in text.splitlines()]
    devices = {number: device for number, _, device, _, _ in lines}
    return [_Mount(Path(path), device, devices.get(parent, "")) for _, parent, device, _, path in lines]


if __name__ == "__main__":
    remove_all()
