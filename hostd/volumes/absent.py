"""`Volumes` of a directory that this host is not set to share: out of reach, whatever is asked."""

from __future__ import annotations

from typing import Final, NoReturn

from fabric.model.volume import GuestVolume
from hostd.core.faults import FaultCode, fault_text
from hostd.driver.base import DiskFile
from hostd.volumes.base import VolumeError


class AbsentVolumes:
    """Nothing is made, looked at or removed here; whoever asks is told so."""

    async def ensure(
        self, volume: GuestVolume, owner: int | None, source: DiskFile | None = None
    ) -> DiskFile:
        _refuse()

    async def is_unmade(self, volume_id: str) -> bool:
        return False

    async def grow(self, volume_id: str, size_gib: int) -> None:
        _refuse()

    async def remove(self, volume_id: str) -> None:
        _refuse()

    async def held(self) -> frozenset[str]:
        _refuse()

    def path(self, volume_id: str) -> str:
        _refuse()


def _refuse() -> NoReturn:
    code = FaultCode.VOLUME_UNREACHABLE
    raise VolumeError(code, fault_text(code, "it is not set to share that directory"))


NOT_SHARED: Final = AbsentVolumes()
