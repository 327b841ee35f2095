"""InstancesWeigher: how few servers the host has."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fabric.scheduler.core.picture import HostPicture, HostRow, Rows, Weights


class InstancesWeigher:
    """1 for a host without servers, a half for one with one, a third with two. Decides between hosts of equal room."""

    name: ClassVar[str] = "instances"

    def weights(self, hosts: HostPicture, rows: Rows) -> Weights:
        return np.float64(1.0) / (1.0 + hosts.instances[rows])

    def weight(self, host: HostRow) -> float:
        return 1.0 / (1.0 + host.instances)
