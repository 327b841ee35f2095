"""Routers of tenant networks on a host: what each of them consists of, as the plan wants it. Pure.

A router is a network namespace. It has a leg in each of its networks, at the address that guests know as their gateway, with the same MAC
on every host: so whatever a guest sends beyond its subnet is routed where it runs, and goes to another host by the network of whom it is
for. To the world outside there are two ways:

- what has a floating IP leaves and comes in here, by the router's own interface outside, translated both ways;
- everything else leaves at the router's gateway host, under the router's address; other hosts send it there by the router's own tunnel,
  the transit. The answers come back by the guest's network, so nothing is ever sent by the transit from the gateway.

How to get from what is there to what is wanted is `routing_change`; what the packet filter of a router says is `router_tables`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from fabric.model.network_plan import NetworkPlan, PlannedNetwork, PlannedRouter, RouterLeg, RouterOutside
from hostd.core.addresses import address_of, interface_of, network_of
from hostd.core.announcements import Advertisement
from hostd.core.nftables import Table
from hostd.core.router_table import OUTSIDE, Translations, router_tables
from hostd.core.ruleset import TUNNEL_PORT
from hostd.core.tap_names import MARK

LEG_PREFIX: Final = "cfl"
"""The bridge's end of a router's leg."""
OUTSIDE_PREFIX: Final = "cfo"
"""The bridge's end of a router's interface outside, where the physical network is a bridge of the host."""
TRANSIT: Final = "transit"

MAIN_TABLE: Final = 254
OUTSIDE_TABLE: Final = 100
"""Routes of what has a floating IP here."""

_NEXT_HOP: Final = {4: "169.254.0.1", 6: "fe80::1"}
"""The gateway host's end of the transit, for each family: known to nobody but the sender, which says itself where it is."""
_EVERYTHING: Final = {4: "0.0.0.0/0", 6: "::/0"}
_DIGEST_BYTES: Final = 6
_ID: Final = re.compile(r"[0-9a-f-]{1,36}")
_MAC: Final = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")

NAMESPACE_SETTINGS: Final[Mapping[str, str]] = {
    "net/ipv4/ip_forward": "1",
    # A host may do without IPv6, and new namespaces may take after it (net.core.devconf_inherit_init_net).
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/all/forwarding": "1",
    # Answers come by another way than questions go, on purpose.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    # Two legs may be in one network: each speaks for its own address only.
    "net/ipv4/conf/all/arp_ignore": "1",
    "net/ipv4/conf/all/arp_announce": "2",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv6/conf/all/accept_redirects": "0",
    "net/ipv6/conf/default/accept_redirects": "0",
    # The same addresses are on every host, so asking whether somebody has them already means nothing.
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
}
"""What is written below /proc/sys of a router's namespace before it has an interface."""

RULES: Final[Mapping[int, str]] = {
    1000: f"lookup {MAIN_TABLE} suppress_prefixlength 0",
    2000: f"fwmark 0x1/0x1 lookup {OUTSIDE_TABLE}",
}
"""By preference: its networks first; then what has a floating IP by the way outside of here; then what the main table says."""


def router_prefix(host: str) -> str:
    """How the names of a host's router namespaces begin. Namespaces of a machine have names in common, and it may be several hosts.

    `host` is what tells them apart: the path of the host's own namespace, or something as good where that has none.
    """
    path, _, name = host.rpartition("/")
    return f"{name}.cfr-" if path else f"cfr-{blake2b(host.encode(), digest_size=4).hexdigest()}-"


def router_namespace(host: str, router_id: str) -> str:
    """The namespace (ip-netns(8)) of a router on a host."""
    return router_prefix(host) + _digest(router_id)


def router_mark(router_id: str) -> str:
    """What the loopback of a router's namespace says of itself."""
    return f"{MARK} router={router_id}"


def transit_mac(router_id: str, tunnel_address: str) -> str:
    """The MAC of a host's end of a router's transit, which every other host can tell."""
    return "02:" + blake2b(f"{router_id} {tunnel_address}".encode(), digest_size=5).digest().hex(":")


# ------------------------------------------------------------------ values


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """The host's interface in a physical network: a bridge, that routers are ports of, or any other, that they share (macvlan)."""

    interface: str
    is_bridge: bool
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface of a router.

    `mark` is its alias: one that is marked otherwise is another. `make` is the line for `ip -batch` in the host's namespace after which it
    is in the router's; `join` are those that put its other end, if it has one there, to where it belongs; `pin` is one for `bridge -batch`.
    """

    name: str
    mark: str
    mtu: int
    make: str
    join: tuple[str, ...] = ()
    pin: str = ""
    has_link_local: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """A route of ours. `via` is empty where the destination is beside it."""

    table: int
    destination: str
    via: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A router on a host, whole.

    `addresses` are (device, address with length), `neighbours` (device, address, MAC), `remotes` (device, MAC, tunnel address).
    `announced` are (MAC, address) of the interface outside. `problem` is why it cannot lead out as it should; the rest of it can be made.
    """

    router_id: str
    namespace: str
    tables: tuple[Table, Table]
    translations: Translations
    links: tuple[Link, ...] = ()
    addresses: frozenset[tuple[str, str]] = frozenset()
    routes: frozenset[Route] = frozenset()
    neighbours: frozenset[tuple[str, str, str]] = frozenset()
    remotes: frozenset[tuple[str, str, str]] = frozenset()
    announced: frozenset[tuple[str, str]] = frozenset()
    advertisements: tuple[Advertisement, ...] = ()
    problem: str = ""


# ------------------------------------------------------------------ what is wanted


def uplinks_needed(plan: NetworkPlan) -> frozenset[str]:
    """The physical networks that routers lead to from this host."""
    outsides = [router.outside for router in plan.routers if router.outside is not None]
    return frozenset(each.physical_network for each in outsides if _leads_out(each))


def space(
    router: PlannedRouter,
    plan: NetworkPlan,
    bridges: Mapping[str, str],
    uplinks: Mapping[str, Uplink],
    *,
    host: str,
) -> Space:
    """What a router must be on this host.

    Args:
        router: one of the plan's.
        plan: for its networks, and the host's own tunnel address.
        bridges: the networks' on this host, by network id.
        uplinks: the host's interfaces by physical network.
        host: as `router_prefix` has it.

    Raises:
        ValueError: something is no id, no MAC or no address, for nothing is quoted here; or a network has no bridge.
    """
    namespace = router_namespace(host, _checked(_ID, router.id))
    networks = {network.id: network for network in plan.networks}
    legs = [(leg, _network(leg, networks)) for leg in router.legs]
    links = [_leg(leg, network, bridges, namespace, router.id) for leg, network in legs]
    addresses = {(_inside_name(leg), interface_of(leg.address, leg.prefix_length)) for leg in router.legs}
    routes: set[Route] = set()
    neighbours: set[tuple[str, str, str]] = set()
    remotes: set[tuple[str, str, str]] = set()
    announced: set[tuple[str, str]] = set()
    outside, problem = router.outside, ""
    if outside is not None:
        if _leads_out(outside) and outside.physical_network not in uplinks:
            problem = (
                f"router {router.id} leads to physical network {outside.physical_network!r}, and nothing of this host does:"
                " see the setting network.physical"
            )
        elif _leads_out(outside):
            links.append(_outside(outside, uplinks[outside.physical_network], namespace, router.id))
            held = _held(outside)
            addresses |= {(OUTSIDE, _single(each)) for each in held}
            announced = {(outside.mac, _address(each)) for each in held}
            tables = (MAIN_TABLE, OUTSIDE_TABLE) if outside.is_gateway else (OUTSIDE_TABLE,)
            routes |= {route for table in tables for route in _ways_out(outside, table)}
        if plan.tunnel_address and router.vni:
            mtu = max((network.mtu for _, network in legs), default=outside.mtu)
            links.append(_transit(router, plan.tunnel_address, mtu, namespace))
            if not outside.is_gateway and outside.gateway_tunnel_address:
                gateway = _address(outside.gateway_tunnel_address)
                mac = transit_mac(router.id, gateway)
                for family, hop in _NEXT_HOP.items():
                    routes.add(Route(MAIN_TABLE, _EVERYTHING[family], hop, TRANSIT))
                    neighbours.add((TRANSIT, hop, mac))
                remotes.add((TRANSIT, mac, gateway))
    return Space(
        router_id=router.id,
        namespace=namespace,
        tables=router_tables(router),
        translations=Translations.of(router),
        links=tuple(links),
        addresses=frozenset(addresses),
        routes=frozenset(routes),
        neighbours=frozenset(neighbours),
        remotes=frozenset(remotes),
        announced=frozenset(announced),
        advertisements=tuple(
            _advertisement(leg, network) for leg, network in legs if _family(leg.address) == 6
        ),
        problem=problem,
    )


def _leads_out(outside: RouterOutside) -> bool:
    """Whether it needs an interface outside on this host."""
    return outside.is_gateway or bool(outside.floating_ips)


def _held(outside: RouterOutside) -> tuple[str, ...]:
    """The external addresses that are on this host: the router's own are at its gateway only."""
    own = outside.addresses if outside.is_gateway else ()
    return (*own, *(each.address for each in outside.floating_ips))


def _network(leg: RouterLeg, networks: Mapping[str, PlannedNetwork]) -> PlannedNetwork:
    if leg.network_id not in networks:
        raise ValueError(f"a router's leg is in network {leg.network_id}, which is not planned")
    return networks[leg.network_id]


def _leg(
    leg: RouterLeg, network: PlannedNetwork, bridges: Mapping[str, str], namespace: str, router_id: str
) -> Link:
    if network.id not in bridges:
        raise ValueError(f"no bridge for network {network.id}")
    mac, bridge = _checked(_MAC, leg.mac), _checked(_INTERFACE, bridges[network.id])
    inside, port = _inside_name(leg), LEG_PREFIX + _digest(leg.subnet_id)
    mark = f"{router_mark(router_id)} leg={_checked(_ID, leg.subnet_id)} mac={mac} bridge={bridge}"
    return Link(
        name=inside,
        mark=mark,
        mtu=network.mtu,
        make=f"link add name {port} type veth peer name {inside} address {mac} netns {namespace}",
        join=(
            f'link set dev {port} alias "{mark}"',
            f"link set dev {port} addrgenmode none mtu {network.mtu} master {bridge}",
            f"link set dev {port} type bridge_slave learning off flood off",
            f"link set dev {port} up",
        ),
        pin=f"fdb replace {mac} dev {port} master static",
        has_link_local=_family(leg.address) == 6,
    )


def _outside(outside: RouterOutside, uplink: Uplink, namespace: str, router_id: str) -> Link:
    mac, interface = _checked(_MAC, outside.mac), _checked(_INTERFACE, uplink.interface)
    mtu = min(outside.mtu, uplink.mtu)
    mark = f"{router_mark(router_id)} outside={interface} mac={mac}"
    if not uplink.is_bridge:
        make = f"link add link {interface} name {OUTSIDE} netns {namespace} address {mac} type macvlan mode bridge"
        return Link(name=OUTSIDE, mark=mark, mtu=mtu, make=make)
    port = OUTSIDE_PREFIX + _digest(router_id)
    return Link(
        name=OUTSIDE,
        mark=mark,
        mtu=mtu,
        make=f"link add name {port} type veth peer name {OUTSIDE} address {mac} netns {namespace}",
        join=(
            f'link set dev {port} alias "{mark}"',
            f"link set dev {port} addrgenmode none mtu {mtu} master {interface}",
            f"link set dev {port} up",
        ),
    )


def _transit(router: PlannedRouter, tunnel_address: str, mtu: int, namespace: str) -> Link:
    local = _address(tunnel_address)
    mac = transit_mac(router.id, local)
    tunnel = f"vxlan id {int(router.vni)} dstport {TUNNEL_PORT} local {local} nolearning"
    return Link(
        name=TRANSIT,
        mark=f"{router_mark(router.id)} vni={int(router.vni)} local={local}",
        mtu=mtu,
        make=f"link add name {TRANSIT} netns {namespace} address {mac} type {tunnel}",
    )


def _ways_out(outside: RouterOutside, table: int) -> set[Route]:
    """Beside the router is all of the external network; beyond it, what its gateways lead to."""
    routes = set()
    for family in (4, 6):
        subnets = [each for each in outside.subnets if network_of(each.cidr).version == family]
        routes |= {Route(table, str(network_of(each.cidr)), "", OUTSIDE) for each in subnets}
        leading = [each for each in subnets if each.gateway]
        held = [address_of(each) for each in _held(outside)]
        # By the range that its own addresses are of, where there are several.
        leading.sort(key=lambda each: not any(mine in network_of(each.cidr) for mine in held))
        if leading:
            routes.add(Route(table, _EVERYTHING[family], _address(leading[0].gateway), OUTSIDE))
    return routes


def _advertisement(leg: RouterLeg, network: PlannedNetwork) -> Advertisement:
    subnet = next((each for each in network.subnets if each.id == leg.subnet_id), None)
    return Advertisement(
        device=_inside_name(leg),
        mac=leg.mac,
        prefix=str(network_of(f"{leg.address}/{leg.prefix_length}")),
        mtu=network.mtu,
        managed=subnet is None or subnet.dhcp,
        dns_servers=() if subnet is None else tuple(_address(each) for each in subnet.dns_servers),
    )


def _inside_name(leg: RouterLeg) -> str:
    return "leg" + _digest(leg.subnet_id)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _family(address: str) -> int:
    return address_of(address).version


def _address(text: str) -> str:
    return str(address_of(text))


def _single(address: str) -> str:
    found = address_of(address)
    return f"{found}/{found.max_prefixlen}"


def _checked(pattern: re.Pattern[str], text: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(f"{text!r} does not match {pattern.pattern}")
    return text
