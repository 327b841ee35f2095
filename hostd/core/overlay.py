"""Layer 2 of tenant networks on a host: which links, forwarding entries and answers there must be, and how to get there. Pure.

A network is a bridge. What belongs to hosts elsewhere is behind one port of it, the tunnel (VXLAN, RFC 7348). Nothing is learned and
nothing is flooded to other hosts: which MAC is where, and who has which address, is said by the plan, so ARP and neighbour discovery
about ports elsewhere are answered by the bridge itself (`neigh_suppress`), and a frame to a MAC that nobody knows goes nowhere.

What is there and what is wanted are the same kind of value, so every change is the difference of two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

from fabric.model.network_plan import Neighbour, NetworkPlan, PlannedNetwork
from hostd.core.addresses import address_of
from hostd.core.firewall import link_local
from hostd.core.tap_names import MARK, TapMark

BRIDGE_PREFIX: Final = "cfb"
TUNNEL_PREFIX: Final = "cfx"
SERVICE_PREFIX: Final = "cfs"
SERVICE_INTERFACE: Final = "service0"
"""The far end of a service port, in the network's service namespace."""


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

    def with_taps_of(self, have: Overlay) -> Overlay:
        """The same, but with taps as they are in `have`, wanted or not: what is to be before any of them is touched."""
        new = frozenset(name for name in self.taps if have.links.get(name) != self.links[name])
        rest = self.without(new)
        return replace(rest, links={**rest.links, **{it: have.links[it] for it in new & have.taps}})

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
                mac, there, known = _said_of(neighbour)
                if there in {"", local} or (network.id, mac) in here:
                    continue
                pins[bridge, mac] = tunnel
                remotes[tunnel, mac] = there
                for address in known:
                    answers[bridge, address] = mac
    for mark, tap in marked:
        bridge = bridge_name(mark.network_id)
        if bridge in links:
            links[mark.tap] = tap
            pins[bridge, _checked(_MAC, mark.mac)] = mark.tap
    return Overlay(links=links, pins=pins, remotes=remotes, answers=answers)


@lru_cache(maxsize=1 << 16)
def _said_of(neighbour: Neighbour) -> tuple[str, str, tuple[str, ...]]:
    """Its MAC, its host's tunnel address and its addresses, checked: most of a plan is what the one before said."""
    mac = _checked(_MAC, neighbour.mac)
    there = _address(neighbour.tunnel_address) if neighbour.tunnel_address else ""
    return mac, there, tuple(map(_address, (*neighbour.addresses, link_local(mac))))


def _address(text: str) -> str:
    return str(address_of(text))


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
