"""The host's disks as a port: the image cache and every file that belongs to one instance.

Idempotent throughout: `ensure_*` measures, acts and verifies; `remove` of what is not there is success. Files of an instance live in
one folder named by its id and placement epoch, so that an old copy and a new one never share a path.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from fabric.model.image import ImageOffer
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCopy:
    """A whole copy of a root disk: a qcow2 image that stands by itself."""

    sha256: str
    size_bytes: int
    virtual_size_bytes: int


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """A placement that has files here."""

    instance_id: str
    placement_epoch: int


Fetch = Callable[[ImageRef], AsyncIterator[bytes]]
"""Brings an image's bytes through the conductor, in chunks. Raises Unavailable."""

HandOver = Callable[[ImageOffer, Callable[[], AsyncIterator[bytes]], Callable[[int], None]], Awaitable[None]]
"""Hands an image in through the conductor: what it is, its bytes (from the beginning at each call), and who is told percent.

Raises NotFound where nobody wants it (any more), another FabricError where it is refused, Unavailable.
"""


class Disks(Protocol):
    """Files on this host."""

    async def ensure_image(self, image: ImageRef, fetch: Fetch, progress: Callable[[int], None]) -> None:
        """Have the image in the cache, verified against its SHA-256; concurrent calls for one image share one download.

        `progress` is told percent. Raises DiskError (IMAGE_CORRUPT, DISK_FULL), Unavailable.
        """
        ...

    def image_file(self, image: ImageRef) -> DiskFile:
        """Where a disk image is in the cache, or would be: raw, readable to every guest's user, and never written to."""
        ...

    async def ensure_guest(self, guest: Guest, placement_epoch: int, *, made: bool = False) -> GuestDisks:
        """Have the overlay root disk (grown to the flavor), the config drive and the log file. Never replaces a root disk. That of a guest
        without an image is a volume, which is not among these.

        `made`: the root disk was made before. One that is gone then is DISK_LOST, and nothing is made. The root disk of a standalone guest
        is a whole copy of its image, which is needed only to make it. A root disk that is there stays what it is, whatever the guest's
        image has become.
        """
        ...

    async def owner(self, instance_id: str, placement_epoch: int) -> int | None:
        """The user id that the placement's disks belong to, None where all files belong to whoever runs this.

        Raises DiskError: DISK_LOST where they are not there.
        """
        ...

    async def find_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> DiskCopy | None:
        """The copy that an action has made and sealed before; None where there is none."""
        ...

    async def begin_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> DiskFile:
        """Have an empty file for a copy of the root disk, which the guest's hypervisor may write. What was begun before is dropped.

        Raises DiskError: DISK_LOST where there is no root disk, DISK_FULL where the copy might not fit.
        """
        ...

    async def copy_root(self, instance_id: str, placement_epoch: int, action_seq: int) -> None:
        """Copy the root disk of a guest that is off into the file that was begun. Raises DiskError (SNAPSHOT_FAILED, DISK_FULL)."""
        ...

    async def seal_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> DiskCopy:
        """Take the file that was begun, and is full, away from everybody else, look at it, and keep it. Raises DiskError."""
        ...

    def read_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> AsyncIterator[bytes]:
        """A sealed copy's bytes, in chunks of at most 1 MiB. Raises DiskError."""
        ...

    async def drop_copies(self, instance_id: str, placement_epoch: int) -> None:
        """Remove the copies of a placement's disk, whole or not."""
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
