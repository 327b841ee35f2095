"""Where the bytes of images are, as a port: whole, by the SHA-256 of what they are, never changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob. `age_s` counts from when it was last put or touched."""

    sha256: str
    size_bytes: int
    age_s: float


class Upload(Protocol):
    """Bytes on their way in: not a blob before `keep`, gone after `discard`."""

    async def write(self, data: bytes) -> None:
        """Add bytes. Raises TooMuch when the store is full."""
        ...

    async def keep(self, sha256: str) -> None:
        """Make what was written the blob of this digest, durably. The digest is the caller's to have computed."""
        ...

    async def discard(self) -> None:
        """Forget what was written. Safe after `keep`, and again."""
        ...


class Blobs(Protocol):
    """A store of blobs."""

    async def begin(self, owner: str) -> Upload:
        """Start an upload for a project. Raises TooMuch when too many are under way, in all or of this one."""
        ...

    def read(self, sha256: str, offset_bytes: int = 0) -> AsyncIterator[bytes]:
        """The bytes from an offset, in pieces of at most 1 MiB. Raises NotFound."""
        ...

    async def touch(self, sha256: str) -> None:
        """Let the blob's age begin anew, so that nobody sweeps it away for a while. One that is absent is fine."""
        ...

    async def list(self) -> tuple[Blob, ...]:
        """Every blob."""
        ...

    async def delete(self, sha256: str, *, older_than_s: float) -> bool:
        """Remove a blob unless it is younger than that by now; returns whether it is gone."""
        ...

    async def clean(self, *, older_than_s: float) -> int:
        """Remove what uploads that nobody continues have left; returns how many."""
        ...
