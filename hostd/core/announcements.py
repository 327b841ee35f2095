"""What a router says unasked: that an address is here now, and, over IPv6, that it leads on. Bytes, pure.

ARP is RFC 826, its gratuitous form RFC 5227; neighbour and router advertisements are RFC 4861, name servers in them RFC 8106.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_BROADCAST: Final = b"\xff" * 6
_ARP: Final = 0x0806
_IPV6: Final = 0x86DD
_ICMPV6: Final = 58
_ALL_NODES: Final = ipaddress.IPv6Address("ff02::1")
_ALL_NODES_MAC: Final = bytes.fromhex("333300000001")

ROUTER_SOLICITATION: Final = 133
_ROUTER_ADVERTISEMENT: Final = 134
_NEIGHBOUR_ADVERTISEMENT: Final = 136
_MANAGED: Final = 0xC0
"""Addresses and everything else are to be asked of DHCPv6 (M and O)."""
_ON_LINK: Final = 0x80
"""Of a prefix: its addresses are here (L). Nobody makes one of it by themselves: A is not set."""
_HOP_LIMIT: Final = 64

LIFETIME_S: Final = 1800
"""How long a guest leaves by a router of which it hears nothing more."""
INTERVAL_S: Final = 200
"""Between two advertisements that nobody asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """What a router says of itself in an IPv6 subnet, on the interface `device`. `managed` where DHCPv6 gives the addresses."""

    device: str
    mac: str
    prefix: str
    mtu: int
    managed: bool = True
    dns_servers: tuple[str, ...] = ()


def arrival(mac: str, address: str) -> tuple[bytes, ...]:
    """The Ethernet frames that tell everybody on a segment that `address` is at `mac` from now on. Raises ValueError."""
    sender, ip = _octets(mac), ipaddress.ip_address(address)
    if ip.version == 6:
        return (_unsolicited(sender, ip),)
    body = sender + ip.packed
    head = struct.pack("!HHBB", 1, 0x0800, 6, 4)
    frame = _BROADCAST + sender + struct.pack("!H", _ARP) + head
    # As a question and as an answer: some believe only the one, some the other.
    asked = frame + struct.pack("!H", 1) + body + bytes(6) + ip.packed
    answered = frame + struct.pack("!H", 2) + body + _BROADCAST + ip.packed
    return (asked, answered)


def router_advertisement(said: Advertisement) -> bytes:
    """The ICMPv6 message, its checksum left to the socket (RFC 3542, 3.1). Raises ValueError."""
    network = ipaddress.IPv6Network(said.prefix)
    flags = _MANAGED if said.managed else 0
    servers = [ipaddress.IPv6Address(each) for each in said.dns_servers if ":" in each]
    options = [
        struct.pack("!BB", 1, 1) + _octets(said.mac),
        struct.pack("!BBHI", 5, 1, 0, said.mtu),
        struct.pack("!BBBBIII", 3, 4, network.prefixlen, _ON_LINK, 86_400, 14_400, 0)
        + network.network_address.packed,
    ]
    if servers:
        options.append(
            struct.pack("!BBHI", 25, 1 + 2 * len(servers), 0, LIFETIME_S)
            + b"".join(each.packed for each in servers)
        )
    head = struct.pack("!BBHBBHII", _ROUTER_ADVERTISEMENT, 0, 0, _HOP_LIMIT, flags, LIFETIME_S, 0, 0)
    return head + b"".join(options)


def _unsolicited(sender: bytes, address: ipaddress.IPv6Address) -> bytes:
    # Router and override flags, and the sender's MAC as the target's.
    body = struct.pack("!I", 0xA000_0000) + address.packed + struct.pack("!BB", 2, 1) + sender
    message = struct.pack("!BBH", _NEIGHBOUR_ADVERTISEMENT, 0, 0) + body
    total = checksum((address.packed, _ALL_NODES.packed, struct.pack("!II", len(message), _ICMPV6), message))
    message = struct.pack("!BBH", _NEIGHBOUR_ADVERTISEMENT, 0, total) + body
    head = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, 255)
    ethernet = _ALL_NODES_MAC + sender + struct.pack("!H", _IPV6)
    return ethernet + head + address.packed + _ALL_NODES.packed + message


def checksum(parts: Iterable[bytes]) -> int:
    """The Internet checksum (RFC 1071) of parts of even length."""
    data = b"".join(parts)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _octets(mac: str) -> bytes:
    octets = bytes.fromhex(mac.replace(":", ""))
    if len(octets) != 6:
        raise ValueError(f"{mac!r} is no MAC")
    return octets
