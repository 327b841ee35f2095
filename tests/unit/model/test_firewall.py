"""The contract of what hosts filter: what contradicts itself is refused where it is made, not where it would be guessed at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

IN4 = {"direction": Direction.INGRESS, "ether_type": EtherType.IPV4}


def _rule(**said: Any) -> FilterRule:
    return FilterRule(**{**IN4, **said})


def _port(name: str, **said: Any) -> PortFilter:
    fixed = {"port_id": name, "instance_id": "i", "network_id": "n", "tap": name, "mac": "02:00:00:00:00:01"}
    return PortFilter(**{**fixed, **said})


@pytest.mark.parametrize(
    "make",
    [
        lambda: PortRange(first=2, last=1),
        lambda: PortRange(first=-1, last=1),
        lambda: PortRange(first=0, last=65536),
        lambda: _rule(protocol=256),
        lambda: _rule(ports=PortRange(first=1, last=1)),
        lambda: _rule(protocol=1, ports=PortRange(first=1, last=1)),
        lambda: _rule(protocol=58, icmp_type=128),
        lambda: _rule(protocol=1, icmp_code=0),
        lambda: _rule(protocol=1, icmp_type=256),
        lambda: _rule(remote_prefix="10.0.0.0/8", remote_set="a"),
        lambda: _rule(remote_prefix="10.0.0.1/8"),
        lambda: _rule(remote_prefix="2001:db8::/32"),
        lambda: _rule(remote_prefix="10.0.0.0/8; flush ruleset"),
        # A zone may have any characters, and would go into the host's rules as it is.
        lambda: _rule(ether_type=EtherType.IPV6, remote_prefix="fd00::%x }; flush ruleset #/64"),
        lambda: AddressSet(name="a", members=frozenset({"fd00::%x }; flush ruleset #/64"})),
        lambda: AddressPair(prefix="fd00::1%eth0"),
        lambda: _port("p", addresses=("fd00::1%x }; flush ruleset #",)),
        lambda: AddressSet(name="a", members=frozenset({"10.0.0.1/8"})),
        lambda: AddressPair(prefix="ten"),
        lambda: _port("p", addresses=("10.0.0.0/24",)),
        lambda: HostFilters(ports=(_port("p"), _port("p"))),
        lambda: HostFilters(ports=(_port("p"), _port("q", tap="p"))),
        lambda: HostFilters(ports=(_port("p", groups=("unknown",)),)),
        lambda: HostFilters(groups=(RuleGroup(id="g"), RuleGroup(id="g"))),
        lambda: HostFilters(groups=(RuleGroup(id="g", rules=frozenset({_rule(remote_set="unknown")})),)),
        lambda: HostFilters(sets=(AddressSet(name="s"), AddressSet(name="s"))),
    ],
)
def test_what_contradicts_itself_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        make()


def test_a_rules_id_is_for_people_only() -> None:
    """The same rule twice, under two ids, is one."""
    assert len({_rule(id="one"), _rule(id="other")}) == 1
