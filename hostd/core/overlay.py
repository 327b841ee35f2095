"""Layer 2 of tenant networks on a host: which links, forwarding entries and answers there must be, and how to get there. Pure.

A network is a bridge. What belongs to hosts elsewhere is behind one port of it, the tunnel (VXLAN, RFC 7348). Nothing is learned and
nothing is flooded to other hosts: which MAC is where, and who has which address, is said by the plan, so ARP and neighbour discovery
about ports elsewhere are answered by the bridge itself (`neigh_suppress`), and a frame to a MAC that nobody knows goes nowhere.

What is there and what is wanted are the same kind of value, so every change is the difference of two.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

from fabric.model.network_plan import NetworkPlan, PlannedNetwork
from hostd.core.firewall import link_local
from hostd.core.ruleset import TUNNEL_PORT
from hostd.core.tap_names import MARK, TapMark

BRIDGE_PREFIX: Final = "cfb"
TUNNEL_PREFIX: Final = "cfx"
SERVICE_PREFIX: Final = "cfs"
SERVICE_INTERFACE: Final = "service0"
"""The far end of a service port, in the network's service namespace."""

BRIDGES_TABLE: Final = f"{MARK}-bridges"

_DIGEST_BYTES: Final = 6
_ID: Final = re.compile(r"[0-9a-f-]{1,36}")
_ALIAS: Final = re.compile(rf"{MARK} network=({_ID.pattern})")
_MAC: Final = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


def bridge_name(network_id: str) -> str:
    """The network's bridge on any host."""
    return BRIDGE_PREFIX + _digest(network_id)


def tunnel_name(network_id: str) -> str:
    """The port of the bridge behind which the other hosts are."""
    return TUNNEL_PREFIX + _digest(network_id)


def service_port_name(network_id: str) -> str:
    """The port of the bridge behind which DHCP and metadata are."""
    return SERVICE_PREFIX + _digest(network_id)


def service_mac(network_id: str) -> str:
    """The MAC of DHCP and metadata: the same on every host, so that a guest that moves need not ask again."""
    return "02:" + blake2b(f"service {network_id}".encode(), digest_size=5).digest().hex(":")


def network_alias(network_id: str) -> str:
    """What the links of a network say of themselves."""
    return f"{MARK} network={network_id}"


def network_of(alias: str) -> str | None:
    """The network that an alias says its link is of; None for what is none of ours."""
    match = _ALIAS.fullmatch(alias)
    return None if match is None else match.group(1)


def _digest(network_id: str) -> str:
    return blake2b(network_id.encode(), digest_size=_DIGEST_BYTES).hexdigest()


# ------------------------------------------------------------------ values


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A network's bridge. An `mtu` of 0 here and below is of a link that is there, and whose settings were not looked at."""

    name: str
    network_id: str
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """A bridge's port to other hosts. `local` is this host's tunnel address."""

    name: str
    network_id: str
    mtu: int
    vni: int
    local: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """A bridge's port to the network's service namespace, which is called `namespace`."""

    name: str
    network_id: str
    mtu: int
    namespace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TapPort:
    """A bridge's port to a guest of this host. One that is there and was never marked has no `mark`."""

    mark: TapMark | None
    mtu: int

    @property
    def network_id(self) -> str:
        """The network it is on."""
        return "" if self.mark is None else self.mark.network_id


Link = Bridge | Tunnel | ServicePort | TapPort


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """All of a host's tenant networks.

    `pins` say which port of a bridge a MAC is at: (bridge, MAC) to port. `remotes` say behind which tunnel address it is: (tunnel, MAC) to
    address. `answers` are what a bridge says to who asks for an address: (bridge, address) to MAC.
    """

    links: Mapping[str, Link] = field(default_factory=lambda: MappingProxyType({}))
    pins: Mapping[tuple[str, str], str] = field(default_factory=lambda: MappingProxyType({}))
    remotes: Mapping[tuple[str, str], str] = field(default_factory=lambda: MappingProxyType({}))
    answers: Mapping[tuple[str, str], str] = field(default_factory=lambda: MappingProxyType({}))

    def seeing_taps(self, names: frozenset[str]) -> Overlay:
        """The same, as far as taps of these names are there: others have gone, and some may have come that nobody marked."""
        there = self.without(self.taps - names)
        new = {name: TapPort(mark=None, mtu=0) for name in names - self.taps}
        return replace(there, links={**there.links, **new})

    def without(self, ports: frozenset[str]) -> Overlay:
        """The same, but for these ports and what is pinned at them."""
        return Overlay(
            links={name: link for name, link in self.links.items() if name not in ports},
            pins={key: port for key, port in self.pins.items() if port not in ports},
            remotes=self.remotes,
            answers=self.answers,
        )

    @property
    def taps(self) -> frozenset[str]:
        """The names of its taps."""
        return frozenset(name for name, link in self.links.items() if isinstance(link, TapPort))

    @property
    def bridges(self) -> dict[str, str]:
        """The bridge of each network, by the network's id."""
        return {
            link.network_id: name
            for name, link in self.links.items()
            if isinstance(link, Bridge) and link.network_id
        }


def wanted(
    plan: NetworkPlan, taps: Iterable[TapPort], namespaces: Mapping[str, str], kept: Overlay
) -> Overlay:
    """What the plan and the guests that are wired here want.

    `namespaces` are the service namespaces by network, of networks that are to have one; `kept` is what is there of networks that the plan
    does not name and a guest still uses, which stays as it is. A port that is wired here is nobody's neighbour, whatever the plan says.
    Raises ValueError for an id, a MAC or an address that is none: nothing is quoted here.
    """
    marked = [(tap.mark, tap) for tap in taps if tap.mark is not None]
    local = _address(plan.tunnel_address) if plan.tunnel_address else ""
    here = {(mark.network_id, mark.mac) for mark, _ in marked}
    links: dict[str, Link] = dict(kept.links)
    pins = dict(kept.pins)
    remotes = dict(kept.remotes)
    answers = dict(kept.answers)
    for network in plan.networks:
        bridge = bridge_name(_checked(_ID, network.id))
        links[bridge] = Bridge(name=bridge, network_id=network.id, mtu=network.mtu)
        if network.id in namespaces:
            port = service_port_name(network.id)
            links[port] = ServicePort(
                name=port, network_id=network.id, mtu=network.mtu, namespace=namespaces[network.id]
            )
            pins[bridge, service_mac(network.id)] = port
        if local:
            tunnel = tunnel_name(network.id)
            links[tunnel] = Tunnel(
                name=tunnel,
                network_id=network.id,
                mtu=network.mtu,
                vni=network.vni,
                local=local,
            )
            for neighbour in network.neighbours:
                if (
                    neighbour.tunnel_address in {"", plan.tunnel_address}
                    or (network.id, neighbour.mac) in here
                ):
                    continue
                mac = _checked(_MAC, neighbour.mac)
                pins[bridge, mac] = tunnel
                remotes[tunnel, mac] = _address(neighbour.tunnel_address)
                for address in (*neighbour.addresses, link_local(mac)):
                    answers[bridge, _address(address)] = mac
    for mark, tap in marked:
        bridge = bridge_name(mark.network_id)
        if bridge in links:
            links[mark.tap] = tap
            pins[bridge, _checked(_MAC, mark.mac)] = mark.tap
    return Overlay(links=links, pins=pins, remotes=remotes, answers=answers)


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


def _checked(pattern: re.Pattern[str], text: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(f"{text!r} does not match {pattern.pattern}")
    return text


def kept_of(have: Overlay, networks: Iterable[str]) -> Overlay:
    """What is there of these networks, but for taps: they are wanted by those who have them."""
    names = set(networks)
    bridges = {bridge_name(network) for network in names}
    tunnels = {tunnel_name(network) for network in names}
    links = {
        name: link
        for name, link in have.links.items()
        if link.network_id in names and not isinstance(link, TapPort)
    }
    return Overlay(
        links=links,
        pins={key: port for key, port in have.pins.items() if key[0] in bridges and port in links},
        remotes={key: address for key, address in have.remotes.items() if key[0] in tunnels},
        answers={key: mac for key, mac in have.answers.items() if key[0] in bridges},
    )


def local_networks(plan: NetworkPlan) -> tuple[PlannedNetwork, ...]:
    """The networks that have ports on this host, and so want DHCP and metadata here; in others only a router has a leg."""
    here = {port.network_id for port in plan.filters.ports}
    return tuple(network for network in plan.networks if network.id in here)


# ------------------------------------------------------------------ the difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What leads from one overlay to another: lines for `ip -batch` and then for `bridge -batch`, each idempotent up to the first failure.

    `made` are bridges that are new: their settings are written between `ip_made` and `ip`, before they are up.
    """

    ip_made: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    ip: tuple[str, ...] = ()
    bridge: tuple[str, ...] = ()


def change(have: Overlay, want: Overlay) -> Change:
    """The commands. A tap that is not wanted is not removed here: it is a guest's, and goes when that goes."""
    gone = [name for name, link in have.links.items() if _must_go(link, want.links.get(name))]
    # A link that takes its ports with it, or that was replaced, leaves no entry behind.
    lost = {name for name in have.links if name in gone or name not in want.links}
    made: list[str] = []
    ip_made = [f"link del dev {name}" for name in sorted(gone, key=_ports_first)]
    lines: list[str] = []
    for name, link in sorted(want.links.items(), key=lambda item: _bridges_first(item[0])):
        if name in have.links and name not in lost and have.links[name] == link:
            continue
        present = name in have.links and name not in lost
        if isinstance(link, Bridge):
            made.append(name)
            ip_made += _make_bridge(link, present=present)
            lines.append(f"link set dev {name} mtu {link.mtu} up")
        else:
            lines += _port(name, link, present=present)
    held = {key: mac for key, mac in have.answers.items() if key[0] not in lost}
    for bridge, address in sorted(held.keys() - want.answers.keys()):
        lines.append(f"neighbour del {address} dev {bridge}")
    for (bridge, address), mac in sorted(want.answers.items()):
        if held.get((bridge, address)) != mac:
            lines.append(f"neighbour replace {address} lladdr {mac} dev {bridge} nud permanent")
    return Change(
        ip_made=tuple(ip_made), made=tuple(made), ip=tuple(lines), bridge=tuple(_entries(have, want, lost))
    )


def _entries(have: Overlay, want: Overlay, lost: set[str]) -> Iterable[str]:
    pinned = {key: port for key, port in have.pins.items() if key[0] not in lost and port not in lost}
    remotes = {key: address for key, address in have.remotes.items() if key[0] not in lost}
    for bridge, mac in sorted(pinned.keys() - want.pins.keys()):
        # What is pinned at taps, and at routers' legs, goes with them.
        if pinned[bridge, mac].startswith((TUNNEL_PREFIX, SERVICE_PREFIX)):
            yield f"fdb del {mac} dev {pinned[bridge, mac]} master"
    for tunnel, mac in sorted(remotes.keys() - want.remotes.keys()):
        yield f"fdb del {mac} dev {tunnel} dst {remotes[tunnel, mac]} self"
    for (bridge, mac), port in sorted(want.pins.items()):
        if pinned.get((bridge, mac)) != port:
            yield f"fdb replace {mac} dev {port} master static"
    for (tunnel, mac), address in sorted(want.remotes.items()):
        if remotes.get((tunnel, mac)) != address:
            yield f"fdb replace {mac} dev {tunnel} dst {address} self static"


def _must_go(link: Link, now: Link | None) -> bool:
    if isinstance(link, TapPort):
        return False
    if isinstance(link, Tunnel) and isinstance(now, Tunnel):
        return (link.vni, link.local) != (now.vni, now.local)
    return now is None


def _ports_first(name: str) -> tuple[bool, str]:
    return name.startswith(BRIDGE_PREFIX), name


def _bridges_first(name: str) -> tuple[bool, str]:
    return not name.startswith(BRIDGE_PREFIX), name


def _make_bridge(bridge: Bridge, *, present: bool) -> list[str]:
    lines = []
    if not present:
        # An address of its own, or it would be that of the lowest port and change as guests come and go.
        mac = "02:" + blake2b(bridge.name.encode(), digest_size=5).digest().hex(":")
        kind = "type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
        lines.append(f"link add name {bridge.name} address {mac} {kind}")
    lines.append(f'link set dev {bridge.name} alias "{network_alias(bridge.network_id)}"')
    lines.append(f"link set dev {bridge.name} addrgenmode none")
    return lines


def _port(name: str, link: Tunnel | ServicePort | TapPort, *, present: bool) -> list[str]:
    """Down until it is as it must be."""
    bridge = bridge_name(link.network_id)
    flags = "learning off flood off"
    alias = network_alias(link.network_id)
    if isinstance(link, Tunnel):
        make = f"link add name {name} type vxlan id {link.vni} dstport {TUNNEL_PORT} local {link.local} nolearning"
        flags += " mcast_flood off bcast_flood off neigh_suppress on"
    elif isinstance(link, ServicePort):
        peer = f"peer name {SERVICE_INTERFACE} address {service_mac(link.network_id)} netns {link.namespace}"
        make = f"link add name {name} type veth {peer}"
    else:
        make = f"tuntap add dev {name} mode tap vnet_hdr"
        alias = link.mark.alias() if link.mark is not None else MARK
    return [
        *([] if present else [make]),
        f'link set dev {name} alias "{alias}"',
        f"link set dev {name} addrgenmode none mtu {link.mtu} master {bridge}",
        f"link set dev {name} type bridge_slave {flags}",
        f"link set dev {name} up",
    ]


# ------------------------------------------------------------------ beside the host

BRIDGE_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # The host has no address here, and answers for none of those that it has elsewhere (8: for no local address at all).
        "net/ipv4/conf/{bridge}/arp_ignore": "8",
        "net/ipv4/conf/{bridge}/forwarding": "0",
        "net/ipv6/conf/{bridge}/accept_ra": "0",
    }
)
"""What is written below /proc/sys for each bridge before it is up."""


def bridge_settings(bridges: Iterable[str]) -> dict[str, str]:
    """The settings of these bridges, by path."""
    return {
        path.format(bridge=bridge): value for bridge in bridges for path, value in BRIDGE_SETTINGS.items()
    }


def isolation() -> str:
    """The nft script after which a tenant's bridge leads neither to the host itself nor, by routing, to anything else.

    Bridged packets pass `forward` too where br_netfilter is on: from a bridge of tenants' to one, which is the same.
    """
    table = f"inet {BRIDGES_TABLE}"
    ours = f'"{BRIDGE_PREFIX}*"'
    return "\n".join(
        (
            f"add table {table}",
            f"delete table {table}",
            f"table {table} {{",
            "  chain input { type filter hook input priority -10; policy accept;",
            f"    iifname {ours} drop",
            "  }",
            "  chain forward { type filter hook forward priority -10; policy accept;",
            f"    iifname {ours} oifname != {ours} drop",
            f"    iifname != {ours} oifname {ours} drop",
            "  }",
            "}",
            "",
        )
    )
