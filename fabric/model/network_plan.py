"""What a host must have of tenant networks: the contract between the conductor, which makes it of the network model, and the host, which
converges to it.

A plan is whole: what it does not name must not be on the host, and nothing in it has to be looked up. It says only what one host cannot
know by itself. A guest's own interfaces come with its order (`fabric.model.network.Port`), so a plan names ports only where they are
filtered, and where they are on other hosts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fabric.model.firewall import HostFilters
from fabric.model.network import HostRoute


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSubnet:
    """A range of a network, as its DHCP server and its routers need it. Addresses are text; `gateway` is empty where there is none.

    `service_address` is where the network's own DHCP and metadata are, on every host that has the network: each answers the guests
    beside it, and no packet to it leaves the host.
    """

    id: str
    cidr: str
    gateway: str = ""
    service_address: str = ""
    dhcp: bool = True
    dns_servers: tuple[str, ...] = ()
    host_routes: tuple[HostRoute, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A port of the network on another host: what is answered for it here, and to which host its packets go."""

    port_id: str
    mac: str
    addresses: tuple[str, ...]
    tunnel_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedNetwork:
    """A tenant network that the host takes part in: one of its guests is on it, or a router that one of its guests is behind.

    `mtu` is the guests'; the tunnel's overhead is in addition to it.
    """

    id: str
    vni: int
    mtu: int
    subnets: tuple[PlannedSubnet, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLeg:
    """A router's place in a network: the address that guests know as their gateway. The same on every host, and never seen beyond it."""

    network_id: str
    subnet_id: str
    address: str
    prefix_length: int
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideSubnet:
    """A range of the external network. `gateway` is empty where nothing leads further."""

    cidr: str
    gateway: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFloatingIp:
    """An external address that leads to a fixed address of a port on this very host."""

    address: str
    fixed_address: str
    fixed_network_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOutside:
    """How a router leads out on this host.

    `is_gateway`: here is where everything without a floating IP leaves, under `addresses`, the router's own (none where it does no
    SNAT). On other hosts it goes to `gateway_tunnel_address` through the router's own tunnel, which `PlannedRouter.vni` tells from
    others, and the answers come back by the guest's network. What has a floating IP leaves from its own host. `mac` is this host's in the
    external network; `physical_network` is what the host's settings know that network's interface by. It is empty where the host has none:
    then the other way is all there is, and there are no floating IPs.
    """

    physical_network: str
    mtu: int
    mac: str
    subnets: tuple[OutsideSubnet, ...]
    addresses: tuple[str, ...] = ()
    is_gateway: bool = False
    gateway_tunnel_address: str = ""
    snat: bool = True
    floating_ips: tuple[PlannedFloatingIp, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRouter:
    """A router that has to be on this host: a guest of the host is behind it, or the host is its gateway."""

    id: str
    vni: int
    legs: tuple[RouterLeg, ...] = ()
    outside: RouterOutside | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """All of one host. `tunnel_address` is the host's own end of tunnels, as the administrator gave it; empty: it has none.

    `filters` has a port for each of the host's ports on tenant networks and no other.
    """

    tunnel_address: str = ""
    networks: tuple[PlannedNetwork, ...] = ()
    routers: tuple[PlannedRouter, ...] = ()
    filters: HostFilters = field(default_factory=HostFilters)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanState:
    """How far a host has got with its plans, as its conductor knows it.

    `revision` is of the global store: all that the fabric knew then is in what the host was told last. `is_current` says that what it was
    told is what it ought to have, as far as is known now. Ages are 0 where there is nothing they could be of.
    """

    revision: int
    followed: int
    told_age_ms: int
    followed_age_ms: int
    fault_code: str
    fault_message: str
    is_current: bool
