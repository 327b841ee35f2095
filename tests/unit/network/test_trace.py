"""What becomes of a packet, rule by rule and way by way."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from fabric.model.firewall import ICMP, TCP
from fabric.model.network import (
    FixedAddress,
    FloatingIp,
    Network,
    NetworkKind,
    NetworkPort,
    Router,
    RouterInterface,
    Subnet,
)
from fabric.model.network_plan import PlanState
from fabric.model.security_group import Direction, EtherType, SecurityGroup, SecurityRule
from fabric.network.core.trace import Outcome, Packet, Step, Surroundings, followed, judged, summed_up, way

HERE, THERE = ip_address("10.0.0.5"), ip_address("10.0.0.6")
SSH = Packet(protocol=TCP, port=22)


def a_port(number: int, *groups: str) -> NetworkPort:
    return NetworkPort(
        id=f"p{number}",
        name="",
        project_id="p",
        network_id="n",
        mac="fa:16:3e:00:00:01",
        fixed_addresses=(FixedAddress(subnet_id="s", address=f"10.0.0.{number}"),),
        security_group_ids=groups,
    )


def a_rule(**facts: object) -> SecurityRule:
    rule = SecurityRule(id="r", direction=Direction.INGRESS, ether_type=EtherType.IPV4)
    return replace(rule, **facts)  # type: ignore[arg-type]  # whatever fields the test names


def a_group(*rules: SecurityRule) -> SecurityGroup:
    return SecurityGroup(id="g", name="web", project_id="p", rules=rules)


def judge(*rules: SecurityRule, packet: Packet = SSH, direction: Direction = Direction.INGRESS) -> Step:
    members = {"friends": [a_port(6)], "others": [a_port(9)]}
    return judged(direction, a_port(5, "g"), packet, THERE, {"g": a_group(*rules)}, members)


@pytest.mark.parametrize(
    "rule",
    [
        a_rule(),
        a_rule(protocol=TCP),
        a_rule(protocol=TCP, port_min=22, port_max=22),
        a_rule(protocol=TCP, port_min=1, port_max=1024, remote_cidr="10.0.0.0/24"),
        a_rule(remote_group_id="friends"),
    ],
)
def test_a_packet_passes_by_the_rule_that_allows_it(rule: SecurityRule) -> None:
    step = judge(a_rule(id="no", ether_type=EtherType.IPV6), rule)

    assert (step.outcome, step.resource_id) == (Outcome.PASSES, "r")


@pytest.mark.parametrize(
    ("rules", "nearest", "why"),
    [
        ([a_rule(ether_type=EtherType.IPV6), a_rule(id="udp", protocol=17)], "udp", "the packet is tcp"),
        (
            [a_rule(id="udp", protocol=17), a_rule(id="web", protocol=TCP, port_min=80, port_max=80)],
            "web",
            "the packet is for port 22",
        ),
        (
            [
                a_rule(id="web", protocol=TCP, port_min=80, port_max=80),
                a_rule(id="far", protocol=TCP, port_min=22, port_max=22, remote_cidr="192.0.2.0/24"),
            ],
            "far",
            "the other end is 10.0.0.6",
        ),
        ([a_rule(id="club", remote_group_id="others")], "club", "is no member"),
        ([a_rule(id="ping", protocol=ICMP, port_min=8, port_max=0)], "ping", "the packet is tcp"),
        ([a_rule(id="out", direction=Direction.EGRESS)], "p5", "no rule for ingress"),
    ],
)
def test_what_no_rule_allows_names_the_rule_that_comes_nearest(
    rules: list[SecurityRule], nearest: str, why: str
) -> None:
    step = judge(*rules)

    assert (step.outcome, step.resource_id) == (Outcome.BLOCKED, nearest)
    assert why in step.detail


def test_a_port_without_groups_lets_nothing_in_and_one_without_filter_everything() -> None:
    bare = judged(Direction.INGRESS, a_port(5), SSH, THERE, {}, {})
    open_ = judged(Direction.INGRESS, replace(a_port(5), port_security=False), SSH, THERE, {}, {})

    assert (bare.outcome, open_.outcome) == (Outcome.BLOCKED, Outcome.PASSES)


def test_an_icmp_rule_is_about_its_type() -> None:
    rule = a_rule(protocol=ICMP, port_min=8, port_max=0)

    assert judge(rule, packet=Packet(protocol=ICMP, port=8)).outcome is Outcome.PASSES
    assert judge(rule, packet=Packet(protocol=ICMP, port=13)).outcome is Outcome.BLOCKED
    assert judge(rule, packet=Packet(protocol=ICMP)).outcome is Outcome.PASSES


SUB = Subnet(id="s", name="blue", project_id="p", network_id="n", cidr="10.0.0.0/24")
SIX = Subnet(id="s6", name="six", project_id="p", network_id="n", cidr="fd00::/64")
DATA = Subnet(id="d", name="data", project_id="p", network_id="m", cidr="10.1.0.0/24")
ROUTER = Router(
    id="r",
    name="gate",
    project_id="p",
    external_network_id="ext",
    external_addresses=(FixedAddress(subnet_id="o", address="198.51.100.9"),),
    interfaces=(RouterInterface(network_id="n", subnet_id="s", address="10.0.0.1", mac="m"),),
)
AROUND = Surroundings(
    network=Network(id="n", name="net", kind=NetworkKind.TENANT),
    subnets=[SUB, SIX],
    router=ROUTER,
    joined=[SUB, DATA],
    has_gateway=True,
)
FLOATING = FloatingIp(
    id="f", project_id="p", network_id="ext", subnet_id="o", address="198.51.100.20", router_id="r"
)


@pytest.mark.parametrize(
    ("destination", "around", "resource", "seen_from"),
    [
        ("10.0.0.6", AROUND, "n", "10.0.0.5"),
        ("10.0.0.6", replace(AROUND, router=None), "n", "10.0.0.5"),
        ("10.1.0.7", AROUND, "r", "10.0.0.5"),
        ("192.0.2.1", AROUND, "r", "198.51.100.9"),
        ("192.0.2.1", replace(AROUND, floating_ip=FLOATING, has_gateway=False), "f", "198.51.100.20"),
    ],
)
def test_a_packet_goes_the_nearest_way_and_is_seen_as_that_makes_it(
    destination: str, around: Surroundings, resource: str, seen_from: str
) -> None:
    going = way(HERE, ip_address(destination), around)

    assert (going.step.outcome, going.step.resource_id) == (Outcome.PASSES, resource)
    assert going.seen_from == ip_address(seen_from)


@pytest.mark.parametrize(
    ("around", "why"),
    [
        (replace(AROUND, router=None), "no router is at the gateway"),
        (replace(AROUND, router=replace(ROUTER, external_network_id="")), "leads to no external network"),
        (replace(AROUND, router=replace(ROUTER, snat=False)), "translates no addresses"),
        (replace(AROUND, router=replace(ROUTER, external_addresses=())), "no IPv4 address outside"),
        (replace(AROUND, has_gateway=False), "no host leads out"),
    ],
)
def test_a_packet_that_gets_nowhere_says_where_it_is_lost(around: Surroundings, why: str) -> None:
    going = way(HERE, ip_address("192.0.2.1"), around)

    assert (going.step.outcome, going.seen_from) == (Outcome.BLOCKED, None)
    assert why in going.step.detail


def test_ipv6_leaves_as_it_is_and_nobody_knows_whether_it_comes_back() -> None:
    going = way(ip_address("fd00::5"), ip_address("2001:db8::1"), AROUND)

    assert (going.step.outcome, going.seen_from) == (Outcome.UNKNOWN, ip_address("fd00::5"))


STATE = PlanState(
    revision=9,
    followed=9,
    told_age_ms=50,
    followed_age_ms=700,
    fault_code="",
    fault_message="",
    is_current=True,
)


@pytest.mark.parametrize(
    ("host", "state", "outcome", "why"),
    [
        (None, None, Outcome.BLOCKED, "on no host"),
        ("h", None, Outcome.UNKNOWN, "cannot be asked"),
        ("h", replace(STATE, fault_code="NETWORK_FAILED"), Outcome.UNKNOWN, "could not wire"),
        ("h", replace(STATE, fault_code="INVENTED"), Outcome.UNKNOWN, "in a way it has no word for"),
        ("h", replace(STATE, followed=8), Outcome.UNKNOWN, "still to follow"),
        ("h", replace(STATE, is_current=False), Outcome.UNKNOWN, "still to follow"),
        ("h", STATE, Outcome.PASSES, "since 0.7 s"),
    ],
)
def test_a_host_counts_when_it_has_followed_all_that_is_known(
    host: str | None, state: PlanState | None, outcome: Outcome, why: str
) -> None:
    step = followed("the sender's", "p5", host, state)

    assert step.outcome is outcome
    assert why in step.detail


def test_what_is_blocked_anywhere_is_blocked_and_what_is_unknown_is_not_promised() -> None:
    passes, unknown, blocked = (
        Step(kind="host", outcome=each, detail="")
        for each in (Outcome.PASSES, Outcome.UNKNOWN, Outcome.BLOCKED)
    )

    assert summed_up([passes, unknown, blocked]) is Outcome.BLOCKED
    assert summed_up([passes, unknown]) is Outcome.UNKNOWN
    assert summed_up([passes]) is Outcome.PASSES
