"""Disks of a simulated machine: the folders and cached images of a `FakeMachine`, without a byte on a real disk."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TypeVar

from fabric.model.instance import Guest, ImageRef
from hostd.core.faults import FaultCode, fault_text
from hostd.driver.base import DiskFile
from hostd.driver.fake import FakeCopy, FakeMachine, MachineEvent
from hostd.images.base import DiskCopy, DiskError, Fetch, GuestDisks, Held
from hostd.images.fake_qcow2 import unwrap, wrap

_T = TypeVar("_T")
_GIB = 1 << 30
_CHUNK = 4096


class FakeDisks:
    """`Disks` on a `FakeMachine`. Downloads belong to the daemon and die with it; files belong to the machine."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine
        self._downloads: dict[str, asyncio.Lock] = {}

    async def ensure_image(self, image: ImageRef, fetch: Fetch, progress: Callable[[int], None]) -> None:
        async with self._downloads.setdefault(image.sha256, asyncio.Lock()):
            if image.sha256 in self._machine.images:
                progress(100)
                return
            digest = hashlib.sha256()
            received = 0
            data = bytearray()
            async for chunk in fetch(image):
                digest.update(chunk)
                data += chunk
                received += len(chunk)
                if received > image.size_bytes:
                    raise _error(FaultCode.IMAGE_CORRUPT, "there are more bytes than its record says")
                progress(min(99, 100 * received // max(image.size_bytes, 1)))
                await asyncio.sleep(self._machine.delays.image_chunk_s)
            if digest.hexdigest() != image.sha256:
                raise _error(FaultCode.IMAGE_CORRUPT)

            def store() -> None:
                self._machine.images[image.sha256] = max(image.virtual_size_bytes, received)
                self._machine.image_data[image.sha256] = unwrap(bytes(data))

            await self._do(f"image/{image.sha256}", "ensure_image", store)
            progress(100)

    def image_file(self, image: ImageRef) -> DiskFile:
        return DiskFile(path=f"/fake/cache/{image.sha256}", format="raw", serial="", readonly=True)

    async def ensure_guest(self, guest: Guest, placement_epoch: int, *, made: bool = False) -> GuestDisks:
        held = Held(guest.id, placement_epoch)

        def make() -> GuestDisks:
            existing = self._machine.folders.get(held)
            if existing is not None:
                # What it boots from may be another disk now; the root disk stays.
                self._machine.folders[held] = _with_root_of(existing, _describe(guest, placement_epoch))
                return self._machine.folders[held]
            if made:
                raise _error(FaultCode.DISK_LOST)
            if any(image.sha256 not in self._machine.images for image in guest.images()):
                raise _error(FaultCode.IMAGE_UNAVAILABLE, "it is not in the cache")
            image = guest.image
            if image is not None and guest.disk_gib and image.virtual_size_bytes > guest.disk_gib * _GIB:
                raise _error(FaultCode.IMAGE_TOO_LARGE)
            disks = _describe(guest, placement_epoch)
            self._machine.folders[held] = disks
            if image is not None:
                self._machine.disk_bytes[held] = guest.disk_gib * _GIB or image.virtual_size_bytes
                self._machine.written[held] = self._machine.image_data[image.sha256]
            self._happened("files_made", held)
            return disks

        return await self._do(f"folder/{guest.id}", "ensure_guest", make)

    async def owner(self, instance_id: str, placement_epoch: int) -> int | None:
        def look() -> None:
            if Held(instance_id, placement_epoch) not in self._machine.folders:
                raise _error(FaultCode.DISK_LOST)

        return await self._do("folders", "owner", look)

    async def remove(self, instance_id: str, placement_epoch: int) -> None:
        def drop() -> None:
            for held in sorted(self._machine.folders):
                if held.instance_id == instance_id and held.placement_epoch <= placement_epoch:
                    del self._machine.folders[held]
                    self._machine.consoles.pop(held, None)
                    self._machine.written.pop(held, None)
                    self._machine.disk_bytes.pop(held, None)
                    self._drop_copies(held)
                    self._happened("files_removed", held)

        await self._do(f"folder/{instance_id}", "remove", drop)

    async def find_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> DiskCopy | None:
        held = Held(instance_id, placement_epoch)

        def look() -> DiskCopy | None:
            made = self._machine.copies.get((held, action_seq))
            return self._described(held, made) if made is not None and made.is_sealed else None

        return await self._do(f"folder/{instance_id}", "find_copy", look)

    async def begin_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> DiskFile:
        held = Held(instance_id, placement_epoch)

        def begin() -> DiskFile:
            if held not in self._machine.folders:
                raise _error(FaultCode.DISK_LOST)
            self._drop_copies(held)
            path = f"/fake/{instance_id}.{placement_epoch}/copy.{action_seq}.qcow2"
            self._machine.copies[held, action_seq] = FakeCopy(path)
            return DiskFile(path=path, format="qcow2", serial="")

        return await self._do(f"folder/{instance_id}", "begin_copy", begin)

    async def copy_root(self, instance_id: str, placement_epoch: int, action_seq: int) -> None:
        held = Held(instance_id, placement_epoch)

        def copy() -> None:
            made = self._machine.copies.get((held, action_seq))
            if made is None:
                raise _error(FaultCode.SNAPSHOT_FAILED)
            made.data = self._machine.written.get(held, b"")

        await self._do(f"folder/{instance_id}", "copy_root", copy)

    async def seal_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> DiskCopy:
        held = Held(instance_id, placement_epoch)

        def seal() -> DiskCopy:
            made = self._machine.copies.get((held, action_seq))
            if made is None or made.data is None:
                raise _error(FaultCode.SNAPSHOT_FAILED)
            made.is_sealed = True
            return self._described(held, made)

        return await self._do(f"folder/{instance_id}", "seal_copy", seal)

    async def read_copy(
        self, instance_id: str, placement_epoch: int, action_seq: int
    ) -> AsyncIterator[bytes]:
        held = Held(instance_id, placement_epoch)
        made = self._machine.copies.get((held, action_seq))
        if made is None or not made.is_sealed:
            raise _error(FaultCode.SNAPSHOT_FAILED)
        image = self._image(held, made)
        for start in range(0, len(image), _CHUNK):
            await asyncio.sleep(self._machine.delays.image_chunk_s)
            yield image[start : start + _CHUNK]

    async def drop_copies(self, instance_id: str, placement_epoch: int) -> None:
        await self._do(
            f"folder/{instance_id}",
            "drop_copies",
            lambda: self._drop_copies(Held(instance_id, placement_epoch)),
        )

    async def held(self) -> frozenset[Held]:
        return await self._do("folders", "held", lambda: frozenset(self._machine.folders))

    async def console_log(self, instance_id: str, placement_epoch: int, tail_bytes: int) -> bytes:
        def read() -> bytes:
            written = self._machine.consoles.get(Held(instance_id, placement_epoch), b"")
            return written[max(0, len(written) - tail_bytes) :]

        return await self._do("folders", "console_log", read)

    async def free_gib(self) -> int:
        def count() -> int:
            used = sum(self._machine.images.values()) // _GIB
            return max(0, self._machine.total.disk_gib - self._machine.used().disk_gib - used)

        return await self._do("folders", "free_gib", count)

    async def prune(self, in_use: frozenset[str]) -> None:
        def drop() -> None:
            for sha256 in sorted(set(self._machine.images) - in_use - self._pinned()):
                del self._machine.images[sha256]

        await self._do("images", "prune", drop)

    def _drop_copies(self, held: Held) -> None:
        for key in [each for each in self._machine.copies if each[0] == held]:
            del self._machine.copies[key]

    def _image(self, held: Held, made: FakeCopy) -> bytes:
        return wrap(made.data or b"", self._machine.disk_bytes[held])

    def _described(self, held: Held, made: FakeCopy) -> DiskCopy:
        image = self._image(held, made)
        return DiskCopy(
            sha256=hashlib.sha256(image).hexdigest(),
            size_bytes=len(image),
            virtual_size_bytes=self._machine.disk_bytes[held],
        )

    def _happened(self, kind: str, held: Held) -> None:
        self._machine.record(
            MachineEvent(
                host=self._machine.name,
                kind=kind,
                instance_id=held.instance_id,
                placement_epoch=held.placement_epoch,
            )
        )

    def _pinned(self) -> set[str]:
        """The images beneath guests' disks."""
        paths: set[str] = set()
        for made in self._machine.folders.values():
            paths |= {made.kernel_path, made.ramdisk_path}
            paths |= {disk.backing.path for disk in made.disks if disk.backing is not None}
        return {path.rpartition("/")[2] for path in paths}

    async def _do(self, lock: str, step: str, work: Callable[[], _T]) -> _T:
        def checked() -> _T:
            fault = self._machine.pop_fault(step)
            if fault is not None:
                raise _error(fault)
            return work()

        return await self._machine.operate(
            lock,
            self._machine.delays.disk_s,
            checked,
            lambda: _error(FaultCode.DISK_FAILED, "the host lost power"),
        )


def _describe(guest: Guest, placement_epoch: int) -> GuestDisks:
    folder = f"/fake/{guest.id}.{placement_epoch}"
    disks: tuple[DiskFile, ...] = ()
    if guest.image is not None:
        base = DiskFile(path=f"/fake/cache/{guest.image.sha256}", format="raw", serial="", readonly=True)
        backing = None if guest.standalone else base
        disks = (DiskFile(path=f"{folder}/root.qcow2", format="qcow2", serial="root", backing=backing),)
    if guest.config_drive:
        disks = (
            *disks,
            DiskFile(path=f"{folder}/config.iso", format="raw", serial="config-2", readonly=True),
        )
    if guest.rescue is not None:
        beneath = DiskFile(
            path=f"/fake/cache/{guest.rescue.image.sha256}", format="raw", serial="", readonly=True
        )
        rescue = DiskFile(path=f"{folder}/rescue.qcow2", format="qcow2", serial="rescue", backing=beneath)
        disks = (rescue, *disks)
    booted = guest.booted()
    return GuestDisks(
        disks=disks,
        kernel_path=f"/fake/cache/{booted.kernel.sha256}" if booted.kernel else "",
        ramdisk_path=f"/fake/cache/{booted.ramdisk.sha256}" if booted.ramdisk else "",
        console_log_path=f"{folder}/console.log",
    )


def _with_root_of(existing: GuestDisks, now: GuestDisks) -> GuestDisks:
    roots = {disk.serial: disk for disk in existing.disks if disk.serial == "root"}
    return replace(now, disks=tuple(roots.get(disk.serial, disk) for disk in now.disks))


def _error(code: FaultCode, detail: str = "") -> DiskError:
    return DiskError(code, fault_text(code, detail))
