"""What this host has, measured: memory from /proc/meminfo, processors from the scheduler, disk from the filesystem.

libvirt's own node information is not used: it counts one NUMA node's memory, and on some machines reports a quarter of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fabric.model.host import Resources
from fabric.model.instance import Guest

GIB: Final = 1 << 30


def meminfo_mib(text: str, field: str) -> int:
    """A field of /proc/meminfo in MiB, rounded down. Raises ValueError where there is none (proc(5))."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            amount, unit = value.split()
            if unit != "kB":
                raise ValueError(f"/proc/meminfo: {field} is in {unit}, not kB")
            return int(amount) // 1024
    raise ValueError(f"/proc/meminfo: no {field}")


def measure_total(storage: Path, *, meminfo: Path = Path("/proc/meminfo")) -> Resources:
    """The hardware: processors this process may use, all memory, and the whole filesystem that `storage` is on."""
    filesystem = os.statvfs(storage)
    return Resources(
        vcpus=len(os.sched_getaffinity(0)),
        ram_mib=meminfo_mib(meminfo.read_text(encoding="ascii"), "MemTotal"),
        disk_gib=filesystem.f_blocks * filesystem.f_frsize // GIB,
    )


def measure_free_gib(storage: Path) -> int:
    """Disk space that an unprivileged writer could still take."""
    filesystem = os.statvfs(storage)
    return filesystem.f_bavail * filesystem.f_frsize // GIB


def promised(guests: Iterable[Guest]) -> Resources:
    """What guests were promised, running or not: the claim's arithmetic, for comparing with the inventory."""
    return sum((guest.resources() for guest in guests), Resources())
