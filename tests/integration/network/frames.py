"""Frames as bytes, made and read: just what tests of a packet filter send, with the checksums that conntrack looks at.

Every IP packet carries a number that no switch changes, IPv4's identification or IPv6's flow label; by it a packet is known again
where it arrives, whole or in pieces.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
ICMP, TCP, UDP, FRAGMENT, ICMPV6 = 1, 6, 17, 44, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16
BROADCAST = "ff:ff:ff:ff:ff:ff"


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def address_bytes(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def is_ipv6(address: str) -> bool:
    return ":" in address


def ethernet(source: str, destination: str, kind: int, payload: bytes) -> bytes:
    return mac_bytes(destination) + mac_bytes(source) + struct.pack("!H", kind) + payload


def tagged(frame: bytes, vlan: int) -> bytes:
    """The frame with a VLAN tag."""
    return frame[:12] + struct.pack("!HH", VLAN, vlan) + frame[12:]


def arp(
    source: str,
    sender_mac: str,
    sender: str,
    target: str,
    *,
    operation: int = 1,
    destination: str = BROADCAST,
) -> bytes:
    """A request, or with operation 2 an answer, in a frame from `source`."""
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    body += (
        mac_bytes(sender_mac) + address_bytes(sender) + mac_bytes("00:00:00:00:00:00") + address_bytes(target)
    )
    return ethernet(source, destination, ARP, body)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _transport_checksum(source: str, destination: str, protocol: int, segment: bytes) -> int:
    ends = address_bytes(source) + address_bytes(destination)
    if is_ipv6(source):
        return checksum(ends + struct.pack("!II", len(segment), protocol) + segment)
    return checksum(ends + struct.pack("!BBH", 0, protocol, len(segment)) + segment)


def udp(source: str, destination: str, sport: int, dport: int, payload: bytes = b"") -> bytes:
    segment = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    summed = _transport_checksum(source, destination, UDP, segment) or 0xFFFF
    return segment[:6] + struct.pack("!H", summed) + segment[8:]


def tcp(
    source: str,
    destination: str,
    sport: int,
    dport: int,
    *,
    flags: int,
    seq: int,
    ack: int,
    payload: bytes = b"",
) -> bytes:
    segment = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 64000, 0, 0) + payload
    summed = _transport_checksum(source, destination, TCP, segment)
    return segment[:16] + struct.pack("!H", summed) + segment[18:]


def icmp(source: str, destination: str, kind: int, code: int, rest: bytes) -> bytes:
    """ICMP of the addresses' family; `rest` begins behind the checksum."""
    if is_ipv6(source):
        summed = _transport_checksum(source, destination, ICMPV6, struct.pack("!BBH", kind, code, 0) + rest)
    else:
        summed = checksum(struct.pack("!BBH", kind, code, 0) + rest)
    return struct.pack("!BBH", kind, code, summed) + rest


def packet(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    number: int,
    hops: int = 64,
    extension: bytes = b"",
) -> bytes:
    """A whole IP packet. `extension` is an IPv6 header that goes before the payload, its first byte already the protocol's."""
    if is_ipv6(source):
        first = 60 if extension else protocol
        header = struct.pack("!IHBB", 6 << 28 | number, len(extension) + len(payload), first, hops)
        return header + address_bytes(source) + address_bytes(destination) + extension + payload
    return _ipv4(source, destination, protocol, payload, number, hops, 0)


def _ipv4(
    source: str, destination: str, protocol: int, payload: bytes, number: int, hops: int, where: int
) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), number, where, hops, protocol, 0)
    header += address_bytes(source) + address_bytes(destination)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def fragments(
    source: str, destination: str, protocol: int, payload: bytes, *, number: int, size: int
) -> list[bytes]:
    """The packet in pieces of `size` bytes of payload, a multiple of 8."""
    made = []
    for offset in range(0, len(payload), size):
        piece = payload[offset : offset + size]
        more = offset + size < len(payload)
        if is_ipv6(source):
            header = struct.pack("!BBHI", protocol, 0, offset | more, number)
            made.append(packet(source, destination, FRAGMENT, header + piece, number=number))
        else:
            where = offset >> 3 | (0x2000 if more else 0)
            made.append(_ipv4(source, destination, protocol, piece, number, 64, where))
    return made


@dataclass(frozen=True, slots=True)
class Seen:
    """What arrived of a packet: its number, and a piece of its payload."""

    number: int
    offset: int
    more: bool
    payload: bytes


def read(frame: bytes) -> Seen | None:
    """The IP packet, or piece of one, in a frame; None where there is none."""
    kind = struct.unpack_from("!H", frame, 12)[0]
    data = frame[14:]
    if kind == IPV4:
        length, number, where = struct.unpack_from("!HHH", data, 2)
        return Seen(number, (where & 0x1FFF) << 3, bool(where & 0x2000), data[(data[0] & 15) * 4 : length])
    if kind == IPV6:
        first, length, following = struct.unpack_from("!IHB", data, 0)
        number, payload = first & 0xFFFFF, data[40 : 40 + length]
        if following != FRAGMENT:
            return Seen(number, 0, False, payload)
        where = struct.unpack_from("!H", payload, 2)[0]
        return Seen(number, where & 0xFFF8, bool(where & 1), payload[8:])
    return None


def put_together(pieces: list[Seen]) -> bytes | None:
    """The payload of a packet from its pieces, None while some are missing."""
    payload = b""
    for piece in sorted(set(pieces), key=lambda it: it.offset):
        if piece.offset != len(payload):
            return None
        payload += piece.payload
        if not piece.more:
            return payload
    return None
