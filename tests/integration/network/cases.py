"""Made-up filters and conversations, all of them from a seed: two guests with filters, and an outside without.

The pools are small on purpose. What is drawn must collide: rules that just miss, prefixes in prefixes, ports at the ends of ranges,
the same pair of addresses in many conversations, rules that go while something is under way.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fabric.model.firewall import (
    AddressSet,
    Direction,
    EtherType,
    FilterRule,
    HostFilters,
    PortFilter,
    PortRange,
    RuleGroup,
)
from tests.integration.network import frames
from tests.integration.network.frames import ACK, FIN, SYN
from tests.integration.network.security_groups import Packet

NETWORK = "net-a"
GUESTS = {
    "p1": ("52:54:00:00:00:01", ("10.0.0.11", "2001:db8::11")),
    "p2": ("52:54:00:00:00:02", ("10.0.0.12", "2001:db8::12")),
}
OUTSIDE = "x1"
OUTSIDE_MAC = "52:54:00:00:00:09"
OUTSIDERS = {
    4: ("10.0.0.200", "192.0.2.7", "198.51.100.9", "10.1.2.3"),
    6: ("2001:db8::200", "2001:db8:1::7", "2001:db8:ffff::9"),
}
_PREFIXES = {
    4: (
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/24",
        "10.0.0.0/28",
        "10.0.0.12/32",
        "192.0.2.0/25",
        "192.0.2.7/32",
    ),
    6: ("::/0", "2001:db8::/32", "2001:db8::/64", "2001:db8::12/128", "2001:db8:1::/48", "2001:db8:1::7/128"),
}
_PORTS = (22, 53, 80, 1000, 1001, 2000, 65535)
_RANGES = (
    (22, 22),
    (53, 53),
    (80, 80),
    (1000, 2000),
    (1001, 1001),
    (1, 65535),
    (0, 65535),
    (2000, 2100),
    (81, 1000),
)
_OTHER = (99, 253)
"""Protocols without ports: one for private encryption, one for experiments."""
_EVERYTHING_OUT = frozenset(FilterRule(direction=Direction.EGRESS, ether_type=it) for it in EtherType)
"""What a default group allows."""


def filters(chance: random.Random) -> HostFilters:
    sets = tuple(_set(chance, name) for name in ("alpha", "beta"))
    groups = tuple(
        RuleGroup(
            id=name,
            rules=frozenset(_rule(chance) for _ in range(chance.choice((0, 1, 2, 4, 8, 16))))
            | (_EVERYTHING_OUT if chance.random() < 0.4 else frozenset()),
        )
        for name in ("one", "two", "three")
    )
    ports = tuple(
        PortFilter(
            port_id=tap,
            instance_id=f"instance-{tap}",
            network_id=NETWORK,
            tap=tap,
            mac=mac,
            addresses=addresses,
            port_security=chance.random() > 0.08,
            groups=tuple(chance.sample([it.id for it in groups], chance.randint(0, 3))),
        )
        for tap, (mac, addresses) in GUESTS.items()
    )
    return HostFilters(ports=ports, groups=groups, sets=sets)


def changed(chance: random.Random, now: HostFilters) -> HostFilters:
    """The same with something else: rules, members, or the groups of a port."""
    groups = {it.id: it for it in now.groups}
    for _ in range(chance.randint(1, 3)):
        group = groups[chance.choice(sorted(groups))]
        rules = sorted(group.rules, key=repr)
        if rules and chance.random() < 0.6:
            rules.remove(chance.choice(rules))
        else:
            rules.append(_rule(chance))
        groups[group.id] = replace(group, rules=frozenset(rules))
    sets = tuple(_set(chance, it.name) if chance.random() < 0.3 else it for it in now.sets)
    ports = tuple(
        replace(port, groups=tuple(chance.sample(sorted(groups), chance.randint(0, 3))))
        if chance.random() < 0.3
        else port
        for port in now.ports
    )
    return HostFilters(ports=ports, groups=tuple(groups.values()), sets=sets)


def _set(chance: random.Random, name: str) -> AddressSet:
    pool = (
        *_PREFIXES[4],
        *_PREFIXES[6],
        *OUTSIDERS[4],
        *OUTSIDERS[6],
        "10.0.0.11",
        "10.0.0.12",
        "2001:db8::11",
    )
    return AddressSet(name=name, members=frozenset(chance.sample(pool, chance.randint(0, 5))))


def _rule(chance: random.Random) -> FilterRule:
    ether_type = chance.choice(list(EtherType))
    version = ether_type.ip_version
    icmp = 1 if version == 4 else 58
    protocol = chance.choice((None, 6, 6, 17, 17, icmp, icmp, *_OTHER))
    ports, kind, code = None, None, None
    if protocol in {6, 17} and chance.random() < 0.8:
        first, last = chance.choice(_RANGES)
        ports = PortRange(first=first, last=last)
    if protocol == icmp and chance.random() < 0.5:
        kind = chance.choice((8, 13, 3) if version == 4 else (128, 1, 129))
        code = chance.choice((None, 0, 1))
    remote = chance.choice(("any", "prefix", "prefix", "set"))
    return FilterRule(
        direction=chance.choice(list(Direction)),
        ether_type=ether_type,
        protocol=protocol,
        ports=ports,
        icmp_type=kind,
        icmp_code=code,
        remote_prefix=chance.choice(_PREFIXES[version]) if remote == "prefix" else None,
        remote_set=chance.choice(("alpha", "beta")) if remote == "set" else None,
    )


# ------------------------------------------------------------------ conversations


@dataclass(frozen=True)
class Sent:
    """A packet to be sent: who sends it, where it must go, what it is, and its IP payload in the pieces it travels in."""

    sender: str
    receiver: str
    packet: Packet
    payload: bytes
    pieces: tuple[bytes, ...]


class Numbers:
    """Numbers of packets, not the same twice while pieces of the first could still wait for the rest (30 s)."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        self._last = self._last % 0xFFFF + 1
        return self._last


class Talk:
    """One conversation, as the packets of it come one after the other. Its state is that of two honest ends.

    `port` is the client's, and for ICMP the identifier: of a conversation's own, and above every port that a rule names on purpose.
    `smallest6` is the payload of the smallest piece in which an IPv6 packet may travel, even if it is the only one.
    """

    def __init__(self, chance: random.Random, numbers: Numbers, port: int, *, smallest6: int = 8) -> None:
        self._smallest6 = smallest6
        self._chance = chance
        self._numbers = numbers
        here, there = chance.choice(
            (("p1", "p2"), ("p2", "p1"), ("p1", OUTSIDE), (OUTSIDE, "p1"), (OUTSIDE, "p2"))
        )
        version = chance.choice((4, 6))
        self.sides = {
            address: tap
            for tap, address in ((here, self._address(here, version)), (there, self._address(there, version)))
        }
        self.client, self.server = self.sides
        self._icmp = 1 if version == 4 else 58
        self.protocol = chance.choice((6, 6, 17, 17, self._icmp, chance.choice(_OTHER)))
        self._sport = port
        self._dport = chance.choice(_PORTS)
        self._kind = chance.choice((8, 8, 13)) if version == 4 else 128
        self._steps = self._script()
        self._sequence = {self.client: 1000, self.server: 5000}

    def _address(self, tap: str, version: int) -> str:
        if tap == OUTSIDE:
            return self._chance.choice(OUTSIDERS[version])
        return next(it for it in GUESTS[tap][1] if frames.is_ipv6(it) == (version == 6))

    def _script(self) -> list[str]:
        """What is said: by the client `>`, by the server `<`; an error about the one or the other `!>`, `!<`; cut short, stray."""
        if self.protocol == 6:
            return self._chance.choice(
                (
                    ["syn>", "synack<", "ack>", "data>", "data<", "data>", "data<"],
                    ["syn>", "synack<", "ack>", "data<", "error>", "data>", "error<"],
                    ["syn>", "error>", "synack<", "ack>", "fin>", "data<"],
                    ["data>", "data<", "synack<", "ack>"],
                    ["synack<", "fin>", "stray>", "syn>"],
                )
            )
        return self._chance.choice(
            (
                ["data>", "data<", "data>", "data<"],
                ["data>", "data>", "data<", "error>", "data>"],
                ["pieces>", "pieces<", "data>", "pieces>"],
                ["pieces>", "error>", "error<", "data<"],
                ["half>", "tail>", "data>", "half<", "data<"],
                ["data<", "error>", "data>", "stray>"],
            )
        )

    @property
    def over(self) -> bool:
        return not self._steps

    def say(self) -> Sent:
        """The next packet."""
        step = self._steps.pop(0)
        word, forth = step[:-1], step[-1] == ">"
        source, destination = (self.client, self.server) if forth else (self.server, self.client)
        if word in {"error", "stray"}:
            return self._error(source, destination, forth=forth, stray=word == "stray")
        packet, payload = self._packet(
            word, source, destination, forth=forth, long=word not in {"data", "error"}
        )
        number = self._numbers.next()
        if word not in {"pieces", "half", "tail"}:
            whole = (frames.packet(source, destination, self.protocol, payload, number=number),)
            return self._sent(source, destination, packet, payload, whole)
        # Incomplete ones in few pieces: all that wait for the rest share 4 MiB for half a minute (net.ipv4.ipfrag_high_thresh).
        size = self._chance.choice((8, 64, 200, 1000) if word == "pieces" else (1000,))
        if frames.is_ipv6(source):
            size = max(size, self._smallest6)
        pieces = frames.fragments(source, destination, self.protocol, payload, number=number, size=size)
        if frames.is_ipv6(source) and len(payload) < self._smallest6:
            pieces = [frames.packet(source, destination, self.protocol, payload, number=number)]
        if word == "half":
            pieces = pieces[:-1]
        if word == "tail":
            pieces = pieces[1:]
        if self._chance.random() < 0.3:
            self._chance.shuffle(pieces)
        return self._sent(
            source, destination, replace(packet, complete=word == "pieces"), payload, tuple(pieces)
        )

    def _sent(
        self, source: str, destination: str, packet: Packet, payload: bytes, pieces: tuple[bytes, ...]
    ) -> Sent:
        sender, receiver = self.sides[source], self.sides[destination]
        kind = frames.IPV6 if frames.is_ipv6(source) else frames.IPV4
        framed = tuple(frames.ethernet(_mac(sender), _mac(receiver), kind, piece) for piece in pieces)
        return Sent(sender, receiver, packet, payload, framed)

    def _packet(
        self, word: str, source: str, destination: str, *, forth: bool, long: bool
    ) -> tuple[Packet, bytes]:
        data = bytes(
            self._chance.randrange(256) for _ in range(self._chance.randint(300, 2000) if long else 24)
        )
        sport, dport = (self._sport, self._dport) if forth else (self._dport, self._sport)
        packet = Packet(source, destination, self.protocol, sport, dport)
        if self.protocol == 17:
            return packet, frames.udp(source, destination, sport, dport, data)
        if self.protocol == 6:
            return self._segment(word, packet)
        if self.protocol == self._icmp:
            kind = self._kind if forth else self._kind + 1 if self._kind in {13, 128} else 0
            packet = Packet(source, destination, self.protocol, sport=self._sport, kind=kind)
            rest = self._sport.to_bytes(2, "big") + b"\0\1" + data
            return packet, frames.icmp(source, destination, kind, 0, rest)
        return Packet(source, destination, self.protocol), data

    def _segment(self, word: str, packet: Packet) -> tuple[Packet, bytes]:
        flags = {"syn": SYN, "synack": SYN | ACK, "ack": ACK, "data": ACK, "fin": FIN | ACK}[word]
        data = b"some words" if word == "data" else b""
        payload = frames.tcp(
            packet.source,
            packet.destination,
            packet.sport,
            packet.dport,
            flags=flags,
            seq=self._sequence[packet.source],
            ack=self._sequence[packet.destination] if flags & ACK else 0,
            payload=data,
        )
        self._sequence[packet.source] += len(data) + (1 if flags & (SYN | FIN) else 0)
        return replace(packet, syn=word == "syn"), payload

    def _error(self, source: str, destination: str, *, forth: bool, stray: bool) -> Sent:
        """Who got the last of it says that it could not be delivered. A stray one is about what nobody ever sent."""
        about, quoted = self._packet(
            "ack" if self.protocol == 6 else "data", destination, source, forth=not forth, long=False
        )
        if stray and self.protocol in {6, 17}:
            about = replace(about, dport=9)
            quoted = quoted[:2] + (9).to_bytes(2, "big") + quoted[4:]
        inner = frames.packet(destination, source, self.protocol, quoted, number=1)
        kind, code = self._chance.choice(
            ((3, 1), (3, 3), (11, 0)) if self._icmp == 1 else ((1, 0), (1, 4), (3, 0))
        )
        payload = frames.icmp(source, destination, kind, code, bytes(4) + inner)
        packet = Packet(source, destination, self._icmp, kind=kind, code=code, about=about)
        whole = (frames.packet(source, destination, self._icmp, payload, number=self._numbers.next()),)
        return self._sent(source, destination, packet, payload, whole)


def _mac(tap: str) -> str:
    return OUTSIDE_MAC if tap == OUTSIDE else GUESTS[tap][0]


def mixed(chance: random.Random, talks: list[Talk]) -> Iterator[Sent]:
    """The packets of all the conversations, in each its own order and between them any."""
    while going := [talk for talk in talks if not talk.over]:
        yield chance.choice(going).say()
