"""The Linux calls that Python 3.11 does not have: namespaces, mounts, the child subreaper.

Each raises OSError with the call's errno. They act on the calling *thread* (setns, unshare of the network) or process.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWNET: Final = 0x40000000

MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SLAVE: Final = 0x80000
MNT_DETACH: Final = 2

_PR_SET_CHILD_SUBREAPER: Final = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def setns(descriptor: int, kind: int) -> None:
    """Enter the namespace behind an open /proc/PID/ns/* or /run/netns/* file (setns(2))."""
    _checked(_libc.setns(descriptor, kind), "setns")


def unshare(flags: int) -> None:
    """Leave the parent's namespaces for new ones (unshare(2))."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, filesystem: str = "none", flags: int = 0) -> None:
    """Mount, bind or change propagation (mount(2))."""
    _checked(
        _libc.mount(source.encode(), target.encode(), filesystem.encode(), ctypes.c_ulong(flags), None),
        f"mount on {target}",
    )


def umount(target: str, flags: int = 0) -> None:
    """Unmount (umount2(2))."""
    _checked(_libc.umount2(target.encode(), flags), f"umount of {target}")


def sethostname(name: str) -> None:
    """Name this UTS namespace (sethostname(2))."""
    encoded = name.encode()
    _checked(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), "sethostname")


def become_subreaper() -> None:
    """Adopt orphaned descendants (prctl(2)): who calls this must `waitpid` for all of them, for as long as it lives."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
