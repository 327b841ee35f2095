"""RamFilter: the host has the memory asked for."""

from __future__ import annotations

from typing import ClassVar

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class RamFilter:
    """What is free of the host's memory covers the flavor's. Overcommit is in the inventory's capacity, not here."""

    reason: ClassVar[str] = "short of memory"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        return hosts.free_ram_mib >= ask.resources.ram_mib

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return host.free.ram_mib >= ask.resources.ram_mib
