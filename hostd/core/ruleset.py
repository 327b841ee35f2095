"""The packet filter of a host, whole, as one nft script. Pure.

The script replaces our two tables in one transaction, so it is the same whether it is the first or the thousandth, and no packet
meets half of it. What enters by a tap must be its guest's own: MAC, ARP, IPv4 source. A tap of ours that no rule knows may send
nothing, so the order of things is: first the rules, then the tap. Only IPv4 and ARP exist between guests: no router
advertisement, no VLAN tag and no other protocol can be forged where none passes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fabric.model.network import METADATA_ADDRESS
from hostd.core.tap_names import MARK, TAP_PREFIX, TapMark

METADATA_PORT: Final = 80
TUNNEL_PORT: Final = 4789
"""VXLAN's (RFC 7348)."""

_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MAC: Final = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """A guest subnet and the address the host has in it."""

    network: ipaddress.IPv4Network
    gateway: ipaddress.IPv4Address

    @classmethod
    def of(cls, gateway: str, prefix_length: int) -> Subnet:
        """The subnet that `gateway` is the gateway of. Raises ValueError for what is none."""
        interface = ipaddress.IPv4Interface(f"{gateway}/{prefix_length}")
        return cls(network=interface.network, gateway=interface.ip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """What the rules depend on. `blocked` are networks that guests may not reach, such as the operator's own.

    `others` are taps on tenant networks, which `hostd.core.firewall` filters.
    """

    bridge: str
    subnets: tuple[Subnet, ...]
    taps: tuple[TapMark, ...]
    blocked: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def ruleset(plane: Plane) -> str:
    """The script for `nft -f -`. Raises ValueError for a name, a MAC or an address that is not one: nothing is quoted here."""
    _require(_INTERFACE, plane.bridge)
    taps = sorted(plane.taps, key=lambda mark: mark.tap)
    lines = [*_bridge_table(plane, taps), *_inet_table(plane)]
    return "\n".join(lines) + "\n"


def teardown() -> str:
    """The script that removes our tables, whether they are there or not."""
    return "".join(
        f"add table {family} {MARK}\ndelete table {family} {MARK}\n" for family in ("bridge", "inet")
    )


def _bridge_table(plane: Plane, taps: list[TapMark]) -> Iterable[str]:
    hosts = ("255.255.255.255", *(str(subnet.gateway) for subnet in plane.subnets))
    yield from (f"add table bridge {MARK}", f"delete table bridge {MARK}", f"table bridge {MARK} {{")
    for mark in taps:
        yield from _from_tap(mark, hosts)
    # Before the bridge learns or forwards anything.
    yield "  chain ingress { type filter hook prerouting priority -300; policy accept;"
    if taps:
        jumps = ", ".join(f'"{mark.tap}" : jump from-{mark.tap}' for mark in taps)
        yield f"    iifname vmap {{ {jumps} }}"
    if passed := _set(f'"{_require(_INTERFACE, tap)}"' for tap in plane.others):
        yield f"    iifname {passed} accept"
    yield f'    iifname "{TAP_PREFIX}*" drop'
    yield "  }"
    yield "}"


def dhcp_of_others(macs: Iterable[str]) -> str:
    """The match of what is said to a DHCP server in the name of another than these MACs (RFC 2131, 2: chaddr is 28 behind UDP's 8)."""
    words = (f"0x{mac.replace(':', '')}" for mac in macs)
    return f"udp dport 67 @th,288,48 != {_set(words)}"


def _from_tap(mark: TapMark, hosts: Iterable[str]) -> Iterable[str]:
    """`hosts` are the addresses that the host hears DHCP at."""
    mac = _require(_MAC, mark.mac)
    address = ipaddress.IPv4Address(mark.address)
    yield f"  chain from-{mark.tap} {{"
    yield f"    ether saddr != {mac} drop"
    yield f"    ether type arp arp saddr ether {mac} arp saddr ip {{ {address}, 0.0.0.0 }} accept"
    # Only the host is a DHCP server here.
    yield "    ether type ip udp sport 67 drop"
    # Whose address is asked for, or declined, DHCP says in the message; and nothing else of UDP is for the host.
    yield f"    ether type ip {dhcp_of_others([mac])} drop"
    yield f"    ether type ip ip protocol udp ip daddr {_set(hosts)} ip frag-off & 0x3fff != 0 drop"
    yield f"    ether type ip ip saddr {address} accept"
    yield "    ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept"
    yield "    drop"
    yield "  }"


def _inet_table(plane: Plane) -> Iterable[str]:
    bridge = f'"{plane.bridge}"'
    gateways = _set(str(subnet.gateway) for subnet in plane.subnets)
    networks = _set(str(subnet.network) for subnet in plane.subnets)
    kept_out = map(ipaddress.IPv4Network, ("169.254.0.0/16", *plane.blocked))
    # One inside another would be a conflict of a set.
    blocked = _set(map(str, ipaddress.collapse_addresses(kept_out)))
    yield from (f"add table inet {MARK}", f"delete table inet {MARK}", f"table inet {MARK} {{")
    # What a guest may ask of the host itself: an address, its metadata, and whether the gateway is there.
    yield "  chain input { type filter hook input priority filter; policy accept;"
    yield f"    iifname != {bridge} accept"
    yield "    ct state established,related accept"
    yield "    ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept"
    if gateways:
        yield f"    ip daddr {gateways} udp sport 68 udp dport 67 accept"
        yield f"    ip daddr {gateways} icmp type echo-request accept"
    yield f"    ip daddr {METADATA_ADDRESS} tcp dport {METADATA_PORT} accept"
    yield "    drop"
    yield "  }"
    # Where guests' packets may go beyond the bridge. Bridged ones pass here too where br_netfilter is on.
    yield "  chain forward { type filter hook forward priority filter; policy accept;"
    yield f"    iifname != {bridge} accept"
    yield f"    oifname {bridge} accept"
    # Into no tunnel of tenants': what comes there from a host's address is taken for a host's word.
    yield f"    udp dport {TUNNEL_PORT} drop"
    yield "    ct state established,related accept"
    yield "    meta nfproto ipv6 drop"
    yield f"    ip saddr != {networks} drop" if networks else "    drop"
    yield f"    ip daddr {blocked} drop"
    yield "  }"
    yield "  chain postrouting { type nat hook postrouting priority srcnat; policy accept;"
    if networks:
        yield f"    oifname != {bridge} ip saddr {networks} ip daddr != {networks} masquerade"
    yield "  }"
    yield "}"


def _set(elements: Iterable[str]) -> str:
    """An anonymous set; nft refuses an empty one, so that is the empty string."""
    unique = sorted(set(elements))
    return f"{{ {', '.join(unique)} }}" if unique else ""


def _require(pattern: re.Pattern[str], text: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(f"{text!r} does not match {pattern.pattern}")
    return text
