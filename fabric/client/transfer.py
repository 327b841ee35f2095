"""Image bytes on their way: cut into pieces, counted and hashed while they pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fabric.errors import InvalidRequest

PIECE_BYTES = 1024 * 1024
"""What the API takes as one piece of an upload."""

Progress = Callable[[int, int], None]
"""Told of the bytes that have passed, and of all. May be called from a thread of gRPC's."""


class Passing:
    """One file on its way up: what of it was read, and its SHA-256."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self._path = path
        self._progress = progress
        self._digest = hashlib.sha256()
        self.passed = 0
        self.failure: OSError | None = None

    @property
    def sha256(self) -> str:
        """Of what has passed so far, hexadecimal."""
        return self._digest.hexdigest()

    def pieces(self) -> Iterator[bytes]:
        """The file's bytes. A failure to read is raised, which breaks the upload off, and kept: gRPC only says that iterating failed."""
        try:
            with self._path.open("rb") as file:
                size = self._path.stat().st_size
                while piece := file.read(PIECE_BYTES):
                    self._digest.update(piece)
                    yield piece
                    self.passed += len(piece)
                    if self._progress is not None:
                        self._progress(self.passed, max(size, self.passed))
        except OSError as error:
            self.failure = error
            raise


def part_path(target: Path, image_id: str) -> Path:
    """Where an image's bytes gather until all of them are there and right. An image never changes, so its id makes them resumable."""
    return target.with_name(f".{target.name}.{image_id}.part")


def read_into(path: Path, take: Callable[[bytes], object]) -> int:
    """Give all bytes of a file to `take`, in pieces; how many they were."""
    size = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            take(piece)
            size += len(piece)
    return size


def readable(path: Path) -> Path:
    """`path`, if it is a file that can be read. Raises InvalidRequest."""
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}", field="file") from None
