"""What a guest may never say, said by a guest: nothing of it may reach a neighbour, the outside, or the host.

Its groups allow it everything, so what stops it is none of them; and beside what must not pass stands what must.
"""

from __future__ import annotations

import asyncio
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest

from fabric.model.firewall import (
    AddressPair,
    Direction,
    EtherType,
    FilterRule,
    HostFilters,
    PortFilter,
    RuleGroup,
)
from hostd.core.firewall import Tracking, link_local
from hostd.network import nfnetlink
from hostd.network.firewall import Firewall
from hostd.network.netns import Namespace
from tests.conformance.namespaces import inside, ip
from tests.integration.network.frames import (
    BROADCAST,
    ICMPV6,
    IPV4,
    IPV6,
    UDP,
    address_bytes,
    arp,
    ethernet,
    fragments,
    icmp,
    mac_bytes,
    packet,
    tagged,
    udp,
)
from tests.integration.network.lan import Lan, a_lan

MISSING = [name for name in ("ip", "nft", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

GUEST, VICTIM, OUTSIDE = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:09"
GUEST4, GUEST6, GUEST_LL = "10.0.0.11", "2001:db8::11", link_local(GUEST)
VICTIM4, VICTIM6, VICTIM_LL = "10.0.0.12", "2001:db8::12", link_local(VICTIM)
ROUTER4, ROUTER_LL = "10.0.0.1", "fe80::1"
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
UNSPECIFIED4, UNSPECIFIED6 = "0.0.0.0", "::"  # noqa: S104 - in packets, of namespaces that reach nobody

EVERYTHING = RuleGroup(
    id="everything",
    rules=frozenset(
        FilterRule(direction=direction, ether_type=ether_type)
        for direction in Direction
        for ether_type in EtherType
    ),
)


def _port(tap: str, mac: str, *addresses: str) -> PortFilter:
    return PortFilter(
        port_id=tap,
        instance_id=tap,
        network_id="net",
        tap=tap,
        mac=mac,
        addresses=addresses,
        groups=(EVERYTHING.id,),
    )


PORTS = (_port("guest", GUEST, GUEST4, GUEST6), _port("victim", VICTIM, VICTIM4, VICTIM6))


@dataclass
class Site:
    lan: Lan
    firewall: Firewall

    async def filter(self, *ports: PortFilter) -> None:
        await self.firewall.apply(HostFilters(ports=ports, groups=(EVERYTHING,)), {"net": "br0"})

    def given(self, *frames: bytes, sender: str = "guest") -> dict[str, list[bytes]]:
        """Who is given what of frames that `sender` sends."""
        self.lan.settle()
        self.lan.ends[sender].send(*frames)
        return {tap: given for tap, given in self.lan.settle().items() if given}


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with a_lan() as made:
        made.add_bridge("br0")
        for tap in ("guest", "victim", "outside"):
            made.add_end(tap, "br0")
        made.up("guest", "victim", "outside")
        yield made


@pytest.fixture
async def site(lan: Lan) -> Site:
    """Filtered from nothing, without anything that a test before has said."""
    made = Site(lan, Firewall(Namespace(lan.host)))
    await made.filter(*PORTS)
    inside(lan.host, partial(nfnetlink.forget, [1], iter))
    ip("link", "set", "br0", "type", "bridge", "fdb_flush", netns=lan.host)
    lan.settle()
    return made


def four(source: str, destination: str, payload: bytes, mac: str = GUEST, to: str = VICTIM) -> bytes:
    return ethernet(mac, to, IPV4, packet(source, destination, UDP, payload, number=1))


def six(
    source: str,
    destination: str,
    payload: bytes,
    *,
    mac: str = GUEST,
    to: str = VICTIM,
    protocol: int = UDP,
    hops: int = 64,
) -> bytes:
    return ethernet(mac, to, IPV6, packet(source, destination, protocol, payload, number=1, hops=hops))


def said4(source: str, destination: str = VICTIM4, sport: int = 1000, dport: int = 53) -> bytes:
    return udp(source, destination, sport, dport, b"words")


def nd(
    kind: int, source: str, target: str, option: str = "", *, mac: str = GUEST, destination: str = ALL_NODES
) -> bytes:
    """A solicitation (135) or an advertisement (136) about `target`, with the link-layer address `option`."""
    rest = bytes(4) if kind == 135 else struct.pack("!I", 0x60000000)
    rest += address_bytes(target)
    if option:
        rest += bytes((kind - 134, 1)) + mac_bytes(option)
    return six(
        source,
        destination,
        icmp(source, destination, kind, 0, rest),
        mac=mac,
        to=ALL_NODES_MAC,
        protocol=ICMPV6,
        hops=255,
    )


def router_advertisement(source: str) -> bytes:
    return icmp(
        source, ALL_NODES, 134, 0, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + b"\x01\x01" + mac_bytes(GUEST)
    )


def rogue_dhcp6(source: str) -> bytes:
    return udp(source, VICTIM_LL, 547, 546, b"\x02" + bytes(40))


def dhcp_question(source: str, client: str) -> bytes:
    """What a client says to a DHCP server, as far as the filter looks into it: whose MAC it is about (RFC 2131, 2: chaddr)."""
    return udp(
        source, "255.255.255.255", 68, 67, bytes((1, 1, 6)) + bytes(25) + mac_bytes(client) + bytes(206)
    )


def _hidden_in_fragments(
    source: str, destination: str, protocol: int, payload: bytes, kind: int
) -> list[bytes]:
    """In pieces, of which the first does not even have the whole header of what is in it."""
    pieces = fragments(source, destination, protocol, payload, number=3, size=8)
    return [ethernet(GUEST, ALL_NODES_MAC if kind == IPV6 else BROADCAST, kind, piece) for piece in pieces]


def _behind_extensions(source: str, payload: bytes, *, headers: int) -> bytes:
    """Behind so many destination options headers (RFC 7113 tells why)."""
    extension = b"".join(
        bytes((60 if number + 1 < headers else ICMPV6, 0, 1, 4, 0, 0, 0, 0)) for number in range(headers)
    )
    inside = packet(source, ALL_NODES, ICMPV6, payload, number=1, hops=255, extension=extension)
    return ethernet(GUEST, ALL_NODES_MAC, IPV6, inside)


SPOOFS: dict[str, list[bytes]] = {
    "another's IPv4 address": [four(VICTIM4, ROUTER4, said4(VICTIM4, ROUTER4), to=OUTSIDE)],
    "nobody's IPv4 address": [four("192.0.2.1", VICTIM4, said4("192.0.2.1"))],
    "another's IPv6 address": [six(VICTIM6, "2001:db8::99", udp(VICTIM6, "2001:db8::99", 1, 2), to=OUTSIDE)],
    "another's link-local address": [six(ROUTER_LL, VICTIM_LL, udp(ROUTER_LL, VICTIM_LL, 1, 2))],
    "another's MAC": [four(GUEST4, VICTIM4, said4(GUEST4), mac=OUTSIDE)],
    "another's MAC and addresses": [four(VICTIM4, ROUTER4, said4(VICTIM4, ROUTER4), mac=VICTIM, to=OUTSIDE)],
    "pieces of a packet of another's": [
        ethernet(GUEST, VICTIM, IPV4, piece)
        for piece in fragments(ROUTER4, VICTIM4, UDP, said4(ROUTER4) + bytes(64), number=2, size=24)
    ],
    "no address, but no DHCP": [four(UNSPECIFIED4, VICTIM4, said4(UNSPECIFIED4))],
    "ARP: another's address is here": [arp(GUEST, GUEST, ROUTER4, VICTIM4, operation=2, destination=VICTIM)],
    "ARP: asking in another's name": [arp(GUEST, GUEST, ROUTER4, VICTIM4)],
    "ARP: gratuitous": [arp(GUEST, GUEST, VICTIM4, VICTIM4)],
    "ARP: own address, another's MAC": [arp(GUEST, VICTIM, GUEST4, VICTIM4, operation=2)],
    "ARP: from another's MAC": [arp(OUTSIDE, OUTSIDE, GUEST4, VICTIM4)],
    "ARP: an answer from no address": [arp(GUEST, GUEST, UNSPECIFIED4, VICTIM4, operation=2)],
    "ARP: reverse": [arp(GUEST, GUEST, GUEST4, VICTIM4, operation=3)],
    "ND: another's address is here": [nd(136, GUEST_LL, VICTIM6, GUEST)],
    "ND: the router is here": [nd(136, GUEST_LL, ROUTER_LL, GUEST)],
    "ND: in the router's name": [nd(136, ROUTER_LL, ROUTER_LL, GUEST)],
    "ND: own address, another's MAC": [nd(136, GUEST_LL, GUEST6, VICTIM)],
    "ND: asking, another's MAC": [nd(135, GUEST_LL, VICTIM6, VICTIM)],
    "ND: asking in another's name": [nd(135, VICTIM_LL, GUEST6, GUEST)],
    "ND: claiming another's address": [nd(135, UNSPECIFIED6, VICTIM6)],
    "DHCP: an answer": [four(GUEST4, VICTIM4, udp(GUEST4, VICTIM4, 67, 68, bytes(240)))],
    "DHCP: an answer to all": [
        four(GUEST4, "255.255.255.255", udp(GUEST4, "255.255.255.255", 67, 68, bytes(240)), to=BROADCAST)
    ],
    "DHCP: an answer from another port": [four(GUEST4, VICTIM4, udp(GUEST4, VICTIM4, 1067, 68, bytes(240)))],
    "DHCP: an answer in pieces": _hidden_in_fragments(
        GUEST4, "255.255.255.255", UDP, udp(GUEST4, "255.255.255.255", 67, 68, bytes(240)), IPV4
    ),
    "DHCP: in another's name": [four(GUEST4, "255.255.255.255", dhcp_question(GUEST4, VICTIM), to=BROADCAST)],
    "DHCP: in another's name, in pieces": _hidden_in_fragments(
        GUEST4, "255.255.255.255", UDP, dhcp_question(GUEST4, VICTIM), IPV4
    ),
    "DHCPv6: an answer": [six(GUEST_LL, VICTIM_LL, rogue_dhcp6(GUEST_LL))],
    "DHCPv6: an answer from a global address": [six(GUEST6, VICTIM_LL, rogue_dhcp6(GUEST6))],
    "RA": [
        six(GUEST_LL, ALL_NODES, router_advertisement(GUEST_LL), to=ALL_NODES_MAC, protocol=ICMPV6, hops=255)
    ],
    "RA: in the router's name": [
        six(
            ROUTER_LL, ALL_NODES, router_advertisement(ROUTER_LL), to=ALL_NODES_MAC, protocol=ICMPV6, hops=255
        )
    ],
    "RA: in pieces": _hidden_in_fragments(GUEST_LL, ALL_NODES, ICMPV6, router_advertisement(GUEST_LL), IPV6),
    "RA: behind an extension header": [
        _behind_extensions(GUEST_LL, router_advertisement(GUEST_LL), headers=1)
    ],
    "RA: behind many extension headers": [
        _behind_extensions(GUEST_LL, router_advertisement(GUEST_LL), headers=40)
    ],
    "RA: redirect": [
        six(
            GUEST_LL,
            VICTIM_LL,
            icmp(GUEST_LL, VICTIM_LL, 137, 0, bytes(4) + address_bytes(ROUTER_LL) * 2),
            protocol=ICMPV6,
            hops=255,
        )
    ],
    "behind a VLAN tag": [
        tagged(frame, vlan)
        for vlan in (0, 1, 100)
        for frame in (
            four(GUEST4, VICTIM4, said4(GUEST4)),
            four(ROUTER4, VICTIM4, said4(ROUTER4)),
            arp(GUEST, GUEST, ROUTER4, VICTIM4),
            six(
                GUEST_LL,
                ALL_NODES,
                router_advertisement(GUEST_LL),
                to=ALL_NODES_MAC,
                protocol=ICMPV6,
                hops=255,
            ),
        )
    ],
    "behind two VLAN tags": [tagged(tagged(four(GUEST4, VICTIM4, said4(GUEST4)), 5), 6)],
    "other protocols": [
        ethernet(GUEST, BROADCAST, kind, bytes(64))
        for kind in (0x0026, 0x8035, 0x8863, 0x8864, 0x88CC, 0x88A8)
    ],
    "spanning tree": [ethernet(GUEST, "01:80:c2:00:00:00", 0x0026, bytes.fromhex("424203") + bytes(35))],
}


@pytest.mark.parametrize("what", SPOOFS)
async def test_nobody_is_given_a_spoof(site: Site, what: str) -> None:
    assert site.given(*SPOOFS[what]) == {}


@pytest.mark.parametrize("what", [it for it in SPOOFS if it != "spanning tree"])
async def test_without_port_security_the_same_frames_pass(site: Site, what: str) -> None:
    """So it is the filter that stopped them, and not something about the frames. (No bridge forwards what is meant for bridges.)"""
    if what == "RA: in pieces" and site.firewall.tracking is Tracking.BRIDGE:
        pytest.skip("nf_conntrack_bridge drops small pieces of IPv6 packets by itself")
    guest, victim = PORTS
    await site.filter(replace(guest, port_security=False), replace(victim, port_security=False))

    assert site.given(*SPOOFS[what]) != {}


HONEST: dict[str, tuple[bytes, set[str]]] = {
    "IPv4": (four(GUEST4, VICTIM4, said4(GUEST4)), {"victim"}),
    "IPv6": (six(GUEST6, VICTIM6, udp(GUEST6, VICTIM6, 1, 2)), {"victim"}),
    "link-local": (six(GUEST_LL, VICTIM_LL, udp(GUEST_LL, VICTIM_LL, 1, 2)), {"victim"}),
    "ARP question": (arp(GUEST, GUEST, GUEST4, VICTIM4), {"victim", "outside"}),
    "ARP answer": (arp(GUEST, GUEST, GUEST4, VICTIM4, operation=2, destination=VICTIM), {"victim"}),
    "ARP probe": (arp(GUEST, GUEST, UNSPECIFIED4, GUEST4), {"victim", "outside"}),
    "ND question": (nd(135, GUEST_LL, VICTIM6, GUEST), {"victim", "outside"}),
    "ND answer": (nd(136, GUEST6, GUEST6, GUEST), {"victim", "outside"}),
    "is my address free": (nd(135, UNSPECIFIED6, GUEST6), {"victim", "outside"}),
    "is my link-local address free": (nd(135, UNSPECIFIED6, GUEST_LL), {"victim", "outside"}),
    "DHCP question": (
        four(
            UNSPECIFIED4,
            "255.255.255.255",
            dhcp_question(UNSPECIFIED4, GUEST),
            to=BROADCAST,
        ),
        {"victim", "outside"},
    ),
    "DHCPv6 question": (
        six(GUEST_LL, "ff02::1:2", udp(GUEST_LL, "ff02::1:2", 546, 547, bytes(40)), to="33:33:00:01:00:02"),
        {"victim", "outside"},
    ),
    "router solicitation": (
        six(
            GUEST_LL,
            "ff02::2",
            icmp(GUEST_LL, "ff02::2", 133, 0, bytes(4)),
            to="33:33:00:00:00:02",
            protocol=ICMPV6,
            hops=255,
        ),
        {"victim", "outside"},
    ),
}


def _meet(site: Site) -> None:
    """Everybody says where he is, or a bridge would flood what it does not know the place of."""
    for tap, mac, address in (
        ("victim", VICTIM, VICTIM4),
        ("outside", OUTSIDE, ROUTER4),
        ("guest", GUEST, GUEST4),
    ):
        site.lan.ends[tap].send(arp(mac, mac, address, address))
    site.lan.settle()


@pytest.mark.parametrize("what", HONEST)
async def test_what_is_a_guests_own_passes(site: Site, what: str) -> None:
    _meet(site)
    frame, receivers = HONEST[what]

    assert site.given(frame) == {tap: [frame] for tap in receivers}


@pytest.mark.parametrize("what", [it for it in HONEST if not it.startswith(("IPv", "link-local"))])
async def test_what_an_interface_needs_takes_no_rule(site: Site, what: str) -> None:
    _meet(site)
    await site.filter(*(replace(port, groups=()) for port in PORTS))
    frame, _ = HONEST[what]

    assert "outside" in site.given(frame) or what == "ARP answer"
    assert site.given(four(GUEST4, ROUTER4, said4(GUEST4, ROUTER4), to=OUTSIDE)) == {}


async def test_answers_to_what_an_interface_needs_take_no_rule(site: Site) -> None:
    _meet(site)
    await site.filter(*(replace(port, groups=()) for port in PORTS))
    answers = [
        four(ROUTER4, GUEST4, udp(ROUTER4, GUEST4, 67, 68, bytes(240)), mac=OUTSIDE, to=GUEST),
        six(ROUTER_LL, GUEST_LL, udp(ROUTER_LL, GUEST_LL, 547, 546, bytes(40)), mac=OUTSIDE, to=GUEST),
        six(
            ROUTER_LL,
            ALL_NODES,
            router_advertisement(ROUTER_LL),
            mac=OUTSIDE,
            to=ALL_NODES_MAC,
            protocol=ICMPV6,
            hops=255,
        ),
        nd(136, ROUTER_LL, ROUTER_LL, OUTSIDE, mac=OUTSIDE),
    ]

    assert [
        frame for frame in answers if frame not in site.given(frame, sender="outside").get("guest", ())
    ] == []


async def test_an_advertisement_from_beyond_a_router_is_none(site: Site) -> None:
    """RFC 4861: its hop limit shows that it has travelled."""
    await site.filter(*(replace(port, groups=()) for port in PORTS))
    far = [
        six(
            ROUTER_LL,
            ALL_NODES,
            router_advertisement(ROUTER_LL),
            mac=OUTSIDE,
            to=ALL_NODES_MAC,
            protocol=ICMPV6,
        ),
        six(
            VICTIM6, GUEST6, icmp(VICTIM6, GUEST6, 136, 0, bytes(20)), mac=OUTSIDE, to=GUEST, protocol=ICMPV6
        ),
    ]

    assert site.given(*far, sender="outside") == {}


async def test_nobody_is_given_what_is_for_another_mac(site: Site) -> None:
    """A bridge that does not know where a MAC is floods."""
    assert site.given(four(GUEST4, "10.0.0.77", said4(GUEST4, "10.0.0.77"), to="52:54:00:00:00:77")) == {
        "outside": [four(GUEST4, "10.0.0.77", said4(GUEST4, "10.0.0.77"), to="52:54:00:00:00:77")]
    }


async def test_an_allowed_pair_is_a_ports_own_too(site: Site) -> None:
    _meet(site)
    guest, victim = PORTS
    pairs = (
        AddressPair(prefix="10.0.0.32/28"),
        AddressPair(prefix="2001:db8:5::/64"),
        AddressPair(prefix="10.0.0.50", mac="00:00:5e:00:01:07"),
    )
    await site.filter(replace(guest, allowed_pairs=pairs), victim)
    shared = "00:00:5e:00:01:07"
    own = [
        four("10.0.0.40", VICTIM4, said4("10.0.0.40")),
        arp(GUEST, GUEST, "10.0.0.40", VICTIM4),
        six("2001:db8:5::9", VICTIM6, udp("2001:db8:5::9", VICTIM6, 1, 2)),
        nd(136, GUEST_LL, "2001:db8:5::9", GUEST),
        four("10.0.0.50", VICTIM4, said4("10.0.0.50"), mac=shared),
        arp(shared, shared, "10.0.0.50", VICTIM4),
    ]
    others = [
        four("10.0.0.48", VICTIM4, said4("10.0.0.48")),
        four("10.0.0.50", VICTIM4, said4("10.0.0.50")),
        four(GUEST4, VICTIM4, said4(GUEST4), mac=shared),
        arp(GUEST, GUEST, "10.0.0.50", VICTIM4),
        arp(shared, shared, GUEST4, VICTIM4),
        nd(136, GUEST_LL, "2001:db8:6::9", GUEST),
    ]

    assert site.given(*own)["victim"] == own
    assert site.given(*others) == {}


def test_a_tap_of_ours_without_a_filter_may_neither_send_nor_receive() -> None:
    unknown = "cft0123456789ab"
    with a_lan() as lan:
        lan.add_bridge("br0")
        for tap in ("victim", "outside", unknown):
            lan.add_end(tap, "br0")
        site = Site(lan, Firewall(Namespace(lan.host)))
        asyncio.run(site.filter(_port("victim", VICTIM, VICTIM4, VICTIM6)))
        lan.up("victim", "outside", unknown)
        frame = arp(OUTSIDE, OUTSIDE, ROUTER4, VICTIM4)
        broadcast = four(ROUTER4, "10.0.0.99", said4(ROUTER4, "10.0.0.99"), mac=OUTSIDE, to=BROADCAST)
        lan.ends[unknown].send(frame)
        lan.ends["outside"].send(frame, broadcast)

        given = lan.settle(deaf=(unknown,))

        assert given["victim"] == [frame, broadcast]
        assert given[unknown] == []
