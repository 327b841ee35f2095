"""Volumes of a simulated machine: they are the `FakeMachine`'s, and outlive its daemons and its power."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fabric.ids import is_id
from fabric.model.volume import GuestVolume
from hostd.core.faults import FaultCode, fault_text
from hostd.driver.base import DiskFile
from hostd.driver.fake import FakeMachine, FakeShelf, MachineEvent
from hostd.resources.tracker import GIB
from hostd.volumes.base import VolumeError

_T = TypeVar("_T")


class FakeVolumes:
    """`Volumes` on a `FakeMachine`: its own, or those of a directory that it shares."""

    def __init__(self, machine: FakeMachine, directory: str = "") -> None:
        self._machine = machine
        shelf = machine.shelves[directory] if directory else FakeShelf(machine.volumes, machine.volume_data)
        self._sizes, self._data = shelf.sizes, shelf.data
        self._folder = f"/fake/shared/{directory}" if directory else "/fake/volumes"

    async def ensure(
        self, volume: GuestVolume, owner: int | None, source: DiskFile | None = None
    ) -> DiskFile:
        path = self.path(volume.id)

        def make() -> None:
            before_gib = self._sizes.get(volume.id, 0)
            if before_gib < 0:
                raise _error(FaultCode.VOLUME_LOST)
            if volume.id not in self._sizes and source is not None:
                self._copy(source, volume)
            if volume.id not in self._sizes:
                self._happened("volume_made", volume.id)
            self._sizes[volume.id] = max(before_gib, volume.size_gib)

        await self._do(volume.id, "ensure_volume", make)
        return DiskFile(path=path, format="raw", serial=volume.serial)

    async def is_unmade(self, volume_id: str) -> bool:
        return await self._do(volume_id, "look_at_volume", lambda: volume_id not in self._sizes)

    async def grow(self, volume_id: str, size_gib: int) -> None:
        def enlarge() -> None:
            before_gib = self._sizes.get(volume_id, -1)
            if before_gib < 0:
                raise _error(FaultCode.VOLUME_LOST)
            self._sizes[volume_id] = max(before_gib, size_gib)

        await self._do(volume_id, "grow_volume", enlarge)

    async def remove(self, volume_id: str) -> None:
        def drop() -> None:
            if self._sizes.pop(volume_id, None) is not None:
                self._happened("volume_removed", volume_id)
            self._data.pop(volume_id, None)

        await self._do(volume_id, "remove_volume", drop)

    async def held(self) -> frozenset[str]:
        return await self._do("", "held_volumes", lambda: frozenset(self._sizes))

    def path(self, volume_id: str) -> str:
        if not is_id(volume_id):
            raise _error(FaultCode.DISK_FAILED, "the volume's id is not a UUID")
        return f"{self._folder}/{volume_id}.raw"

    def _happened(self, kind: str, volume_id: str) -> None:
        self._machine.record(MachineEvent(host=self._machine.name, kind=kind, instance_id=volume_id))

    def _copy(self, source: DiskFile, volume: GuestVolume) -> None:
        sha256 = source.path.rpartition("/")[2]
        if sha256 not in self._machine.images:
            raise _error(FaultCode.IMAGE_UNAVAILABLE)
        if self._machine.images[sha256] > volume.size_gib * GIB:
            raise _error(FaultCode.IMAGE_TOO_LARGE)
        self._data[volume.id] = self._machine.image_data[sha256]

    async def _do(self, lock: str, step: str, work: Callable[[], _T]) -> _T:
        def checked() -> _T:
            fault = self._machine.pop_fault(step)
            if fault is not None:
                raise _error(fault)
            return work()

        return await self._machine.operate(
            f"volume/{lock}",
            self._machine.delays.disk_s,
            checked,
            lambda: _error(FaultCode.DISK_FAILED, "the host lost power"),
        )


def _error(code: FaultCode, detail: str = "") -> VolumeError:
    return VolumeError(code, fault_text(code, detail))
