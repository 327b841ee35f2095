"""Copies of root disks, which are handed in as images: made under one name, whole under another.

    STATE/instances/ID.EPOCH/copy.SEQ.part      being made: the guest's own user may write it
    STATE/instances/ID.EPOCH/copy.SEQ.qcow2     sealed: only this daemon reads it

A root disk's header is its guest's to write, if the guest got out of its hypervisor. So nothing is believed that it says but its size,
which others check: what is beneath the disk is told to qemu-img, and qemu-img runs as the guest's user.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from hostd.core.faults import FaultCode
from hostd.core.qcow2 import HEADER_BYTES, UnsafeImage, inspect, virtual_size
from hostd.driver.base import DiskFile
from hostd.images.base import DiskCopy
from hostd.images.qemu_img import QemuImg
from hostd.images.storage import disk_error, disk_faults, publish, to_its_end

_log = structlog.get_logger(__name__)

ROOT: Final = "root.qcow2"
"""The name of a root disk in its placement's folder."""

_PIECE_BYTES: Final = 1 << 20
_SPARE_BYTES: Final = 64 << 20
"""What a copy leaves free at least: guests write to the same disk meanwhile."""

ABANDONED_S: Final = 6 * 3600.0
"""A copy that nobody has written to for so long is nobody's: no snapshot takes as long."""


class Copies:
    """The copies in placements' folders. `root_of` tells what a folder's root disk is, with what is beneath it; it may block."""

    def __init__(self, root_of: Callable[[Path], DiskFile], *, is_root: bool) -> None:
        self._root_of = root_of
        self._is_root = is_root
        self._qemu_img = QemuImg(None)

    async def find(self, folder: Path, action_seq: int) -> DiskCopy | None:
        """See `Disks.find_copy`."""
        path = _sealed(folder, action_seq)
        if not path.exists():
            return None
        return await asyncio.to_thread(_described, path)

    async def begin(self, folder: Path, action_seq: int) -> DiskFile:
        """See `Disks.begin_copy`."""
        self.drop(folder)
        root = self._root(folder)
        size_bytes = virtual_size(_head(Path(root.path)))
        if shutil.disk_usage(folder).free < _most_bytes(root, size_bytes) + _SPARE_BYTES:
            raise disk_error(FaultCode.DISK_FULL)
        part = _part(folder, action_seq)
        part.touch(mode=0o600)
        owner = self._give(part, root)
        await self._qemu_img.create(part, size_bytes=size_bytes, owner=owner)
        return DiskFile(path=str(part), format="qcow2", serial="")

    async def copy(self, folder: Path, action_seq: int) -> None:
        """See `Disks.copy_root`."""
        root, part = self._root(folder), _part(folder, action_seq)
        await self._qemu_img.copy(root, part, owner=self._give(part, root))

    async def seal(self, folder: Path, action_seq: int) -> DiskCopy:
        """See `Disks.seal_copy`."""
        part, path = _part(folder, action_seq), _sealed(folder, action_seq)
        if self._is_root:
            os.chown(part, 0, 0)
        part.chmod(0o400)
        try:
            inspect(_head(part))
        except UnsafeImage as error:
            _log.warning("copy.unsafe", folder=folder.name, reason=str(error))
            raise disk_error(FaultCode.SNAPSHOT_FAILED) from error
        await to_its_end(partial(publish, part, path))
        return await asyncio.to_thread(_described, path)

    async def read(self, folder: Path, action_seq: int) -> AsyncIterator[bytes]:
        """See `Disks.read_copy`."""
        with disk_faults("copy", FaultCode.SNAPSHOT_FAILED):
            file = _sealed(folder, action_seq).open("rb")
        try:
            while True:
                with disk_faults("copy", FaultCode.SNAPSHOT_FAILED):
                    piece = await to_its_end(partial(file.read, _PIECE_BYTES))
                if not piece:
                    return
                yield piece
        finally:
            # In a thread too: it waits for whoever still reads.
            await to_its_end(file.close)

    @staticmethod
    def drop(folder: Path) -> None:
        """See `Disks.drop_copies`."""
        for path in folder.glob("copy.*"):
            path.unlink(missing_ok=True)

    @staticmethod
    def prune(folder: Path, *, now_s: float) -> None:
        """Drop what was left by a daemon that died over it, and that nobody asked for again."""
        for path in folder.glob("copy.*"):
            with contextlib.suppress(FileNotFoundError):
                if now_s - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()

    def _root(self, folder: Path) -> DiskFile:
        if not (folder / ROOT).exists():
            raise disk_error(FaultCode.DISK_LOST)
        return self._root_of(folder)

    def _give(self, part: Path, root: DiskFile) -> int | None:
        """Let the guest's user write the file; who that is, None where there are no such users."""
        if not self._is_root:
            return None
        owner = Path(root.path).stat().st_uid
        os.chown(part, owner, owner)
        return owner


def _part(folder: Path, action_seq: int) -> Path:
    return folder / f"copy.{action_seq}.part"


def _sealed(folder: Path, action_seq: int) -> Path:
    return folder / f"copy.{action_seq}.qcow2"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)


def _most_bytes(root: DiskFile, size_bytes: int) -> int:
    """The most that a copy of the disk may take: no more than there is in the disk and beneath it, and than the disk is large."""
    held = [Path(each.path) for each in (root, root.backing) if each is not None]
    return min(size_bytes, sum(path.stat().st_blocks * 512 for path in held))


def _described(path: Path) -> DiskCopy:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size_bytes = virtual_size(file.read(HEADER_BYTES))
        file.seek(0)
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return DiskCopy(sha256=digest.hexdigest(), size_bytes=path.stat().st_size, virtual_size_bytes=size_bytes)
