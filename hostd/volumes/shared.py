"""`Volumes` in a directory that several hosts mount (NFS, CephFS, …).

The files are those of `hostd/volumes/files.py`. What differs is that the directory may not be there: an empty mount point looks like a
directory without volumes, and whoever believed it would call them lost, or make empty ones. So it must hold a mark that an administrator
has put there, and without it nothing is done. That no two hosts open a volume is the control plane's to see to, and the hypervisor's
locks on the file besides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fabric.model.volume import SHARED_MARK
from hostd.core.faults import FaultCode
from hostd.threads import DaemonThreads
from hostd.volumes.files import FileVolumes, volume_error

_THREADS: Final = 4


class SharedVolumes(FileVolumes):
    """`Volumes` below a directory that other hosts mount too.

    Its threads are its own: while the server of the directory is away they wait, and nothing else of this host waits with them, nor does
    the end of this process.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, threads=DaemonThreads(_THREADS, "shared-volumes"))
        self._mark = root / SHARED_MARK

    def prepare(self) -> None:
        """Nothing: the directory is the administrator's."""

    def check(self) -> None:
        if not self._mark.is_file():
            raise volume_error(FaultCode.VOLUME_UNREACHABLE, f"its directory has no file {SHARED_MARK}")
