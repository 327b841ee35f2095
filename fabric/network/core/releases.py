"""Giving ports of servers back: what is written when a server lets go of one, or when a port ends with everything it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from fabric.model.network import FloatingIp, NetworkPort
from fabric.network.core.routers import loosed
from fabric.store.keys import (
    ADDRESS,
    FLOATING_IP,
    NETWORK_USE,
    PORT,
    PORT_MAC,
    PORT_NAME,
    ROUTER_FLOATING_IP,
    SECURITY_GROUP_MEMBER,
)

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class At(Generic[V]):
    """A record, and the revision at which it was read."""

    value: V
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Part of a transaction of the global store."""

    unchanged: Mapping[str, int] = field(default_factory=dict)
    put: Mapping[str, object] = field(default_factory=dict)
    delete: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many compares or operations it has, whichever is more: etcd limits both."""
        return max(len(self.unchanged), len(self.put) + len(self.delete))

    def __add__(self, other: Release) -> Release:
        return Release(
            unchanged={**self.unchanged, **other.unchanged},
            put={**self.put, **other.put},
            delete=(*self.delete, *other.delete),
        )


def floating_ip_keys(port: NetworkPort) -> tuple[str, ...]:
    """The records of the floating IPs that lead to the port: what `ended` must have read."""
    return tuple(FLOATING_IP.at(port.project_id, each) for each in sorted(set(port.floating_ips.values())))


def let_go(port: At[NetworkPort], floating_ips: Mapping[str, At[FloatingIp]], *, now_ms: int) -> Release:
    """The port is its server's no more: it ends where it was made for that server, and is free for others otherwise.

    `floating_ips` are those that lead to it, by key.
    """
    if port.value.ends_with_instance:
        return ended(port, floating_ips, now_ms=now_ms)
    key = PORT.at(port.value.project_id, port.value.id)
    free = replace(port.value, instance_id="", bind_time_ms=0, update_time_ms=now_ms)
    return Release(unchanged={key: port.revision}, put={key: free})


def ended(port: At[NetworkPort], floating_ips: Mapping[str, At[FloatingIp]], *, now_ms: int) -> Release:
    """The port is no more, and floating IPs that led to it lead to nothing.

    Whoever leads one to it meanwhile writes the port, which is compared: so none is missed.
    """
    it = port.value
    key = PORT.at(it.project_id, it.id)
    return Release(
        unchanged={key: port.revision, **{each: at.revision for each, at in floating_ips.items()}},
        put={each: loosed(at.value, now_ms=now_ms) for each, at in floating_ips.items()},
        delete=(
            key,
            PORT_MAC.at(it.network_id, it.mac),
            *([PORT_NAME.at(it.project_id, it.name)] if it.name else []),
            *(ADDRESS.at(each.subnet_id, each.address) for each in it.fixed_addresses),
            *(SECURITY_GROUP_MEMBER.at(each, it.id) for each in it.security_group_ids),
            *([NETWORK_USE.at(it.project_id, "ports", str(it.quota_slot))] if it.quota_slot else []),
            *(
                ROUTER_FLOATING_IP.at(at.value.router_id, at.value.fixed_subnet_id, at.value.id)
                for at in floating_ips.values()
            ),
        ),
    )
