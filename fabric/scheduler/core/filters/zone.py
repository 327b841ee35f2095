"""AvailabilityZoneFilter: the host is where it was asked for."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class AvailabilityZoneFilter:
    """The host is in the availability zone asked for; without one, any host will do."""

    reason: ClassVar[str] = "in another zone"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        if not ask.zone:
            return np.ones(len(hosts), np.bool_)
        return np.equal(hosts.zone, hosts.code(ask.zone))

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return not ask.zone or host.zone == ask.zone
