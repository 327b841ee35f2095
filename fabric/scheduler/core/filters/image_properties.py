"""ImagePropertiesFilter: the host can run this kind of guest."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.picture import HostPicture, HostRow, Mask


class ImagePropertiesFilter:
    """The host has every trait that image and flavor require (architecture, firmware, GPU, SECURE_BOOT, …), and none that they forbid."""

    reason: ClassVar[str] = "without the architecture, firmware or traits"

    def passing(self, hosts: HostPicture, ask: Ask) -> Mask:
        passing = np.ones(len(hosts), np.bool_)
        for trait in ask.required_traits:
            passing &= hosts.trait(trait)
        for trait in ask.forbidden_traits:
            passing &= ~hosts.trait(trait)
        return passing

    def passes(self, host: HostRow, ask: Ask) -> bool:
        return ask.required_traits <= host.traits and ask.forbidden_traits.isdisjoint(host.traits)
