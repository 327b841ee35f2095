"""EnabledCellFilter: the host's cell takes servers."""

from __future__ import annotations

from typing import ClassVar

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class EnabledCellFilter:
    """The operator has not closed the host's cell to new servers."""

    reason: ClassVar[str] = "in a cell that is disabled"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        return hosts.is_cell_enabled

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return host.is_cell_enabled
