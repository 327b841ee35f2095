"""`Volumes` in a directory that several hosts mount (NFS, CephFS, …).

The files are those of `hostd/volumes/files.py`. What differs is that the directory may not be there: an empty mount point looks like a
directory without volumes, and whoever believed it would call them lost, or make empty ones. So it must hold a mark that an administrator
has put there, and without it nothing is done. That no two hosts open a volume is the control plane's to see to, and the hypervisor's
locks on the file besides.
"""

from __future__ import annotations

from pathlib import Path

from fabric.model.volume import SHARED_MARK
from hostd.core.faults import FaultCode
from hostd.volumes.files import FileVolumes, volume_error


class SharedVolumes(FileVolumes):
    """`Volumes` below a directory that other hosts mount too."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._mark = root / SHARED_MARK

    def prepare(self) -> None:
        """Nothing: the directory is the administrator's."""

    def check(self) -> None:
        if not self._mark.is_file():
            raise volume_error(FaultCode.VOLUME_UNREACHABLE, f"its directory has no file {SHARED_MARK}")
