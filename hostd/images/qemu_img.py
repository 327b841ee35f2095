"""qemu-img, never without an explicit format, always confined.

Left to itself it believes a file's first bytes, and a guest writes those of a raw disk (CVE-2026-24708, CVE-2024-44082).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostd.driver.base import DiskFile
from hostd.processes import Confinement, run

_CONVERT_CPU_S: Final = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskInfo:
    """What qemu-img says about a disk file."""

    format: str
    virtual_size_bytes: int


class QemuImg:
    """The few things we ask of qemu-img. Every method raises ProgramFailed.

    `user` is whom it runs as, None for ourselves: files must be that user's to read, and to write where they are written.
    """

    def __init__(self, user: int | None) -> None:
        self._user = user

    async def info(self, path: Path, disk_format: str, *, owner: int | None) -> DiskInfo:
        """Look at a disk that may be in use (-U takes no lock), as its owner: what is in it is the owner's to write."""
        command = ("qemu-img", "info", "-U", "--output=json", "-f", disk_format, str(path))
        document = json.loads(await run(*Confinement(owner).command(*command)))
        return DiskInfo(format=document["format"], virtual_size_bytes=int(document["virtual-size"]))

    async def flatten(self, source: Path, source_format: str, target: Path) -> None:
        """Copy an image into `target`, which exists and is empty, as a raw disk with holes."""
        command = ("qemu-img", "convert", "-f", source_format, "-O", "raw", str(source), str(target))
        confined = Confinement(self._user, cpu_s=_CONVERT_CPU_S).command(*command)
        await run(*confined, timeout_s=2 * _CONVERT_CPU_S)

    async def create(self, path: Path, *, size_bytes: int, owner: int | None) -> None:
        """Make an empty qcow2 disk in `path`, which exists and is the owner's."""
        command = ("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size_bytes))
        await run(*Confinement(owner).command(*command))

    async def copy(self, disk: DiskFile, target: Path, *, owner: int | None) -> None:
        """Copy a disk that is not in use, with what is beneath it, into `target`, which exists, as a qcow2 that stands by itself.

        The chain is told, never read from a header: that is the guest's to write.
        """
        source = f"json:{json.dumps(_chain(disk))}"
        command = ("qemu-img", "convert", "-f", disk.format, "-O", "qcow2", source, str(target))
        await run(*Confinement(owner, cpu_s=_CONVERT_CPU_S).command(*command), timeout_s=2 * _CONVERT_CPU_S)

    async def make_whole(self, source: Path, source_format: str, target: Path, *, owner: int | None) -> None:
        """Copy a disk image of ours into `target`, which exists and is the owner's, as a qcow2 disk."""
        command = ("qemu-img", "convert", "-f", source_format, "-O", "qcow2", str(source), str(target))
        await run(*Confinement(owner, cpu_s=_CONVERT_CPU_S).command(*command), timeout_s=2 * _CONVERT_CPU_S)

    async def create_overlay(
        self, path: Path, *, base: Path, base_format: str, size_bytes: int, owner: int | None
    ) -> None:
        """Make an overlay in `path`, which exists and is the owner's, on a base of a said format."""
        command = ("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", base_format)
        confined = Confinement(owner).command(*command, str(path), str(size_bytes))
        await run(*confined)

    async def grow(self, path: Path, disk_format: str, size_bytes: int, *, owner: int | None) -> None:
        """Make a disk larger. Fails on one in use."""
        command = ("qemu-img", "resize", "-q", "-f", disk_format, str(path), str(size_bytes))
        await run(*Confinement(owner).command(*command))


def _chain(disk: DiskFile) -> dict[str, object]:
    """A disk and what is beneath it, as QEMU's block layer is told; but for the disk's own format, which goes ahead."""
    node: dict[str, object] = {"file": {"driver": "file", "filename": disk.path}}
    if disk.format == "qcow2":
        # None is said too: otherwise the header is asked.
        below = disk.backing
        node["backing"] = None if below is None else {"driver": below.format, **_chain(below)}
    return node
