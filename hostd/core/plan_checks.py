"""Whether a plan can be said to a kernel at all: asked before it takes the place of one that can. Pure."""

from __future__ import annotations

from typing import Final

from fabric.model.network_plan import NetworkPlan
from hostd.core.firewall import Tracking, tables
from hostd.core.overlay import Overlay, wanted

_VNIS: Final = range(1, 1 << 24)
_MTUS: Final = range(68, 1 << 16)
"""From RFC 791's least to what a link can have."""


def require_sayable(plan: NetworkPlan) -> None:
    """Raise ValueError where links or filters cannot be made of a plan, whatever is there: then nothing of it could be had.

    What would be wrong with one network's services or with one router is not asked: that stands in no other's way.
    """
    ids = {network.id for network in plan.networks}
    missing = {port.network_id for port in plan.filters.ports} - ids
    if missing:
        raise ValueError(f"no network for the ports of {sorted(missing)}")
    vnis = [network.vni for network in plan.networks]
    if len(ids) != len(plan.networks) or len(set(vnis)) != len(vnis):
        raise ValueError("two networks have one id or one VNI")
    for network in plan.networks:
        if network.vni not in _VNIS or network.mtu not in _MTUS:
            raise ValueError(f"network {network.id} has VNI {network.vni} and MTU {network.mtu}")
    wanted(plan, (), {}, Overlay())
    tables(plan.filters, (), Tracking.BRIDGE)
