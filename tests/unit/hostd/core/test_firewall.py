"""The tables of a host's packet filter, as text; what they do to packets is tests/integration/network's."""

from __future__ import annotations

from dataclasses import replace

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
from hostd.core.firewall import Segment, Tracking, assign_zones, link_local, tables
from hostd.core.nftables import change, whole

RED = Segment(network_id="red", bridge="br-red", zone=1)
IN = FilterRule(direction=Direction.INGRESS, ether_type=EtherType.IPV4)
PORT = PortFilter(
    port_id="port",
    instance_id="instance",
    network_id="red",
    tap="cft0",
    mac="52:54:00:00:00:01",
    addresses=("10.0.0.11", "2001:db8::11"),
    groups=("web",),
)


def filters(
    *rules: FilterRule, ports: tuple[PortFilter, ...] = (PORT,), members: frozenset[str] = frozenset()
) -> HostFilters:
    return HostFilters(
        ports=ports,
        groups=(RuleGroup(id="web", rules=frozenset(rules)),),
        sets=(AddressSet(name="friends", members=members),),
    )


def script(said: HostFilters, tracking: Tracking = Tracking.BR_NETFILTER) -> str:
    return "".join(map(whole, tables(said, [RED], tracking)))


def changed(before: HostFilters, after: HostFilters) -> list[str]:
    pairs = zip(*(tables(it, [RED], Tracking.BR_NETFILTER) for it in (before, after)), strict=True)
    return [line for one, other in pairs for line in change(one, other).splitlines()]


@pytest.mark.parametrize(
    "odd",
    [
        replace(PORT, tap='x" accept'),
        replace(PORT, mac="52:54:00:00:00:0G"),
        replace(PORT, allowed_pairs=(AddressPair(prefix="10.0.0.1", mac="any"),)),
    ],
)
def test_what_would_have_to_be_quoted_is_refused(odd: PortFilter) -> None:
    with pytest.raises(ValueError, match="does not match"):
        script(filters(ports=(odd,)))


def test_a_remote_prefix_brings_no_words_of_its_own() -> None:
    """What is behind a percent sign of an IPv6 address may be anything, for Python; and a rule's prefix is text of the ruleset."""
    with pytest.raises(ValueError, match="zone"):
        script(
            filters(replace(IN, ether_type=EtherType.IPV6, remote_prefix="fd00::%x }; flush ruleset #/64"))
        )


def test_names_of_groups_sets_and_bridges_are_checked_too() -> None:
    bad = "x; flush ruleset"
    named = replace(filters(), groups=(RuleGroup(id="web"), RuleGroup(id=bad, rules=frozenset({IN}))))
    with pytest.raises(ValueError, match="does not match"):
        script(named)
    with pytest.raises(ValueError, match="does not match"):
        script(replace(filters(), sets=(AddressSet(name=bad),)))
    with pytest.raises(ValueError, match="does not match"):
        tables(filters(), [replace(RED, bridge=bad)], Tracking.BRIDGE)


def test_nothing_but_our_tables_is_touched() -> None:
    for tracking in Tracking:
        for line in script(filters(IN, members=frozenset({"10.0.0.1"})), tracking).splitlines():
            assert line.split(" ")[2:4] in (["bridge", "cellfabric-ports"], ["inet", "cellfabric-ports"])


def test_the_order_of_what_is_said_changes_nothing() -> None:
    other = replace(PORT, port_id="other", tap="cft1", addresses=("10.0.0.12",))
    rules = (IN, replace(IN, protocol=6), replace(IN, remote_set="friends"))

    one = tables(filters(*rules, ports=(PORT, other)), [RED], Tracking.BRIDGE)
    two = tables(filters(*reversed(rules), ports=(other, PORT)), [RED], Tracking.BRIDGE)

    assert one == two


def test_a_member_more_is_an_element_more() -> None:
    rule = replace(IN, remote_set="friends")
    one, two = frozenset({"10.0.0.5"}), frozenset({"10.0.0.5", "10.0.0.7"})

    assert changed(filters(rule, members=one), filters(rule, members=two)) == [
        "add element bridge cellfabric-ports members-friends.v4 { 10.0.0.7/32 }"
    ]


def test_a_rule_more_of_many_of_a_kind_is_an_element_more() -> None:
    rules = [replace(IN, protocol=6, ports=PortRange(first=it, last=it)) for it in (22, 80, 443)]

    assert changed(filters(*rules[:2]), filters(*rules)) == [
        "add element bridge cellfabric-ports group-web.in4.tcp.ports { 443 }"
    ]


def test_a_rule_changes_nothing_about_the_ports_that_have_it() -> None:
    ports = tuple(replace(PORT, port_id=f"p{it}", tap=f"cft{it}", addresses=()) for it in range(50))

    lines = changed(filters(IN, ports=ports), filters(replace(IN, protocol=6), ports=ports))

    assert lines == [
        "flush chain bridge cellfabric-ports group-web.in4",
        "add rule bridge cellfabric-ports group-web.in4 meta l4proto 6 accept",
    ]


def test_a_port_without_security_is_let_be() -> None:
    text = script(filters(IN, ports=(replace(PORT, port_security=False),)))

    assert text.count('"cft0" : accept') == 3
    assert "door-cft0" not in text


def test_where_bridges_track_nothing_goes_through_inet() -> None:
    text = script(filters(IN), Tracking.BRIDGE)

    assert "table inet" not in text
    assert "meta mark" not in text
    assert "ct state established,related accept" in text
    assert 'zones { "br-red" : 1 }' in text


def test_zone_0_is_not_said() -> None:
    """It is what packets have without; a map may not have it."""
    (bridge,) = tables(filters(), [replace(RED, zone=0)], Tracking.BRIDGE)

    assert bridge.sets["zones"].elements == frozenset()


def test_a_bridge_keeps_its_zone_and_a_new_one_gets_nobodys() -> None:
    assert assign_zones({"b": 1, "gone": 2}, ["a", "b"]) == {"b": 1, "a": 3}
    assert assign_zones({}, []) == {}


def test_zones_end() -> None:
    with pytest.raises(ValueError, match="zone"):
        assign_zones({f"b{it}": it for it in range(1, 65536)}, ["one-more"])


def test_a_link_local_address_is_made_of_the_mac() -> None:
    """RFC 4291, appendix A."""
    assert link_local("52:54:00:00:00:01") == "fe80::5054:ff:fe00:1"


@pytest.mark.parametrize("prefix", ["0.0.0.0/0", "::/0"])
def test_a_pair_of_everything_asks_for_no_address(prefix: str) -> None:
    """nft has no words for an address that may be any."""
    text = script(filters(ports=(replace(PORT, allowed_pairs=(AddressPair(prefix=prefix),)),)))

    assert f"saddr {prefix}" not in text
    assert "ether saddr 52:54:00:00:00:01 ether type ip" in text
