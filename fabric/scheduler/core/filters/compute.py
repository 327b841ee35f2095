"""ComputeFilter: the host takes servers."""

from __future__ import annotations

from typing import ClassVar

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class ComputeFilter:
    """The host is enabled, and its session is UP and beats (R8 of the host protocol; Nova: enabled, and reported lately)."""

    reason: ClassVar[str] = "down or disabled"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        return hosts.is_up

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return host.is_up
