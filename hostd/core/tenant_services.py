"""What a tenant network's service namespace has on a host: addresses, who is beside it, and what its DHCP server says. Pure.

In it are DHCP of both families, metadata, and, where no router is, advertisements that say "ask DHCP" and nothing of a way out. Who asks
is known by address: each of the host's ports has its neighbour entry here for good, so an answer can arrive at nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from fabric.model.network import METADATA_ADDRESS, Port
from fabric.model.network_plan import NetworkPlan, PlannedNetwork, PlannedSubnet
from hostd.core.addresses import address_of, network_of
from hostd.core.dhcp import LEASE_S, Serving, hostname_word
from hostd.core.firewall import link_local
from hostd.core.overlay import SERVICE_INTERFACE

METADATA_ADDRESS6: Final = "fe80::a9fe:a9fe"
"""Where OpenStack's metadata is asked for over IPv6; also the link-local address that DHCPv6 needs."""

NAMESPACE_PREFIX: Final = "cfn-"
_ADVERTISE_S: Final = 60
_DIGEST_BYTES: Final = 6


def host_prefix(host: str) -> str:
    """How the names of a host's service namespaces begin. Namespaces of a machine have names in common, and it may be several hosts.

    `host` is what tells them apart: the path of the host's own namespace, or something as good where that has none. By the former's name,
    whoever takes the host away finds what was the host's.
    """
    path, _, name = host.rpartition("/")
    digest = blake2b(host.encode(), digest_size=4).hexdigest()
    return f"{name}.{NAMESPACE_PREFIX}" if path else f"{NAMESPACE_PREFIX}{digest}-"


def service_namespace(host: str, network_id: str) -> str:
    """The namespace (ip-netns(8)) of a network's services on a host."""
    return host_prefix(host) + blake2b(network_id.encode(), digest_size=_DIGEST_BYTES).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lodger:
    """A port of this host on a tenant network, and the name of the guest that has it."""

    port: Port
    hostname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The namespace's interface: its MTU, its addresses with lengths, and by address the MACs of those beside it."""

    mtu: int = 0
    addresses: frozenset[str] = frozenset()
    neighbours: frozenset[tuple[str, str]] = frozenset()


def surroundings(network: PlannedNetwork, lodgers: Iterable[Lodger]) -> Surroundings:
    """What there must be. Raises ValueError for an address or a MAC that is none."""
    addresses = {f"{METADATA_ADDRESS}/32", f"{METADATA_ADDRESS6}/64"}
    for subnet in network.subnets:
        if subnet.service_address:
            length = network_of(subnet.cidr).prefixlen
            addresses.add(f"{address_of(subnet.service_address)}/{length}")
    neighbours = set()
    for lodger in lodgers:
        mac = lodger.port.mac
        neighbours.add((link_local(mac), mac))
        neighbours |= {(str(address_of(it.address)), mac) for it in lodger.port.addresses}
    return Surroundings(mtu=network.mtu, addresses=frozenset(addresses), neighbours=frozenset(neighbours))


def surroundings_change(have: Surroundings, want: Surroundings) -> tuple[str, ...]:
    """Lines for `ip -batch` in the namespace."""
    at = f"dev {SERVICE_INTERFACE}"
    lines = []
    if have.mtu != want.mtu:
        lines.append(f"link set {at} addrgenmode none mtu {want.mtu} up")
        lines.append("link set dev lo up")
    lines += [f"address del {it} {at}" for it in sorted(have.addresses - want.addresses)]
    # Nobody else can have one of these here, so nothing is asked before they are used.
    lines += [f"address add {it} {at} nodad" for it in sorted(want.addresses - have.addresses)]
    held = {address for address, _ in want.neighbours}
    lines += [
        f"neighbour del {address} {at}"
        for address, _ in sorted(have.neighbours - want.neighbours)
        if address not in held
    ]
    lines += [
        f"neighbour replace {address} lladdr {mac} {at} nud permanent"
        for address, mac in sorted(want.neighbours - have.neighbours)
    ]
    return tuple(lines)


NAMESPACE_SETTINGS: Final[Mapping[str, str]] = {
    # It serves, and leads nowhere.
    "net/ipv4/ip_forward": "0",
    # A host may do without IPv6, and new namespaces may take after it (net.core.devconf_inherit_init_net).
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/all/forwarding": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/all/accept_ra": "0",
}
"""What is written below /proc/sys of a service namespace when it is made."""


# ------------------------------------------------------------------ DHCP


def advertises(plan: NetworkPlan, network: PlannedNetwork) -> bool:
    """Whether the namespace is to send router advertisements: where an IPv6 subnet is and no router is at one; else those routers do."""
    sixes = {subnet.id for subnet in network.subnets if _version(subnet) == 6 and subnet.dhcp}
    routed = {leg.subnet_id for router in plan.routers for leg in router.legs}
    return bool(sixes) and routed.isdisjoint(subnet.id for subnet in network.subnets if _version(subnet) == 6)


def serving(network: PlannedNetwork, lodgers: Iterable[Lodger], *, advertise: bool) -> Serving:
    """What the network's dnsmasq serves: each port of the host its own addresses, MTU, name servers and routes, nobody else anything.

    A port with several addresses of a family is told the first one of a subnet with DHCP, as one lease has room for one.
    """
    subnets = [subnet for subnet in network.subnets if subnet.dhcp and subnet.service_address]
    ranges = [_range(subnet) for subnet in subnets]
    if advertise:
        # Of lifetime 0 as a router: this is no way out (RFC 4861, section 4.2).
        ranges += ["--enable-ra", f"--ra-param={SERVICE_INTERFACE},mtu:{network.mtu},{_ADVERTISE_S},0"]
    hosts, options = [], []
    holders: dict[str, str] = {}
    for lodger in sorted(lodgers, key=lambda lodger: lodger.port.id):
        mac = lodger.port.mac
        tag = "p" + mac.replace(":", "")
        told = [
            (address, subnet) for version in (4, 6) for address, subnet in _told(lodger, subnets, version)
        ]
        if not told:
            continue
        words = [f"[{address}]" if ":" in address else address for address, _ in told]
        hosts.append(f"{mac},set:{tag},{','.join(words)}{hostname_word(lodger.hostname)},{LEASE_S}s\n")
        for address, subnet in told:
            holders[address] = mac
            said = _options4(network, subnet) if ":" not in address else _options6(subnet)
            options += [f"tag:{tag},{option}\n" for option in said]
    return Serving(
        interface=SERVICE_INTERFACE,
        ranges=tuple(ranges) if subnets else (),
        hosts="".join(hosts),
        options="".join(options),
        holders=holders,
    )


def _told(lodger: Lodger, subnets: list[PlannedSubnet], version: int) -> Iterable[tuple[str, PlannedSubnet]]:
    """At most one address of the family, with its subnet."""
    for it in lodger.port.addresses:
        address = address_of(it.address)
        if address.version != version:
            continue
        for subnet in subnets:
            if _version(subnet) == version and address in network_of(subnet.cidr):
                yield str(address), subnet
                return


def _range(subnet: PlannedSubnet) -> str:
    network = network_of(subnet.cidr)
    size = network.prefixlen if network.version == 6 else network.netmask
    return f"--dhcp-range={network.network_address},static,{size},{LEASE_S}s"


def _options4(network: PlannedNetwork, subnet: PlannedSubnet) -> Iterable[str]:
    """A client that takes option 121 ignores the router option (RFC 3442), so the default route is in both.

    An empty router option keeps dnsmasq from naming itself as one.
    """
    routes = [f"{METADATA_ADDRESS}/32,{subnet.service_address}"]
    routes += [
        f"{network_of(route.destination)},{address_of(route.next_hop)}" for route in subnet.host_routes
    ]
    if subnet.gateway:
        gateway = address_of(subnet.gateway)
        routes.append(f"0.0.0.0/0,{gateway}")
        yield f"option:router,{gateway}"
    else:
        yield "option:router"
    yield f"option:mtu,{network.mtu}"
    yield f"option:classless-static-route,{','.join(routes)}"
    if servers := [it for it in subnet.dns_servers if address_of(it).version == 4]:
        yield f"option:dns-server,{','.join(servers)}"


def _options6(subnet: PlannedSubnet) -> Iterable[str]:
    if servers := [f"[{it}]" for it in subnet.dns_servers if address_of(it).version == 6]:
        yield f"option6:dns-server,{','.join(servers)}"


def _version(subnet: PlannedSubnet) -> int:
    return network_of(subnet.cidr).version
