"""AddressFilter: the host has an address left."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class AddressFilter:
    """The host's guest subnet has a free address slot: every server on the hosts' own network gets exactly one."""

    reason: ClassVar[str] = "out of addresses"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        return hosts.free_slots > 0 if ask.needs_slot else np.ones(len(hosts), np.bool_)

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return host.free_slots > 0 or not ask.needs_slot
