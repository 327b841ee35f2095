"""From one overlay to another: the commands, and what keeps tenants' bridges apart from the host itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

from hostd.core.overlay import (
    BRIDGE_PREFIX,
    SERVICE_INTERFACE,
    SERVICE_PREFIX,
    TUNNEL_PREFIX,
    Bridge,
    Link,
    Overlay,
    ServicePort,
    TapPort,
    Tunnel,
    bridge_name,
    network_alias,
    service_mac,
)
from hostd.core.ruleset import TUNNEL_PORT
from hostd.core.tap_names import MARK

BRIDGES_TABLE: Final = f"{MARK}-bridges"


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
    for (bridge, address), mac in _news(held, want.answers):
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
    for (_, mac), port in _news(pinned, want.pins):
        yield f"fdb replace {mac} dev {port} master static"
    for (tunnel, mac), address in _news(remotes, want.remotes):
        yield f"fdb replace {mac} dev {tunnel} dst {address} self static"


def _news(
    have: Mapping[tuple[str, str], str], want: Mapping[tuple[str, str], str]
) -> list[tuple[tuple[str, str], str]]:
    """What is wanted and not so, in one order whatever theirs is."""
    return sorted((key, value) for key, value in want.items() if have.get(key) != value)


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
        # A host may do without IPv6, as one in a container does; the kernel lets nobody say who has an address here then.
        "net/ipv6/conf/{bridge}/disable_ipv6": "0",
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
