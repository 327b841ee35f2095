"""Rules gathered must allow what they allow one by one, no more and no less."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fabric.model.firewall import Direction, EtherType, FilterRule, PortRange
from hostd.core.allowances import Addresses, Allowance, Service, allowances, merged

IN4 = FilterRule(direction=Direction.INGRESS, ether_type=EtherType.IPV4)
PREFIXES = (
    "0.0.0.0/0",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.1.0/24",
    "10.0.0.7/32",
)
REMOTES = tuple(map(ipaddress.ip_address, ("10.0.0.7", "10.0.1.9", "10.9.9.9", "192.0.2.1")))
PORTS = (0, 21, 22, 23, 79, 80, 81, 65535)

ranges = st.sampled_from([(22, 22), (23, 79), (0, 65535), (0, 21), (80, 80), (22, 80), (81, 65535)]).map(
    lambda it: PortRange(first=it[0], last=it[1])
)
remotes: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.sampled_from(PREFIXES).map(lambda it: {"remote_prefix": it}),
    st.sampled_from(["a", "b"]).map(lambda it: {"remote_set": it}),
)


@st.composite
def rules(draw: st.DrawFn) -> FilterRule:
    rule = replace(IN4, **draw(remotes))
    protocol = draw(st.sampled_from([None, 6, 17, 1]))
    rule = replace(rule, protocol=protocol)
    if protocol in {6, 17}:
        return replace(rule, ports=draw(st.none() | ranges))
    if protocol == 1:
        return replace(rule, icmp_type=draw(st.sampled_from([None, 8])))
    return rule


def _one(
    rule: FilterRule, protocol: int, port: int, remote: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> set[str]:
    """Who may: everybody, the members of a set, or nobody."""
    if rule.protocol not in {None, protocol} or rule.icmp_type is not None:
        return set()
    if rule.ports is not None and not rule.ports.first <= port <= rule.ports.last:
        return set()
    if rule.remote_prefix is not None and remote not in ipaddress.ip_network(rule.remote_prefix):
        return set()
    return {rule.remote_set or "everybody"}


def _gathered(
    it: Allowance, protocol: int, port: int, remote: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> set[str]:
    if it.service.protocol not in {None, protocol} or it.service.icmp_type is not None:
        return set()
    if it.ports is not None and not any(span.first <= port <= span.last for span in it.ports):
        return set()
    if it.prefixes is not None and remote not in Addresses(it.prefixes):
        return set()
    return {it.remote_set or "everybody"}


@given(st.lists(rules(), max_size=8))
def test_rules_together_allow_what_they_allow_one_by_one(given_rules: list[FilterRule]) -> None:
    found = allowances(given_rules, Direction.INGRESS, EtherType.IPV4)

    for protocol in (6, 17, 1, 99):
        for port in PORTS:
            for remote in REMOTES:
                one_by_one = set[str]().union(*(_one(it, protocol, port, remote) for it in given_rules))
                together = set[str]().union(*(_gathered(it, protocol, port, remote) for it in found))
                assert together == one_by_one


@given(st.lists(rules(), max_size=8), st.randoms(use_true_random=False))
def test_order_means_nothing(given_rules: list[FilterRule], chance: Random) -> None:
    shuffled = given_rules.copy()
    chance.shuffle(shuffled)

    assert allowances(shuffled, Direction.INGRESS, EtherType.IPV4) == allowances(
        given_rules, Direction.INGRESS, EtherType.IPV4
    )


def test_a_thousand_prefixes_of_one_service_are_one() -> None:
    many = [
        replace(
            IN4,
            protocol=6,
            ports=PortRange(first=443, last=443),
            remote_prefix=f"10.{it >> 8}.{it & 255}.0/25",
        )
        for it in range(1000)
    ]

    (found,) = allowances(many, Direction.INGRESS, EtherType.IPV4)

    assert len(found.prefixes or ()) == 1000


def test_a_thousand_ports_for_everybody_are_one() -> None:
    many = [replace(IN4, protocol=6, ports=PortRange(first=it, last=it)) for it in range(0, 2000, 2)]

    (found,) = allowances(many, Direction.INGRESS, EtherType.IPV4)

    assert len(found.ports or ()) == 1000


def test_two_halves_of_everything_are_everybody() -> None:
    halves = [replace(IN4, remote_prefix=it) for it in ("0.0.0.0/1", "128.0.0.0/1")]

    assert allowances(halves, Direction.INGRESS, EtherType.IPV4) == (Allowance(service=Service()),)


def test_other_directions_and_families_are_not_gathered() -> None:
    others = [replace(IN4, direction=Direction.EGRESS), replace(IN4, ether_type=EtherType.IPV6)]

    assert allowances(others, Direction.INGRESS, EtherType.IPV4) == ()


def test_merged_prefixes_are_disjoint_and_of_both_families() -> None:
    assert merged(["10.0.0.0/24", "10.0.1.0/24", "10.0.0.7", "2001:db8::1", "2001:db8::/32"]) == (
        "10.0.0.0/23",
        "2001:db8::/32",
    )
