"""`Volumes` as files below one folder.

    ROOT/ID.raw     the disk: flat, sparse, readable to the guest's own user id and to nobody else
    ROOT/ID.made    says that the disk was made once: where only this is left, data is lost, and nobody makes an empty one in its stead

A flat file has no header, so nothing that a guest writes to its beginning can be taken for one: the format is said to the hypervisor, and
there is nothing underneath. Needs root to give files away; without, everything belongs to whoever runs this.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from fabric.ids import is_id
from fabric.model.volume import GuestVolume
from hostd.core.faults import FaultCode, fault_text
from hostd.driver.base import DiskFile
from hostd.images.qemu_img import QemuImg
from hostd.images.storage import publish
from hostd.processes import ProgramFailed
from hostd.resources.tracker import GIB, measure_free_gib
from hostd.volumes.base import VolumeError

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_DISK: Final = ".raw"
_MADE: Final = ".made"


class _GivenUp(Exception):
    """Nobody wants any more what a thread is at."""


class FileVolumes:
    """`Volumes` below one folder of this host. One process at a time.

    `threads` are what its files are handled with: the loop's own, for None.
    """

    def __init__(self, root: Path, *, threads: Executor | None = None) -> None:
        self._root = root
        self._threads = threads
        self._is_root = os.geteuid() == 0
        self._locks: dict[str, asyncio.Lock] = {}
        self._given_up: dict[str, asyncio.Future[Any]] = {}

    async def ensure(
        self, volume: GuestVolume, owner: int | None, source: DiskFile | None = None
    ) -> DiskFile:
        user = owner if self._is_root else None
        async with self._alone(volume.id):
            with volume_faults("ensure"):
                part = await self._change(volume.id, lambda check: self._begin(volume, user, source, check))
                if part is not None and source is not None:
                    # By the guest's own user, into its own file: nothing of another's is within reach of what reads the image.
                    await QemuImg(user).flatten(Path(source.path), source.format, part)
                await self._change(volume.id, lambda check: self._finish(volume, user, part, check))
        return DiskFile(path=self.path(volume.id), format="raw", serial=volume.serial)

    async def is_unmade(self, volume_id: str) -> bool:
        return await self._in_thread(lambda: self._is_unmade(Path(self.path(volume_id))))

    async def grow(self, volume_id: str, size_gib: int) -> None:
        async with self._alone(volume_id):
            with volume_faults("grow"):
                await self._in_thread(lambda: self._grow(Path(self.path(volume_id)), size_gib))

    async def remove(self, volume_id: str) -> None:
        async with self._alone(volume_id):
            with volume_faults("remove"):
                await self._in_thread(lambda: self._remove(Path(self.path(volume_id))))
        self._locks.pop(volume_id, None)

    async def held(self) -> frozenset[str]:
        with volume_faults("held"):
            return frozenset(await self._in_thread(lambda: tuple(self._held())))

    def path(self, volume_id: str) -> str:
        if not is_id(volume_id):
            raise volume_error(FaultCode.DISK_FAILED, "the volume's id is not a UUID")
        return str(self._root / f"{volume_id}{_DISK}")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @contextlib.asynccontextmanager
    async def _alone(self, volume_id: str) -> AsyncIterator[None]:
        """Have the volume for oneself: nobody else changes it, not even a thread whose work was given up."""
        async with self._locks.setdefault(volume_id, asyncio.Lock()):
            while (before := self._given_up.get(volume_id)) is not None:
                await asyncio.wait({before})
                self._given_up.pop(volume_id, None)
            yield

    async def _change(self, volume_id: str, work: Callable[[Callable[[], None]], T]) -> T:
        """Do what changes a volume's files, in a thread.

        What is given up may be in a call that returns hours later, when the directory is back and the volume another host's. So `work` is
        given a check to make before each change, which raises once nobody wants it any more.
        """
        is_given_up = threading.Event()

        def check() -> None:
            if is_given_up.is_set():
                raise _GivenUp

        doing = asyncio.get_running_loop().run_in_executor(self._threads, partial(work, check))
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            is_given_up.set()
            if not doing.done():
                self._given_up[volume_id] = doing
            raise

    # ---------------------------------------------------------------- for those who keep them elsewhere

    def prepare(self) -> None:
        """Have the folder. Raises VolumeError, OSError."""
        self._root.mkdir(parents=True, exist_ok=True)
        # Searchable, because each guest's hypervisor runs as a user of its own; listed by nobody else.
        self._root.chmod(0o711)

    def check(self) -> None:
        """See that the folder is what it should be. Raises VolumeError."""

    # ------------------------------------------------------------------ on the disk

    def _begin(
        self, volume: GuestVolume, user: int | None, source: DiskFile | None, check: Callable[[], None]
    ) -> Path | None:
        """The empty file that the disk is to be made in, the user's own; None where it was made before."""
        self.check()
        self.prepare()
        path = Path(self.path(volume.id))
        if path.exists():
            return None
        if path.with_suffix(_MADE).exists():
            raise volume_error(FaultCode.VOLUME_LOST)
        if source is not None:
            self._check_source(Path(source.path), volume.size_gib)
        part = path.with_suffix(".part")
        check()
        part.unlink(missing_ok=True)
        check()
        part.touch(mode=0o600)
        if user is not None:
            check()
            os.chown(part, user, user)
        return part

    def _check_source(self, source: Path, size_gib: int) -> None:
        try:
            found = source.stat()
        except FileNotFoundError:
            raise volume_error(FaultCode.IMAGE_UNAVAILABLE) from None
        if found.st_size > size_gib * GIB:
            raise volume_error(FaultCode.IMAGE_TOO_LARGE)
        if measure_free_gib(self._root) * GIB < found.st_blocks * 512:
            raise volume_error(FaultCode.DISK_FULL)

    def _finish(
        self, volume: GuestVolume, user: int | None, part: Path | None, check: Callable[[], None]
    ) -> None:
        """The disk, whole under its name, as large as it is to be, and the user's."""
        path = Path(self.path(volume.id))
        self._grow(part or path, volume.size_gib, check)
        if part is not None:
            publish(part, path, check=check)
        if user is not None and path.stat().st_uid != user:
            check()
            os.chown(path, user, user)
        check()
        path.chmod(0o600)
        check()
        # Last, and before anybody can have written to the disk: what is marked made has been whole.
        path.with_suffix(_MADE).touch(mode=0o600)

    def _is_unmade(self, path: Path) -> bool:
        try:
            self.check()
            return not path.exists() and not path.with_suffix(_MADE).exists()
        except (VolumeError, OSError):
            return False

    def _grow(self, path: Path, size_gib: int, check: Callable[[], None] = lambda: None) -> None:
        try:
            now_bytes = path.stat().st_size
        except FileNotFoundError:
            raise volume_error(FaultCode.VOLUME_LOST) from None
        more_bytes = size_gib * GIB - now_bytes
        if more_bytes > 0:
            # Sparse: room is taken as the guest writes. One that could never fit is refused here, where it can be said.
            if measure_free_gib(self._root) * GIB < more_bytes:
                raise volume_error(FaultCode.DISK_FULL)
            check()
            os.truncate(path, size_gib * GIB)

    def _remove(self, path: Path) -> None:
        self.check()
        for suffix in (".part", _DISK, _MADE):
            path.with_suffix(suffix).unlink(missing_ok=True)

    def _held(self) -> Iterator[str]:
        self.check()
        if not self._root.is_dir():
            return
        for path in sorted(self._root.iterdir()):
            if path.suffix in {_DISK, _MADE, ".part"} and is_id(path.stem):
                yield path.stem


def volume_error(code: FaultCode, detail: str = "") -> VolumeError:
    """The error with the code's own words."""
    return VolumeError(code, fault_text(code, detail))


@contextlib.contextmanager
def volume_faults(step: str) -> Iterator[None]:
    """Turn what goes wrong with files and qemu-img into VolumeErrors; their words go to the log only."""
    try:
        yield
    except OSError as error:
        _log.warning("volume.failed", step=step, words=str(error))
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise volume_error(FaultCode.DISK_FULL if full else FaultCode.DISK_FAILED) from error
    except ProgramFailed as error:
        _log.warning("volume.failed", step=step, program=error.program, words=str(error))
        full = "No space left on device" in error.words
        raise volume_error(FaultCode.DISK_FULL if full else FaultCode.DISK_FAILED) from error
