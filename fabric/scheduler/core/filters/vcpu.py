"""VcpuFilter: the host has the virtual CPUs asked for."""

from __future__ import annotations

from typing import ClassVar

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class VcpuFilter:
    """What is free of the host's virtual CPUs covers the flavor's. Overcommit is in the inventory's capacity, not here."""

    reason: ClassVar[str] = "short of vCPUs"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        return hosts.free_vcpus >= ask.resources.vcpus

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return host.free.vcpus >= ask.resources.vcpus
