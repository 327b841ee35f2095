"""Networks of the first form: one default network, a bridge with NAT and DHCP on each host, addresses fixed by the claim."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network people can name. Host-local: each host serves its own guest subnet (`Host.guest_cidr`)."""

    id: str
    name: str
    mtu: int = 1500
    dns_servers: tuple[str, ...] = ()
    create_time_ms: int = 0
    update_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An instance's interface, with everything a host needs to wire it; fixed by the claim."""

    id: str
    network_id: str
    network_name: str
    mac: str
    address: str
    prefix_length: int
    gateway: str
    mtu: int = 1500
    dns_servers: tuple[str, ...] = field(default=())
