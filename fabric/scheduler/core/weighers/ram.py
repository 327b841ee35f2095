"""RamWeigher: how much of the host's memory is free."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fabric.scheduler.core.picture import HostPicture, HostRow, Rows, Weights


class RamWeigher:
    """The free part of the host's memory: 1 is an empty host, 0 a full one."""

    name: ClassVar[str] = "ram"

    def weights(self, hosts: HostPicture, rows: Rows) -> Weights:
        return hosts.free_ram_mib[rows] / np.maximum(hosts.capacity_ram_mib[rows], 1)

    def weight(self, host: HostRow) -> float:
        return host.free.ram_mib / max(host.capacity.ram_mib, 1)
