"""What the kernel's connection tracking says over netlink, as values, and what it is asked. Pure.

Messages and attributes are those of linux/netfilter/nfnetlink_conntrack.h. A dump of a hundred thousand connections is a few
megabytes here; conntrack(8) would have to be run for each connection that is to be forgotten.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from typing import Final

from fabric.model.firewall import ICMP, ICMPV6
from hostd.core.connections import Connection, IpAddress, Tuple

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

_CONNTRACK: Final = 1 << 8
_NFTABLES: Final = 10 << 8
CT_NEW: Final = _CONNTRACK | 0
CT_GET: Final = _CONNTRACK | 1
CT_DELETE: Final = _CONNTRACK | 2
NFT_NEWGEN: Final = _NFTABLES | 15
NFT_GETGEN: Final = _NFTABLES | 16

# Attributes of a connection, of a tuple in it, and of the tuple's protocol.
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE = 1, 2, 12, 18
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCE, _DESTINATION = {1, 3}, {2, 4}
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_ICMP_TYPE, _ICMP_CODE = {5, 8}, {6, 9}
_NESTED: Final = 0x8000
_TYPE: Final = 0x3FFF
_FAMILY: Final = {4: 2, 6: 10}
"""AF_INET, AF_INET6."""

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")


def message(kind: int, flags: int, sequence: int, *, family: int = 0, attributes: bytes = b"") -> bytes:
    """A netlink message with the header that all of netfilter's have (struct nfgenmsg)."""
    body = struct.pack("=BBH", family, 0, 0) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def messages(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The messages of one read: kind, sequence, and what is behind the header. Raises ValueError for what is cut off."""
    offset = 0
    while offset < len(received):
        if len(received) - offset < _HEADER.size:
            raise ValueError("half a netlink header")
        length, kind, _, sequence, _ = _HEADER.unpack_from(received, offset)
        if not _HEADER.size <= length <= len(received) - offset:
            raise ValueError(f"a netlink message of {length} bytes where {len(received) - offset} are left")
        yield kind, sequence, received[offset + _HEADER.size : offset + length]
        offset += _aligned(length)


def error_of(body: bytes) -> int:
    """The errno in the body of an NLMSG_ERROR; 0 is an acknowledgement. Raises ValueError."""
    if len(body) < 4:
        raise ValueError("a netlink error without a number")
    (negative,) = struct.unpack_from("=i", body)
    return -int(negative)


def generation(body: bytes) -> int:
    """How often the namespace's nftables were changed, by anybody, from an NFT_NEWGEN. Raises ValueError."""
    found = _attributes(body[4:]).get(1, b"")
    if len(found) != 4:
        raise ValueError("no generation in the answer")
    return int.from_bytes(found, "big")


def dump_request(sequence: int, zone: int) -> bytes:
    """Asks for the connections of a zone. A kernel too old to sort them out answers with those of all."""
    flags = NLM_F_DUMP
    return message(CT_GET, flags, sequence, attributes=_attribute(_ZONE, zone.to_bytes(2, "big")))


def delete_request(sequence: int, connection: Connection) -> bytes:
    """Asks to forget that very connection: one made since with the same addresses has another id and stays."""
    family = _FAMILY[connection.original.source.version]
    return message(CT_DELETE, NLM_F_ACK, sequence, family=family, attributes=connection.key)


def connection(body: bytes) -> Connection | None:
    """The connection in the body of a CT_NEW; None for what is neither IPv4 nor IPv6. Raises ValueError for what is malformed."""
    try:
        found = _attributes(body[4:])
        original, protocol, icmp_type, icmp_code = _tuple(found[_TUPLE_ORIGINAL])
        reply, _, _, _ = _tuple(found[_TUPLE_REPLY])
    except (KeyError, IndexError, struct.error) as error:
        raise ValueError(f"not a connection: {error!r}") from error
    if original is None or reply is None:
        return None
    zone = found.get(_ZONE, b"\0\0")
    key = _attribute(_TUPLE_ORIGINAL | _NESTED, found[_TUPLE_ORIGINAL])
    key += _attribute(_ZONE, zone)
    if _ID in found:
        key += _attribute(_ID, found[_ID])
    return Connection(
        zone=int.from_bytes(zone, "big"),
        protocol=protocol,
        original=original,
        reply=reply,
        icmp_type=icmp_type if protocol in {ICMP, ICMPV6} else None,
        icmp_code=icmp_code if protocol in {ICMP, ICMPV6} else None,
        key=key,
    )


def _tuple(nested: bytes) -> tuple[Tuple | None, int, int, int]:
    found = _attributes(nested)
    source: IpAddress | None = None
    destination: IpAddress | None = None
    for kind, value in _attributes(found[_TUPLE_IP]).items():
        if kind in _SOURCE:
            source = ipaddress.ip_address(value)
        elif kind in _DESTINATION:
            destination = ipaddress.ip_address(value)
    numbers = {kind: int.from_bytes(value, "big") for kind, value in _attributes(found[_TUPLE_PROTO]).items()}
    icmp_type = next((number for kind, number in numbers.items() if kind in _ICMP_TYPE), 0)
    icmp_code = next((number for kind, number in numbers.items() if kind in _ICMP_CODE), 0)
    if source is None or destination is None:
        return None, 0, 0, 0
    addresses = Tuple(source, destination, numbers.get(_SOURCE_PORT, 0), numbers.get(_DESTINATION_PORT, 0))
    return addresses, numbers[_NUMBER], icmp_type, icmp_code


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            raise ValueError(f"a netlink attribute of {length} bytes where {len(data) - offset} are left")
        found[kind & _TYPE] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
