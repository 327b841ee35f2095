"""Which connections are over when the rules change. What the kernel then does is tests/integration/network's."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from fabric.model.firewall import (
    AddressPair,
    AddressSet,
    Direction,
    EtherType,
    FilterRule,
    HostFilters,
    PortFilter,
    PortRange,
    RuleGroup,
)
from hostd.core.connections import Connection, Tuple, curtailed, departures, forgotten
from hostd.core.firewall import Segment

RED = Segment(network_id="red", bridge="br-red", zone=1)
ROUTED = Segment(network_id="red", bridge="br-red", zone=0)
GUEST, PEER, WORLD = "10.0.0.11", "10.0.0.12", "192.0.2.9"
OUT = FilterRule(direction=Direction.EGRESS, ether_type=EtherType.IPV4)
SSH = FilterRule(
    direction=Direction.INGRESS, ether_type=EtherType.IPV4, protocol=6, ports=PortRange(first=22, last=22)
)
FRIENDS = FilterRule(direction=Direction.INGRESS, ether_type=EtherType.IPV4, remote_set="friends")


def port(
    name: str, *addresses: str, groups: tuple[str, ...] = ("web",), mac: str = "02:00:00:00:00:01"
) -> PortFilter:
    return PortFilter(
        port_id=name,
        instance_id=name,
        network_id="red",
        tap=name,
        mac=mac,
        addresses=addresses,
        groups=groups,
    )


def filters(
    *rules: FilterRule, ports: tuple[PortFilter, ...] = (), members: frozenset[str] = frozenset()
) -> HostFilters:
    return HostFilters(
        ports=ports or (port("guest", GUEST),),
        groups=(RuleGroup(id="web", rules=frozenset(rules)),),
        sets=(AddressSet(name="friends", members=members),),
    )


def tcp(
    source: str, destination: str, dport: int, *, zone: int = 1, protocol: int = 6, sport: int = 40000
) -> Connection:
    one, other = ip_address(source), ip_address(destination)
    return Connection(
        zone=zone,
        protocol=protocol,
        original=Tuple(one, other, sport, dport),
        reply=Tuple(other, one, dport, sport),
    )


IN, AWAY = tcp(WORLD, GUEST, 22), tcp(GUEST, WORLD, 443)


@pytest.mark.parametrize(
    ("rules", "over"),
    [
        ((SSH, OUT), []),
        ((SSH,), [AWAY]),
        ((OUT,), [IN]),
        ((), [IN, AWAY]),
        ((FRIENDS, OUT), [IN]),
    ],
)
def test_what_no_rule_would_let_begin_is_over(rules: tuple[FilterRule, ...], over: list[Connection]) -> None:
    assert list(forgotten([IN, AWAY], filters(*rules), [RED])) == over


def test_members_are_remotes_of_now() -> None:
    assert not list(forgotten([IN], filters(FRIENDS, members=frozenset({"192.0.2.0/24"})), [RED]))
    assert list(forgotten([IN], filters(FRIENDS, members=frozenset({"192.0.3.0/24"})), [RED])) == [IN]


def test_both_ends_here_must_allow_it() -> None:
    between = tcp(GUEST, PEER, 22)
    both = (port("guest", GUEST, groups=("out",)), port("peer", PEER, groups=("ssh",)))
    groups = (RuleGroup(id="out", rules=frozenset({OUT})), RuleGroup(id="ssh", rules=frozenset({SSH})))

    assert not list(forgotten([between], HostFilters(ports=both, groups=groups), [RED]))
    for number in (0, 1):
        ports = tuple(replace(it, groups=()) if at == number else it for at, it in enumerate(both))
        assert list(forgotten([between], HostFilters(ports=ports, groups=groups), [RED])) == [between]


def test_a_port_without_security_allows_everything() -> None:
    assert not list(
        forgotten([IN, AWAY], filters(ports=(replace(port("guest", GUEST), port_security=False),)), [RED])
    )


def test_other_networks_connections_are_not_ours_to_judge() -> None:
    assert not list(forgotten([replace(IN, zone=2)], filters(), [RED]))


def test_what_has_no_end_here_is_over_except_where_the_host_routes() -> None:
    strangers = tcp(WORLD, "10.0.0.99", 22)

    assert list(forgotten([strangers], filters(), [RED])) == [strangers]
    assert not list(forgotten([replace(strangers, zone=0)], filters(), [ROUTED]))


def test_a_translated_connection_is_judged_by_what_the_port_sees() -> None:
    """The host translates behind the port: the guest is asked at its own address, and by the one who asked."""
    floating = replace(
        tcp(WORLD, "198.51.100.7", 2222, zone=0), reply=Tuple(ip_address(GUEST), ip_address(WORLD), 22, 40000)
    )

    assert not list(forgotten([floating], filters(SSH), [ROUTED]))
    assert list(forgotten([floating], filters(OUT), [ROUTED])) == [floating]


def test_what_needs_no_rule_is_never_over() -> None:
    renewal = tcp(GUEST, "10.0.0.2", 67, protocol=17, sport=68)
    reply = tcp("10.0.0.2", GUEST, 68, protocol=17, sport=67)

    assert not list(forgotten([renewal, reply], filters(), [RED]))


def test_an_address_that_several_may_use_is_allowed_what_each_of_them_is() -> None:
    shared = AddressPair(prefix="10.0.0.100/32")
    one = replace(port("one", GUEST), allowed_pairs=(shared,))
    other = replace(port("other", PEER, groups=(), mac="02:00:00:00:00:02"), allowed_pairs=(shared,))
    to_shared = tcp(WORLD, "10.0.0.100", 22)

    assert not list(forgotten([to_shared], filters(SSH, ports=(one,)), [RED]))
    assert list(forgotten([to_shared], filters(SSH, ports=(one, other)), [RED])) == [to_shared]
    assert not list(forgotten([IN], filters(SSH, ports=(one, other)), [RED]))


def test_an_heir_inherits_nothing() -> None:
    before, after = filters(SSH), filters(SSH, ports=(port("heir", GUEST),))
    gone = departures(before, after)

    assert gone == {("red", GUEST)}
    assert list(forgotten([IN], after, [RED], gone)) == [IN]
    assert departures(before, before) == frozenset()


MEMBERS = frozenset({GUEST, PEER})


@pytest.mark.parametrize(
    ("after", "must_look"),
    [
        (filters(SSH, FRIENDS, members=MEMBERS), False),
        (filters(SSH, FRIENDS, OUT, members=MEMBERS), False),
        (filters(SSH, FRIENDS, members=MEMBERS | {WORLD}), False),
        (filters(SSH, FRIENDS, ports=(port("guest", GUEST, PEER),), members=MEMBERS), False),
        (
            filters(
                SSH, FRIENDS, ports=(replace(port("guest", GUEST), port_security=False),), members=MEMBERS
            ),
            False,
        ),
        (filters(SSH, members=MEMBERS), True),
        (filters(SSH, FRIENDS, members=frozenset({GUEST})), True),
        (filters(SSH, FRIENDS, ports=(port("guest", PEER),), members=MEMBERS), True),
        (filters(SSH, FRIENDS, ports=(port("guest", GUEST, groups=()),), members=MEMBERS), True),
        (
            filters(SSH, FRIENDS, ports=(port("guest", GUEST, mac="02:00:00:00:00:03"),), members=MEMBERS),
            True,
        ),
        (filters(SSH, FRIENDS, ports=(port("heir", GUEST),), members=MEMBERS), True),
    ],
)
def test_connections_are_read_where_something_may_be_over(after: HostFilters, must_look: bool) -> None:
    before = filters(SSH, FRIENDS, members=MEMBERS)

    assert curtailed(before, after) == ({"red"} if must_look else set())


def test_a_port_that_gets_security_has_its_connections_read() -> None:
    before = filters(SSH, ports=(replace(port("guest", GUEST), port_security=False),))

    assert curtailed(before, filters(SSH)) == {"red"}
