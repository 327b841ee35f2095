"""Volumes as a port: files that outlive the guests that have them.

Idempotent throughout. Whose a volume is, and whether it may be removed, is the control plane's to decide; here it is only done. What every
driver must do is in `tests/conformance/volumes`.
"""

from __future__ import annotations

from typing import Protocol

from fabric.model.volume import GuestVolume
from hostd.driver.base import DiskFile


class VolumeError(Exception):
    """A volume step failed. `code` is from hostd/core/faults.py (DISK_FULL, VOLUME_LOST, …)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Volumes(Protocol):
    """The volumes that this host can reach."""

    async def ensure(
        self, volume: GuestVolume, owner: int | None, source: DiskFile | None = None
    ) -> DiskFile:
        """Have the volume's disk, at least as large as it says, for this user id alone (None: for whoever runs this).

        Where it never was, it is made: a copy of `source`, a raw disk that everybody may read, or empty without one. One that was made is
        what it is, whatever the source; one that was made and is gone is VOLUME_LOST, and nothing is made in its stead. Raises VolumeError:
        IMAGE_UNAVAILABLE where the source is needed and not there, IMAGE_TOO_LARGE where it does not fit.
        """
        ...

    async def is_unmade(self, volume_id: str) -> bool:
        """Whether the volume is certainly still to be made. Where that cannot be known it is not, and `ensure` says why."""
        ...

    async def grow(self, volume_id: str, size_gib: int) -> None:
        """Make it so large; larger already is success, as nothing is ever cut off. Raises VolumeError: VOLUME_LOST where there is none."""
        ...

    async def remove(self, volume_id: str) -> None:
        """Remove it and every trace of it; absent already is success."""
        ...

    async def held(self) -> frozenset[str]:
        """The ids of the volumes that are here, whole or not. Raises VolumeError where that cannot be known."""
        ...

    def path(self, volume_id: str) -> str:
        """Where the volume's disk is, or would be. Raises VolumeError for what is no volume's id."""
        ...
