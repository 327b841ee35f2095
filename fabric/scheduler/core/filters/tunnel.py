"""TunnelFilter: the host takes part in tenant networks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class TunnelFilter:
    """The host has a tunnel address, where the server is on tenant networks: without one nobody elsewhere could reach it."""

    reason: ClassVar[str] = "without a tunnel address"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        return hosts.has_tunnel if ask.needs_tunnel else np.ones(len(hosts), np.bool_)

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return host.has_tunnel or not ask.needs_tunnel
