"""DiskFilter: the host has the disk asked for."""

from __future__ import annotations

from typing import ClassVar

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class DiskFilter:
    """What is free of the host's disk covers the flavor's. Overcommit is in the inventory's capacity, not here."""

    reason: ClassVar[str] = "short of disk"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        return hosts.free_disk_gib >= ask.resources.disk_gib

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return host.free.disk_gib >= ask.resources.disk_gib
