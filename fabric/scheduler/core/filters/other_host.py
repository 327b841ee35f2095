"""OtherHostFilter: the host is another than the server is on, or has just failed on."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class OtherHostFilter:
    """A resize or a migration is to another host, and what a host has just failed at is not asked of it again at once.

    Unlike the reference's allow_resize_to_same_host, there is no way to have both copies on one host.
    """

    reason: ClassVar[str] = "the one it is to leave"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        passing = np.ones(len(hosts), np.bool_)
        for name in ask.other_than:
            passing[hosts.rows_named(name)] = False
        return passing

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return host.name not in ask.other_than
