"""Security group rules: what people say means one thing, and what contradicts itself is refused by its field."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import AlreadyExists, InvalidRequest, QuotaExceeded
from fabric.ids import is_id
from fabric.model.security_group import ANY, Direction, EtherType, SecurityGroup, SecurityRule
from fabric.network.core.filters import filter_rule
from fabric.network.core.rules import (
    PROTOCOLS,
    AskedRule,
    default_group,
    default_group_id,
    new_group,
    protocol_name,
    rule_of,
    with_rule,
    without_rule,
)

GROUP = SecurityGroup(id="g", name="web", project_id="p")


def rule(rule_id: str = "r", **said: Any) -> SecurityRule:
    return rule_of(AskedRule(**said), rule_id=rule_id, now_ms=5, field="rule")


def test_the_rule_of_the_course_lets_ssh_in() -> None:
    found = rule(protocol="tcp", port_min=22, port_max=22)

    assert (found.direction, found.ether_type) == (Direction.INGRESS, EtherType.IPV4)
    assert (found.protocol, found.port_min, found.port_max, found.remote_cidr) == (6, 22, 22, "")


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ({}, (ANY, ANY, ANY, EtherType.IPV4)),
        ({"protocol": "any"}, (ANY, ANY, ANY, EtherType.IPV4)),
        ({"protocol": "TCP", "port_min": 80}, (6, 80, 80, EtherType.IPV4)),
        ({"protocol": "udp", "port_min": 0, "port_max": 65535}, (17, 0, 65535, EtherType.IPV4)),
        ({"protocol": "icmp"}, (1, ANY, ANY, EtherType.IPV4)),
        ({"protocol": "icmp", "port_min": 8, "port_max": 0}, (1, 8, 0, EtherType.IPV4)),
        ({"protocol": "icmp", "port_min": 0}, (1, 0, ANY, EtherType.IPV4)),
        ({"protocol": "icmp", "ether_type": EtherType.IPV6}, (58, ANY, ANY, EtherType.IPV6)),
        ({"protocol": "icmpv6"}, (58, ANY, ANY, EtherType.IPV6)),
        ({"remote_cidr": "fd00::/64"}, (ANY, ANY, ANY, EtherType.IPV6)),
        ({"protocol": "112"}, (112, ANY, ANY, EtherType.IPV4)),
        ({"protocol": "gre"}, (47, ANY, ANY, EtherType.IPV4)),
    ],
)
def test_what_is_not_said_is_decided(said: dict[str, Any], means: tuple[int, int, int, EtherType]) -> None:
    found = rule(**said)

    assert (found.protocol, found.port_min, found.port_max, found.ether_type) == means


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"protocol": "tpc"}, "protocol"),
        ({"protocol": "256"}, "protocol"),
        ({"protocol": "-1"}, "protocol"),
        ({"protocol": "٣"}, "protocol"),
        ({"protocol": "ipv6-icmp", "ether_type": EtherType.IPV4}, "protocol"),
        ({"protocol": "ipv6-icmp", "remote_cidr": "10.0.0.0/8"}, "protocol"),
        ({"protocol": "tcp", "port_min": 80, "port_max": 22}, "port_range_max"),
        ({"protocol": "tcp", "port_max": 22}, "port_range_min"),
        ({"port_min": 22, "port_max": 22}, "port_range_min"),
        ({"protocol": "gre", "port_min": 22}, "port_range_min"),
        ({"protocol": "icmp", "port_min": 256}, "port_range_min"),
        ({"protocol": "icmp", "port_min": 3, "port_max": 256}, "port_range_max"),
        ({"protocol": "icmp", "port_max": 3}, "port_range_min"),
        ({"remote_cidr": "10.0.0.1/8"}, "remote_cidr"),
        ({"remote_cidr": "everybody"}, "remote_cidr"),
        # A zone may have any characters, and rules are text on hosts: this one would have thrown all of theirs away.
        ({"remote_cidr": "fd00::%x }; flush ruleset #/64"}, "remote_cidr"),
        ({"remote_cidr": "fd00::1%eth0"}, "remote_cidr"),
        ({"remote_cidr": "10.0.0.0/8", "ether_type": EtherType.IPV6}, "remote_cidr"),
        ({"remote_cidr": "10.0.0.0/8", "remote_group_id": "g"}, "remote_cidr"),
    ],
)
def test_what_contradicts_itself_is_refused_by_its_field(said: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        rule(**said)

    assert raised.value.field == f"rule.{field}"


ASKED = st.builds(
    AskedRule,
    direction=st.sampled_from(Direction),
    ether_type=st.sampled_from(EtherType),
    protocol=st.sampled_from(
        ["", "any", "tcp", "udp", "icmp", "icmpv6", "sctp", "gre", "1", "58", "0", "255"]
    ),
    port_min=st.none() | st.integers(0, 65535),
    port_max=st.none() | st.integers(0, 65535),
    remote_cidr=st.sampled_from(["", "10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::/64", "10.0.0.5"]),
    remote_group_id=st.sampled_from(["", "g", "other"]),
)


@given(ASKED)
def test_every_rule_that_is_accepted_is_one_that_a_host_can_have(asked: AskedRule) -> None:
    """What the host's contract refuses must have been refused to the person who asked."""
    try:
        found = rule_of(asked, rule_id="r", now_ms=1, field="rule")
    except InvalidRequest:
        return

    assert filter_rule(found).id == "r"
    assert found.direction is not Direction.UNSPECIFIED
    assert found.ether_type is not EtherType.UNSPECIFIED


def test_the_very_same_rule_is_refused_and_named() -> None:
    group = with_rule(GROUP, rule("first", protocol="tcp", port_min=22))

    with pytest.raises(AlreadyExists, match="first"):
        with_rule(group, rule("second", protocol="6", port_min=22, port_max=22, description="mine"))


def test_everybody_is_everybody_however_it_is_said() -> None:
    group = with_rule(GROUP, rule("first", protocol="tcp", port_min=22))

    with pytest.raises(AlreadyExists):
        with_rule(group, rule("second", protocol="tcp", port_min=22, remote_cidr="0.0.0.0/0"))


def test_a_group_has_room_for_so_many_rules() -> None:
    group = GROUP
    for port in range(3):
        group = with_rule(group, rule(str(port), protocol="tcp", port_min=port), limit=3)

    with pytest.raises(QuotaExceeded) as raised:
        with_rule(group, rule("more", protocol="tcp", port_min=99), limit=3)

    assert raised.value.facts == {
        "resource": "security_group_rules",
        "limit": "3",
        "used": "3",
        "asked": "1",
    }
    assert len(without_rule(group, "1", now_ms=9).rules) == 2


def test_a_new_group_lets_everything_out_and_nothing_in() -> None:
    numbers = itertools.count()
    group = new_group(GROUP, rule_id=lambda: f"r{next(numbers)}")

    assert [(it.direction, it.ether_type, it.protocol) for it in group.rules] == [
        (Direction.EGRESS, EtherType.IPV4, ANY),
        (Direction.EGRESS, EtherType.IPV6, ANY),
    ]


def test_the_default_group_is_the_references_and_the_same_whoever_makes_it() -> None:
    group = default_group("project", now_ms=1)

    assert group == default_group("project", now_ms=1)
    assert group.id == default_group_id("project") != default_group_id("other")
    assert {(it.direction, it.ether_type, it.remote_group_id) for it in group.rules} == {
        (Direction.INGRESS, EtherType.IPV4, group.id),
        (Direction.INGRESS, EtherType.IPV6, group.id),
        (Direction.EGRESS, EtherType.IPV4, ""),
        (Direction.EGRESS, EtherType.IPV6, ""),
    }
    assert all(map(is_id, [group.id, *(it.id for it in group.rules)]))
    assert len({it.id for it in group.rules}) == 4


def test_protocols_come_back_by_their_names() -> None:
    assert all(protocol_name(number) == name for name, number in PROTOCOLS.items())
    assert (protocol_name(ANY), protocol_name(200)) == ("", "200")
