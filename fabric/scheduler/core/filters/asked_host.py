"""AskedHostFilter: the host is the one that was asked for."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class AskedHostFilter:
    """Where an administrator names a host for a migration, only that one will do."""

    reason: ClassVar[str] = "not the host asked for"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        if not ask.host:
            return np.ones(len(hosts), np.bool_)
        passing = np.zeros(len(hosts), np.bool_)
        passing[hosts.rows_named(ask.host)] = True
        return passing

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return not ask.host or host.name == ask.host
