"""ReachableCellFilter: the host's cell can be claimed from."""

from __future__ import annotations

from typing import ClassVar

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class ReachableCellFilter:
    """The store of the host's cell answers: a cell that is cut off is skipped, and never waited for."""

    reason: ClassVar[str] = "in a cell that cannot be reached"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        return hosts.is_cell_reachable

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return host.is_cell_reachable
