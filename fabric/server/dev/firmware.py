"""Which firmware this machine has for its guests, by the descriptors that it brings for libvirt to choose from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

FOLDERS: Final = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
"""Where QEMU's descriptors are, an administrator's and the packages'."""

_MACHINE: Final = "pc-q35-9.0"
"""One of the machines that guests are, for the patterns that descriptors name machines by."""


def has_uefi(folders: Sequence[Path] = FOLDERS) -> bool:
    """Whether a guest here can boot by UEFI, without Secure Boot: the package `ovmf` brings that."""
    return any("secure-boot" not in features for features in _served(folders))


def has_secure_boot(folders: Sequence[Path] = FOLDERS) -> bool:
    """Whether a guest here can boot by UEFI that boots only what is signed, by keys that it comes with."""
    return any({"secure-boot", "enrolled-keys"} <= features for features in _served(folders))


def _served(folders: Sequence[Path]) -> Iterator[frozenset[str]]:
    """The features of each UEFI firmware that serves guests like ours."""
    for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
        # One that libvirt could not read either is passed over: an empty file is how an administrator takes one out.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said: Any = json.loads(path.read_bytes())
            if "uefi" in said["interface-types"] and _is_for_ours(said["targets"]):
                yield frozenset(said["features"])


def _is_for_ours(targets: Any) -> bool:
    return any(
        target["architecture"] == "x86_64"
        and any(fnmatchcase(_MACHINE, pattern) for pattern in target["machines"])
        for target in targets
    )
