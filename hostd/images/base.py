"""The host's disks as a port: the image cache and every file that belongs to one instance.

Idempotent throughout: `ensure_*` measures, acts and verifies; `remove` of what is not there is success. Files of an instance live in
one folder named by its id and placement epoch, so that an old copy and a new one never share a path.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from fabric.model.instance import Guest, ImageRef
from hostd.driver.base import DiskFile


class DiskError(Exception):
    """A disk step failed. `code` is from hostd/core/faults.py (DISK_FULL, IMAGE_CORRUPT, IMAGE_UNAVAILABLE, …)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDisks:
    """What a placement's files are: disks in PCI order, kernel and ramdisk where the image boots by them, the console's log."""

    disks: tuple[DiskFile, ...]
    kernel_path: str = ""
    ramdisk_path: str = ""
    console_log_path: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """A placement that has files here."""

    instance_id: str
    placement_epoch: int


Fetch = Callable[[ImageRef], AsyncIterator[bytes]]
"""Brings an image's bytes through the conductor, in chunks. Raises Unavailable."""


class Disks(Protocol):
    """Files on this host."""

    async def ensure_image(self, image: ImageRef, fetch: Fetch, progress: Callable[[int], None]) -> None:
        """Have the image in the cache, verified against its SHA-256; concurrent calls for one image share one download.

        `progress` is told percent. Raises DiskError (IMAGE_CORRUPT, DISK_FULL), Unavailable.
        """
        ...

    async def ensure_guest(self, guest: Guest, placement_epoch: int, *, made: bool = False) -> GuestDisks:
        """Have the overlay root disk (grown to the flavor), the config drive and the log file. Never replaces a root disk.

        `made`: the root disk was made before. One that is gone then is DISK_LOST, and nothing is made.
        """
        ...

    async def remove(self, instance_id: str, placement_epoch: int) -> None:
        """Remove every file of placements of the instance up to this epoch."""
        ...

    async def held(self) -> frozenset[Held]:
        """Which placements have files here."""
        ...

    async def console_log(self, instance_id: str, placement_epoch: int, tail_bytes: int) -> bytes:
        """The end of the serial console's log, at most `tail_bytes`; empty where there is none yet."""
        ...

    async def free_gib(self) -> int:
        """Space left for guests."""
        ...

    async def prune(self, in_use: frozenset[str]) -> None:
        """Drop cached images whose SHA-256 is not in use and that are older than the cache's setting allows."""
        ...
