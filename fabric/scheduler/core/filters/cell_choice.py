"""CellChoiceFilter: the host's cell is one that may be chosen now."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class CellChoiceFilter:
    """The host is in the cell asked for, where one is, and in none that the server was sent away from.

    A cell once left is closed to that server for good: what keeps a late claim from raising it there a second time.
    """

    reason: ClassVar[str] = "in another cell"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        passing = np.ones(len(hosts), np.bool_) if not ask.cell else hosts.cell == hosts.code(ask.cell)
        for tried in ask.tried_cells:
            passing &= hosts.cell != hosts.code(tried)
        return passing

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return (not ask.cell or host.cell == ask.cell) and host.cell not in ask.tried_cells
