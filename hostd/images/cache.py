"""The images of this host's guests, each once, verified, flat.

A disk image is kept as a raw file with holes: a guest's reads go through one format less, and its hypervisor never parses a
header that a stranger made. A file's name is the SHA-256 of the bytes it was made from; a name without `.part` is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from fabric.clock import Clock
from fabric.model.image import ImageFormat
from fabric.model.instance import ImageRef
from hostd.core.faults import FaultCode
from hostd.core.qcow2 import HEADER_BYTES, UnsafeImage, inspect
from hostd.driver.base import DiskFile
from hostd.images.base import Fetch
from hostd.images.qemu_img import QemuImg
from hostd.images.storage import disk_error, disk_faults, publish, to_its_end

_log = structlog.get_logger(__name__)

_DISKS: Final = frozenset({ImageFormat.RAW, ImageFormat.QCOW2})
_AT_ONCE: Final = 4
"""Images that are fetched, or made flat, at the same time."""
_DOWNLOAD_SHARE: Final = 90
"""Percent of the progress that the download is; the rest is checking and flattening."""


class ImageCache:
    """Cached images below one folder. `user` owns them and reads them for qemu-img; None for whoever runs this."""

    def __init__(self, folder: Path, *, user: int | None, clock: Clock, max_age_s: float) -> None:
        self._folder = folder
        self._user = user
        self._clock = clock
        self._max_age_s = max_age_s
        self._qemu_img = QemuImg(user)
        self._downloads: dict[str, asyncio.Lock] = {}
        self._bringing = asyncio.Semaphore(_AT_ONCE)

    def path(self, image: ImageRef) -> Path:
        """Where the image is, or would be."""
        return self._folder / f"{image.sha256}.{'raw' if image.format in _DISKS else 'bin'}"

    def base(self, image: ImageRef) -> DiskFile:
        """The image as the bottom of an overlay."""
        return DiskFile(path=str(self.path(image)), format="raw", serial="", readonly=True)

    def named(self, name: str) -> DiskFile:
        """A cached disk image, by its file's name, as the bottom of an overlay."""
        return DiskFile(path=str(self._folder / name), format="raw", serial="", readonly=True)

    async def ensure(self, image: ImageRef, fetch: Fetch, progress: Callable[[int], None]) -> None:
        """Have the image here: see `Disks.ensure_image`."""
        lock = self._downloads.setdefault(image.sha256, asyncio.Lock())
        async with lock:
            if not self._touch(image):
                async with self._bringing:
                    await self._bring(image, fetch, progress)
            progress(100)

    def has(self, image: ImageRef) -> bool:
        """Whether the image is here, whole."""
        return self.path(image).exists()

    def pin(self, image: ImageRef, folder: Path) -> None:
        """Keep the image for as long as the folder is there, whatever lists of images in use may say: by a hard link."""
        with contextlib.suppress(FileExistsError):
            os.link(self.path(image), folder / f"{self.path(image).name}.used")

    def prune(self, in_use: frozenset[str]) -> None:
        """Drop what no guest here uses and nobody asked for within the age limit. Blocks."""
        if not self._folder.is_dir():
            return
        oldest_s = self._clock.now_ms() / 1000 - self._max_age_s
        for path in self._folder.iterdir():
            lock = self._downloads.get(path.name.partition(".")[0])
            idle = lock is None or not lock.locked()
            found = path.stat()
            pinned = found.st_nlink > 1
            listed = path.name.partition(".")[0] in in_use
            if idle and not listed and not pinned and found.st_mtime <= oldest_s:
                path.unlink(missing_ok=True)
                _log.info("image.pruned", file=path.name)

    def _touch(self, image: ImageRef) -> bool:
        """Note that the image was asked for; False where it is not here."""
        now_s = self._clock.now_ms() / 1000
        try:
            os.utime(self.path(image), (now_s, now_s))
        except FileNotFoundError:
            return False
        return True

    async def _bring(self, image: ImageRef, fetch: Fetch, progress: Callable[[int], None]) -> None:
        download = self._folder / f"{image.sha256}.download.part"
        flat = self._folder / f"{image.sha256}.flat.part"
        with disk_faults("image"):
            self._folder.mkdir(parents=True, exist_ok=True)
            # Guests' hypervisors open what is in here, whatever umask this daemon was started with.
            self._folder.chmod(0o755)
            if shutil.disk_usage(self._folder).free < image.size_bytes:
                raise disk_error(FaultCode.DISK_FULL)
        try:
            await self._download(image, fetch, download, progress)
            whole = download
            if image.format in _DISKS:
                whole = await self._flatten(image, download, flat)
            with disk_faults("image"):
                await to_its_end(partial(self._publish, whole, self.path(image)))
        finally:
            for part in (download, flat):
                with contextlib.suppress(OSError):
                    part.unlink()
        self._touch(image)
        _log.info("image.cached", image=image.id, sha256=image.sha256, size_bytes=image.size_bytes)

    async def _download(
        self, image: ImageRef, fetch: Fetch, target: Path, progress: Callable[[int], None]
    ) -> None:
        digest = hashlib.sha256()
        received = 0
        with disk_faults("image"):
            file = target.open("wb")
        try:
            async for chunk in fetch(image):
                received += len(chunk)
                if received > image.size_bytes:
                    raise disk_error(FaultCode.IMAGE_CORRUPT, "there are more bytes than its record says")
                with disk_faults("image"):
                    await to_its_end(partial(_append, file, digest, chunk))
                progress(_DOWNLOAD_SHARE * received // max(image.size_bytes, 1))
        finally:
            # In a thread too: it writes what is left, after whoever still writes.
            with disk_faults("image"):
                await to_its_end(file.close)
        if digest.hexdigest() != image.sha256:
            raise disk_error(FaultCode.IMAGE_CORRUPT)

    async def _flatten(self, image: ImageRef, source: Path, target: Path) -> Path:
        """The image as a flat file; a raw one is that already, with its zeros for holes where it was sent with."""
        try:
            size_bytes = _virtual_size(source, image.format)
        except UnsafeImage as error:
            _log.warning("image.rejected", image=image.id, reason=str(error))
            raise disk_error(FaultCode.IMAGE_REJECTED) from error
        if size_bytes != image.virtual_size_bytes:
            raise disk_error(FaultCode.IMAGE_REJECTED, "its virtual size is another than recorded")
        with disk_faults("image", FaultCode.IMAGE_REJECTED):
            self._give(source, target)
            source_format = "raw" if image.format is ImageFormat.RAW else "qcow2"
            await self._qemu_img.flatten(source, source_format, target)
        return target

    def _give(self, source: Path, target: Path) -> None:
        """Let qemu-img read the one and write the other, which is made."""
        target.touch(mode=0o600)
        if self._user is not None:
            os.chown(source, self._user, self._user)
            os.chown(target, self._user, self._user)

    @staticmethod
    def _publish(part: Path, target: Path) -> None:
        """Readable to every guest's hypervisor and writable to none: they share it."""
        if os.geteuid() == 0:
            os.chown(part, 0, 0)
        part.chmod(0o444)
        publish(part, target)


def _append(file: BinaryIO, digest: hashlib._Hash, chunk: bytes) -> None:
    file.write(chunk)
    digest.update(chunk)


def _virtual_size(path: Path, image_format: ImageFormat) -> int:
    if image_format is ImageFormat.RAW:
        return path.stat().st_size
    with path.open("rb") as file:
        return inspect(file.read(HEADER_BYTES)).virtual_size_bytes
