"""Blobs as files: `<folder>/<first two digits>/<sha256>`, written under another name, forced to disk, then renamed.

So a file with a digest for its name is always whole: a crash leaves a partial file under `partial/`, which `clean` removes. Several
API servers may share one folder. Every file call runs on workers: a slow disk holds up an upload, never the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from fabric.clock import Clock
from fabric.errors import NotFound, Reason, TooMuch
from fabric.ids import Ids
from fabric.images.base import Blob, Upload
from fabric.workers import Workers

T = TypeVar("T")

PIECE_BYTES = 1024 * 1024
PARTIAL = "partial"

IN_HAND_S = 0.05
"""For how long a sweep may have a blob under another name, before whoever wants it is told that there is none."""

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600
"""Images are their projects' own: other users of the machine, guests' among them, get at none of their bytes, whatever the umask."""


class FileBlobs:
    """A folder of blobs. `total_bytes` is what all of them may take."""

    def __init__(
        self, folder: Path, *, workers: Workers, clock: Clock, ids: Ids, total_bytes: int, uploads: int
    ) -> None:
        self._folder = folder
        self._workers = workers
        self._clock = clock
        self._ids = ids
        self._total_bytes = total_bytes
        self._free_uploads = uploads
        # Half of them: whoever lets theirs stand still for an hour keeps nobody else from theirs.
        self._most_of_one = (uploads + 1) // 2
        self._uploads_of: Counter[str] = Counter()
        self._used_bytes: int | None = None
        self._under_way_bytes = 0
        self._closing: set[asyncio.Future[None]] = set()

    async def begin(self, owner: str) -> Upload:
        if self._free_uploads <= 0:
            raise TooMuch("too many uploads are under way", retry_after_s=5.0)
        if self._uploads_of[owner] >= self._most_of_one:
            raise TooMuch(
                f"the project has {self._most_of_one} uploads under way already",
                retry_after_s=5.0,
                limit=self._most_of_one,
            )
        self._free_uploads -= 1
        self._uploads_of[owner] += 1
        try:
            if self._used_bytes is None:
                await self.list()
            path = self._folder / PARTIAL / self._ids.new_id()
            file = await self._workers.run(lambda: _create(path))
        except BaseException:
            self._free(owner)
            raise
        return _FileUpload(self, owner, path, file)

    async def read(self, sha256: str, offset_bytes: int = 0) -> AsyncIterator[bytes]:
        opening = partial(_open_at, self._path(sha256), offset_bytes)
        try:
            try:
                file = await self._workers.run(opening)
            except FileNotFoundError:
                await asyncio.sleep(IN_HAND_S)
                file = await self._workers.run(opening)
        except FileNotFoundError:
            raise NotFound("the image's bytes are not here", sha256=sha256) from None
        reading: asyncio.Future[bytes] | None = None
        try:
            while True:
                reading = asyncio.ensure_future(self._workers.run(partial(file.read, PIECE_BYTES)))
                data = await asyncio.shield(reading)
                if not data:
                    return
                yield data
        finally:
            # A task of its own, which whoever hangs up again does not end.
            closing = asyncio.ensure_future(self._close(file, reading))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)

    async def _close(self, file: BinaryIO, reading: asyncio.Future[bytes] | None) -> None:
        """Close a file that is read, once nobody is at it any more: to close it before is to wait for its lock."""
        if reading is not None:
            await asyncio.wait({reading})
        try:
            await self._workers.run(file.close)
        except TooMuch:
            file.close()  # nothing is left to be written, so it takes no time

    async def touch(self, sha256: str) -> None:
        path = self._path(sha256)
        with contextlib.suppress(FileNotFoundError):
            await self._workers.run(lambda: os.utime(path))

    async def list(self) -> tuple[Blob, ...]:
        now_s, under_way_bytes = self._clock.now_ms() / 1000, self._under_way_bytes
        found = await self._workers.run(
            lambda: tuple(
                Blob(path.name, stat.st_size, _age_s(stat, now_s))
                for path, stat in _files(self._folder, "[0-9a-f][0-9a-f]/*")
            )
        )
        # Counted anew each time: whoever shares the folder puts blobs there and sweeps them away, and does not say so here. What was kept
        # meanwhile is counted twice until the next time, rather than not at all.
        self._used_bytes = sum(blob.size_bytes for blob in found) + max(
            under_way_bytes, self._under_way_bytes
        )
        return found

    async def delete(self, sha256: str, *, older_than_s: float) -> bool:
        """Remove a blob unless it is younger than that by now; returns whether it is gone.

        A file that is old may be replaced by a new one of the same bytes before it can be removed, by a server that shares the folder. So
        what is removed is first had under a name that nobody else has, and put back where it is young after all. Who opens it in between
        tries again once (`read`); should this process die in between, or the disk take longer, there is no blob until the same bytes are
        put again. A `touch` in between comes too late, as one that comes just after the removal does.
        """
        path, now_s = self._path(sha256), self._clock.now_ms() / 1000
        aside = self._folder / PARTIAL / self._ids.new_id()

        def delete() -> tuple[bool, int]:
            # What is young now need not be taken away to be looked at.
            if _age_s(path.stat(), now_s) < older_than_s:
                return False, 0
            aside.parent.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            path.rename(aside)
            stat = aside.stat()
            is_old = _age_s(stat, now_s) >= older_than_s
            freed = stat.st_size
            if not is_old:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, path)
                    _sync_folder(path.parent)
                    freed = 0
            aside.unlink()
            return is_old, freed

        try:
            is_gone, freed = await self._workers.run(delete)
        except FileNotFoundError:
            return True
        self._used_bytes = None if self._used_bytes is None else max(0, self._used_bytes - freed)
        return is_gone

    async def clean(self, *, older_than_s: float) -> int:
        now_s = self._clock.now_ms() / 1000

        def clean() -> int:
            old = [
                path
                for path, stat in _files(self._folder, f"{PARTIAL}/*")
                if _age_s(stat, now_s) >= older_than_s
            ]
            for path in old:
                path.unlink(missing_ok=True)
            return len(old)

        return await self._workers.run(clean)

    def _path(self, sha256: str) -> Path:
        # The name comes from a request: only digits may become a path.
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise NotFound("the image's bytes are not here", sha256=sha256[:64])
        return self._folder / sha256[:2] / sha256

    # ------------------------------------------------------------------ for its uploads

    def take(self, size: int) -> None:
        """Count bytes that are about to be written. Raises TooMuch when there is no room."""
        used = (self._used_bytes or 0) + size
        if used > self._total_bytes:
            raise TooMuch("the image store is full", reason=Reason.TOO_LARGE, limit=self._total_bytes)
        self._used_bytes = used
        self._under_way_bytes += size

    def give_back(self, owner: str, size: int, freed: int) -> None:
        """An upload of this size is over; bytes that are no blob of their own are free again."""
        self._free(owner)
        self._under_way_bytes -= size
        self._used_bytes = max(0, (self._used_bytes or 0) - freed)

    def _free(self, owner: str) -> None:
        self._free_uploads += 1
        self._uploads_of[owner] -= 1
        if not self._uploads_of[owner]:
            del self._uploads_of[owner]

    async def run(self, work: Callable[[], T]) -> T:
        """Do something to a file."""
        return await self._workers.run(work)

    def place(self, sha256: str) -> Path:
        """Where a blob is to be."""
        return self._path(sha256)


class _FileUpload:
    def __init__(self, blobs: FileBlobs, owner: str, path: Path, file: BinaryIO) -> None:
        self._blobs = blobs
        self._owner = owner
        self._path = path
        self._file = file
        self._size = 0
        self._is_over = False

    async def write(self, data: bytes) -> None:
        self._blobs.take(len(data))
        self._size += len(data)
        await self._blobs.run(lambda: self._file.write(data))

    async def keep(self, sha256: str) -> None:
        place = self._blobs.place(sha256)

        def keep() -> bool:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            place.parent.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            was_there = place.exists()
            self._path.replace(place)
            _sync_folder(place.parent)
            return was_there

        was_there = await self._blobs.run(keep)
        self._end(self._size if was_there else 0)

    async def discard(self) -> None:
        if self._is_over:
            return

        def discard() -> None:
            self._file.close()
            self._path.unlink(missing_ok=True)

        try:
            await self._blobs.run(discard)
        except TooMuch:
            discard()  # a moment on the event loop costs less than bytes that nobody counts
        finally:
            self._end(self._size)

    def _end(self, freed: int) -> None:
        if not self._is_over:
            self._is_over = True
            self._blobs.give_back(self._owner, self._size, freed)


def _create(path: Path) -> BinaryIO:
    # The folder above too: where there is none yet, `parents` would make it for everybody to read.
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, PRIVATE_FILE))


def _open_at(path: Path, offset_bytes: int) -> BinaryIO:
    file = path.open("rb")
    file.seek(offset_bytes)
    return file


def _sync_folder(folder: Path) -> None:
    """Without this a rename may be forgotten by a power failure, though the file's bytes are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _age_s(stat: os.stat_result, now_s: float) -> float:
    """How old a file is. Never less than nothing: file systems count finer than the clock does, and a clock may be set back."""
    return max(0.0, now_s - stat.st_mtime)


def _files(folder: Path, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            yield path, path.stat()
