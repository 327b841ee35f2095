"""Image bytes on their way: cut into pieces, counted and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fabric.errors import InvalidRequest

PIECE_BYTES = 1024 * 1024
"""What the API takes as one piece of an upload."""

Progress = Callable[[int, int], object]
"""Told of the bytes that have passed, and of all. May be called from a thread of gRPC's."""


class Passing:
    """One file on its way up, and why it stopped where it was not sent to its end."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self._path = path
        self._progress = progress
        self.failure: OSError | None = None

    def pieces(self) -> Iterator[bytes]:
        """The file's bytes. A failure to read is raised, which breaks the upload off, and kept: gRPC only says that iterating failed."""
        try:
            with self._path.open("rb") as file:
                size = self._path.stat().st_size
                passed = 0
                while piece := file.read(PIECE_BYTES):
                    yield piece
                    passed += len(piece)
                    if self._progress is not None:
                        self._progress(passed, max(size, passed))
        except OSError as error:
            self.failure = error
            raise


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal. Raises InvalidRequest where it cannot be read."""
    digest = hashlib.sha256()
    try:
        read_into(path, digest.update)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}", field="file") from None
    return digest.hexdigest()


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
