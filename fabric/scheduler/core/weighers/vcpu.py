"""VcpuWeigher: how much of the host's virtual CPUs is free."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fabric.scheduler.core.picture import HostPicture, HostRow, Rows, Weights


class VcpuWeigher:
    """The free part of the host's virtual CPUs: 1 is an empty host, 0 a full one."""

    name: ClassVar[str] = "vcpu"

    def weights(self, hosts: HostPicture, rows: Rows) -> Weights:
        return hosts.free_vcpus[rows] / np.maximum(hosts.capacity_vcpus[rows], 1)

    def weight(self, host: HostRow) -> float:
        return host.free.vcpus / max(host.capacity.vcpus, 1)
