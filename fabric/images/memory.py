"""Blobs in this process's memory: for simulation and unit tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fabric.clock import Clock
from fabric.errors import NotFound
from fabric.images.base import Blob, Upload


class MemoryBlobs:
    """Keeps every blob as bytes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._blobs: dict[str, tuple[bytes, int]] = {}
        self.uploads = 0
        """How many are under way."""

    async def begin(self, owner: str) -> Upload:
        self.uploads += 1
        return _MemoryUpload(self)

    async def read(self, sha256: str, offset_bytes: int = 0) -> AsyncIterator[bytes]:
        if sha256 not in self._blobs:
            raise NotFound("the image's bytes are not here", sha256=sha256)
        yield self._blobs[sha256][0][offset_bytes:]

    async def touch(self, sha256: str) -> None:
        if sha256 in self._blobs:
            self.put(sha256, self._blobs[sha256][0])

    async def list(self) -> tuple[Blob, ...]:
        return tuple(Blob(name, len(data), self._age_s(at_ms)) for name, (data, at_ms) in self._blobs.items())

    async def delete(self, sha256: str, *, older_than_s: float) -> bool:
        if sha256 in self._blobs and self._age_s(self._blobs[sha256][1]) < older_than_s:
            return False
        self._blobs.pop(sha256, None)
        return True

    async def clean(self, *, older_than_s: float) -> int:
        return 0

    def put(self, sha256: str, data: bytes) -> None:
        """Store a blob, as an upload that was kept."""
        self._blobs[sha256] = (data, self._clock.now_ms())

    def _age_s(self, at_ms: int) -> float:
        return (self._clock.now_ms() - at_ms) / 1000


class _MemoryUpload:
    def __init__(self, blobs: MemoryBlobs) -> None:
        self._blobs = blobs
        self._data = bytearray()
        self._is_over = False

    async def write(self, data: bytes) -> None:
        self._data += data

    async def keep(self, sha256: str) -> None:
        self._blobs.put(sha256, bytes(self._data))
        await self.discard()

    async def discard(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._blobs.uploads -= 1
