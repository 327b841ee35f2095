"""DHCP clients and a listener for router advertisements: each speaks by `eth0` of the namespace that it is called in."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass

_NO_ADDRESS = "0.0.0.0"  # noqa: S104 - in namespaces that reach nobody
_TRIES = 15


@dataclass(frozen=True)
class Offer:
    address: str
    options: dict[int, bytes]


def discover(client: str) -> Offer:
    """DHCPDISCOVER by broadcast (RFC 2131), and the offer that comes back."""
    head = (
        struct.pack(">BBBBIHH16s", 1, 1, 6, 0, 0x1234ABCD, 0, 0x8000, b"\0" * 16)
        + bytes.fromhex(client.replace(":", ""))
        + b"\0" * 202
    )
    wanted = bytes((53, 1, 1, 55, 6, 1, 3, 6, 12, 26, 121, 255))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client_socket:
        client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        client_socket.bind((_NO_ADDRESS, 68))
        client_socket.settimeout(1)
        reply = b""
        for _ in range(15):
            # As clients do: a server may be starting.
            client_socket.sendto(head + b"\x63\x82\x53\x63" + wanted, ("255.255.255.255", 67))
            with contextlib.suppress(TimeoutError):
                reply = client_socket.recv(2048)
                break
    options: dict[int, bytes] = {}
    rest = reply[240:]
    while rest and rest[0] != 255:
        if rest[0] == 0:
            rest = rest[1:]
            continue
        options[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return Offer(socket.inet_ntoa(reply[16:20]), options)


def declining(client: str, address: str, server: str) -> bytes:
    """A DHCPDECLINE (RFC 2131, 4.3.3): this client has found that somebody else has its address."""
    head = (
        struct.pack(">BBBBIHH16s", 1, 1, 6, 0, 0x1234ABCD, 0, 0, b"\0" * 16)
        + bytes.fromhex(client.replace(":", ""))
        + b"\0" * 202
    )
    options = b"\x35\x01\x04\x32\x04" + socket.inet_aton(address) + b"\x36\x04" + socket.inet_aton(server)
    return head + b"\x63\x82\x53\x63" + options + b"\xff"


def say_to_dhcp(source: str, message: bytes, *, in_pieces: bool) -> None:
    """To everybody, as a client does, by `eth0`; in pieces the first has nothing but where it goes."""
    whole = struct.pack(">HHHH", 68, 67, 8 + len(message), 0) + message
    pieces = [(0x2000, whole[:8]), (1, whole[8:])] if in_pieces else [(0, whole)]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        for place, piece in pieces:
            header = struct.pack(
                ">BBHHHBBH4s4s",
                0x45,
                0,
                20 + len(piece),
                7,
                place,
                64,
                17,
                0,
                socket.inet_aton(source),
                b"\xff" * 4,
            )
            raw.sendto(header + piece, ("255.255.255.255", 0))


@dataclass(frozen=True)
class Offer6:
    """What a DHCPv6 server advertised: the address, empty for none, and the options of the message."""

    address: str
    options: dict[int, bytes]


def solicit(mac: str) -> Offer6:
    """DHCPv6 SOLICIT for one address (RFC 8415), and the ADVERTISE that comes back; no address where none comes."""
    raw = bytes.fromhex(mac.replace(":", ""))
    transaction = b"\x0a\x0b\x0c"
    said = b"".join(
        struct.pack(">HH", code, len(body)) + body
        for code, body in (
            (1, b"\x00\x03\x00\x01" + raw),
            (3, struct.pack(">III", 1, 0, 0)),
            (6, struct.pack(">HH", 23, 24)),
            (8, b"\0\0"),
        )
    )
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        index = socket.if_nametoindex("eth0")
        client.bind(("::", 546))
        client.settimeout(1)
        answer = b""
        for _ in range(_TRIES):
            client.sendto(b"\x01" + transaction + said, ("ff02::1:2", 547, 0, index))
            with contextlib.suppress(TimeoutError):
                answer = client.recv(2048)
                break
    if answer[:4] != b"\x02" + transaction:
        return Offer6("", {})
    options = _options6(answer[4:])
    leased = _options6(options.get(3, b"")[12:]).get(5, b"")
    return Offer6(socket.inet_ntop(socket.AF_INET6, leased[:16]) if leased else "", options)


def _options6(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        code, length = struct.unpack(">HH", data[:4])
        found[code] = data[4 : 4 + length]
        data = data[4 + length :]
    return found


@dataclass(frozen=True)
class Advertisement:
    """A router advertisement (RFC 4861, section 4.2): who sent it, its M flag, its lifetime, MTU, and prefixes with their A flag."""

    source: str
    managed: bool
    lifetime_s: int
    mtu: int
    prefixes: dict[str, bool]


def advertisement(*, timeout_s: float) -> Advertisement | None:
    """Ask for a router (RFC 4861, section 4.1); the first that answers, None where none does in time.

    What comes from another than a link-local address is no advertisement (section 6.1.2), such as the answer to a question from one.
    """
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        index = socket.if_nametoindex("eth0")
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        raw.settimeout(0.5)
        for _ in range(int(timeout_s / 0.5)):
            raw.sendto(b"\x85\0\0\0\0\0\0\0", ("ff02::2", 0, 0, index))
            with contextlib.suppress(TimeoutError):
                while True:
                    message, who = raw.recvfrom(2048)
                    if message[0] == 134 and who[0].startswith("fe80:"):
                        return _advertisement(message, who[0].partition("%")[0])
    return None


def _advertisement(message: bytes, source: str) -> Advertisement:
    mtu, prefixes, rest = 0, {}, message[16:]
    while len(rest) >= 8:
        kind, size = rest[0], rest[1] * 8
        if kind == 5:
            mtu = int.from_bytes(rest[4:8], "big")
        if kind == 3:
            prefixes[f"{socket.inet_ntop(socket.AF_INET6, rest[16:32])}/{rest[2]}"] = bool(rest[3] & 0x40)
        rest = rest[size:]
    return Advertisement(
        source=source,
        managed=bool(message[5] & 0x80),
        lifetime_s=int.from_bytes(message[6:8], "big"),
        mtu=mtu,
        prefixes=prefixes,
    )
