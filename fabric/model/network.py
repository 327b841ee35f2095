"""Networks, what is in them, and what joins them.

Two forms live side by side. Of the first form is the default network, `HOST_LOCAL`: a bridge with NAT and DHCP on each host, addresses
fixed by the claim (`Port`). The second form is what projects make for themselves: networks, subnets, ports, routers and floating IPs.
Ranges of different networks may be the same: nothing here takes an address to mean anything but within its subnet.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final


class NetworkKind(enum.IntEnum):
    """What a network is on the hosts."""

    HOST_LOCAL = 0
    """A bridge on each host, that serves the host's own guest subnet (`Host.guest_cidr`). Made by the system."""
    TENANT = 1
    """An overlay that spans hosts, told from others by its VNI."""
    EXTERNAL = 2
    """The world outside, as far as an administrator describes it: routers' gateways and floating IPs are in it."""


PHYSICAL_NETWORK: Final = "external"
"""Where an external network is, unless its maker says otherwise: hosts' settings lead from this word to an interface of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network people can name. `subnet_ids` are in the order they were made; a new one moves this record, so that no two overlap.

    `vni` is the VXLAN network identifier (RFC 7348) of a tenant network, 0 of others. `quota_slot` is the place among what its project
    may have, 0 where it is not counted. `physical_network` says what an external network is reached by: `Host.physical_networks`.
    """

    id: str
    name: str
    mtu: int = 1500
    dns_servers: tuple[str, ...] = ()
    create_time_ms: int = 0
    update_time_ms: int = 0
    kind: NetworkKind = NetworkKind.HOST_LOCAL
    project_id: str = ""
    description: str = ""
    shared: bool = False
    vni: int = 0
    subnet_ids: tuple[str, ...] = ()
    quota_slot: int = 0
    physical_network: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoute:
    """A route that guests are told of: `destination` is a subnet, `next_hop` an address."""

    destination: str
    next_hop: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortAddress:
    """An address of an interface, of either family, with what its guest must know to use it. `gateway` is empty where there is none."""

    address: str
    prefix_length: int
    gateway: str = ""
    routes: tuple[HostRoute, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An instance's interface, with everything a host needs to wire it.

    On the hosts' own network (`vni` 0) the claim fixes its one address. On a tenant network it is the interface of a `NetworkPort`, whose
    id it has, and the same on every host: `address` is the first of its addresses (empty where it has none), `further` the others.
    """

    id: str
    network_id: str
    network_name: str
    mac: str
    address: str
    prefix_length: int
    gateway: str
    mtu: int = 1500
    dns_servers: tuple[str, ...] = field(default=())
    vni: int = 0
    routes: tuple[HostRoute, ...] = ()
    further: tuple[PortAddress, ...] = ()

    @property
    def addresses(self) -> tuple[PortAddress, ...]:
        """All of them, the first one first."""
        if not self.address:
            return self.further
        first = PortAddress(
            address=self.address,
            prefix_length=self.prefix_length,
            gateway=self.gateway,
            routes=self.routes,
        )
        return (first, *self.further)

    @property
    def is_host_local(self) -> bool:
        """Whether its network is the hosts' own, so that its address is its host's."""
        return self.vni == 0


METADATA_ADDRESS = "169.254.169.254"
"""Where every guest finds its metadata over IPv4, whatever its network."""


def unzoned(text: str) -> str:
    """An address or a network as it was said. Raises ValueError where it has a zone (RFC 4007).

    For `ipaddress` a zone may be any text, line breaks among it, and of addresses are made rules and lines of programs that run as root.
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    return text


NO_SLOT = -1
"""The address slot of what has none on its host's own network."""

FIRST_GUEST = 10
"""Slot 0's place in a host's guest subnet. What lies between it and the gateway is the host's (name servers, metadata, later routers)."""


def slot_of(port: Port) -> int:
    """The address slot of a port on a host's own network: how far its address is from the first that guests have."""
    subnet = IPv4Network(f"{port.address}/{port.prefix_length}", strict=False)
    return int(IPv4Address(port.address)) - int(subnet.network_address) - FIRST_GUEST


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressRange:
    """Addresses from `first` to `last`, both included, as text."""

    first: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """A range of a network's addresses. Addresses and subnets are canonical text.

    `gateway` is empty where guests are told of none. `service_address` is held for the network's own DHCP and metadata, and never
    given to anybody.
    """

    id: str
    name: str
    project_id: str
    network_id: str
    cidr: str
    gateway: str = ""
    service_address: str = ""
    dhcp: bool = True
    dns_servers: tuple[str, ...] = ()
    allocation_pools: tuple[AddressRange, ...] = ()
    host_routes: tuple[HostRoute, ...] = ()
    description: str = ""
    quota_slot: int = 0
    create_time_ms: int = 0
    update_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedAddress:
    """One address of one subnet, held by whoever's this is."""

    subnet_id: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPair:
    """What else may come out of a port: addresses as a subnet, and the MAC they may come from (empty: the port's own)."""

    cidr: str
    mac: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPort:
    """A place on a network, as a project makes it. `floating_ips` maps a fixed address to the id of the floating IP that leads to it.

    Without `port_security` nothing is filtered: then there are neither groups nor address pairs. `instance_id` is the one server whose
    interface it is, empty while it is nobody's, and `bind_time_ms` since when; it `ends_with_instance` where it was made for that server.
    """

    id: str
    name: str
    project_id: str
    network_id: str
    mac: str
    fixed_addresses: tuple[FixedAddress, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    allowed_address_pairs: tuple[AddressPair, ...] = ()
    port_security: bool = True
    floating_ips: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    quota_slot: int = 0
    create_time_ms: int = 0
    update_time_ms: int = 0
    instance_id: str = ""
    ends_with_instance: bool = False
    bind_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterInterface:
    """A router's place in a subnet: the subnet's gateway address, at which guests find the router."""

    network_id: str
    subnet_id: str
    address: str
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """What joins subnets, and leads out of them. `external_network_id` is empty where it leads nowhere.

    With `snat`, what has no floating IP goes out under the router's own external address. `vni` is of its own tunnel, between the hosts it
    is on.
    """

    id: str
    name: str
    project_id: str
    external_network_id: str = ""
    external_addresses: tuple[FixedAddress, ...] = ()
    external_mac: str = ""
    snat: bool = True
    interfaces: tuple[RouterInterface, ...] = ()
    description: str = ""
    quota_slot: int = 0
    create_time_ms: int = 0
    update_time_ms: int = 0
    vni: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatingIp:
    """An external address that leads to a fixed address of a port, by a router that knows both; to nothing while `port_id` is empty."""

    id: str
    project_id: str
    network_id: str
    subnet_id: str
    address: str
    port_id: str = ""
    fixed_address: str = ""
    fixed_subnet_id: str = ""
    router_id: str = ""
    description: str = ""
    quota_slot: int = 0
    create_time_ms: int = 0
    update_time_ms: int = 0
