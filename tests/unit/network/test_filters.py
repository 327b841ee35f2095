"""Filters: what hosts are told is what the groups say, and a change reaches the hosts it means something to, and no other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fabric.model.firewall import AddressSet, FilterRule, HostFilters, PortRange
from fabric.model.firewall import Direction as HostDirection
from fabric.model.firewall import EtherType as HostEtherType
from fabric.model.network import AddressPair, FixedAddress, NetworkPort
from fabric.model.security_group import Direction, EtherType, SecurityGroup, SecurityRule
from fabric.network.core.filters import (
    PlacedPort,
    compiled,
    filter_rule,
    touched_by_members,
    touched_by_rules,
)


def port(name: str, *groups: str, address: str = "10.0.0.5", **fields: Any) -> NetworkPort:
    made = NetworkPort(
        id=name,
        name=name,
        project_id="p",
        network_id="n",
        mac="fa:16:3e:00:00:01",
        fixed_addresses=(FixedAddress(subnet_id="s", address=address),),
        security_group_ids=groups,
    )
    return replace(made, **fields)


def rule(name: str, **fields: Any) -> SecurityRule:
    made = SecurityRule(id=name, direction=Direction.INGRESS, ether_type=EtherType.IPV4)
    return replace(made, **fields)


def group(name: str, *rules: SecurityRule) -> SecurityGroup:
    return SecurityGroup(id=name, name=name, project_id="p", rules=rules)


def on_host(
    ports: Iterable[NetworkPort], groups: Iterable[SecurityGroup], everywhere: Iterable[NetworkPort] = ()
) -> HostFilters:
    """What a host with these ports is told."""
    return compiled(
        [PlacedPort(port=each, instance_id=f"i-{each.id}", tap=f"t-{each.id}") for each in ports],
        {each.id: each for each in groups},
        members_of(everywhere or ports),
    )


def members_of(ports: Iterable[NetworkPort]) -> Mapping[str, list[NetworkPort]]:
    found: dict[str, list[NetworkPort]] = {}
    for each in ports:
        for name in each.security_group_ids:
            found.setdefault(name, []).append(each)
    return found


def test_ssh_is_let_in_by_the_rule_of_the_course() -> None:
    ssh = rule("r", protocol=6, port_min=22, port_max=22)

    told = on_host([port("a", "web")], [group("web", ssh)])

    (filtered,) = told.ports
    assert (filtered.port_id, filtered.instance_id, filtered.tap) == ("a", "i-a", "t-a")
    assert (filtered.network_id, filtered.addresses, filtered.groups) == ("n", ("10.0.0.5",), ("web",))
    assert told.groups[0].rules == {
        FilterRule(
            direction=HostDirection.INGRESS,
            ether_type=HostEtherType.IPV4,
            protocol=6,
            ports=PortRange(first=22, last=22),
        )
    }
    assert told.sets == ()


def test_an_icmp_rule_names_type_and_code() -> None:
    ping = filter_rule(rule("r", protocol=1, port_min=8, port_max=0))
    any_icmp = filter_rule(rule("r", protocol=1))

    assert (ping.icmp_type, ping.icmp_code, ping.ports) == (8, 0, None)
    assert (any_icmp.icmp_type, any_icmp.icmp_code) == (None, None)


def test_a_remote_group_is_the_addresses_of_its_members_on_every_host() -> None:
    here, elsewhere = port("a", "web"), port("b", "db", address="10.0.0.9")
    far = port("c", "db", address="fd00::9", allowed_address_pairs=(AddressPair(cidr="10.1.0.0/24"),))

    told = on_host(
        [here], [group("web", rule("r", remote_group_id="db")), group("db")], [here, elsewhere, far]
    )

    assert told.sets == (AddressSet(name="db", members=frozenset({"10.0.0.9", "fd00::9", "10.1.0.0/24"})),)
    assert [each.id for each in told.groups] == ["web"]


def test_what_is_missing_allows_nothing() -> None:
    """A group that is just being deleted: its rules are gone, and a host is never told a name it cannot look up."""
    told = on_host([port("a", "gone", "web")], [group("web", rule("r", remote_group_id="gone-too"))])

    assert told.ports[0].groups == ("web",)
    assert told.sets == (AddressSet(name="gone-too"),)


def test_a_port_without_security_is_told_as_one() -> None:
    told = on_host([port("a", port_security=False)], [])

    assert not told.ports[0].port_security
    assert told.ports[0].groups == ()


# ------------------------------------------------------------------------------------------ whole models

GROUPS = ["g0", "g1", "g2", "g3"]
HOSTS = ["h0", "h1", "h2"]
RULES = st.builds(
    rule,
    st.uuids().map(str),
    direction=st.sampled_from([Direction.INGRESS, Direction.EGRESS]),
    ether_type=st.sampled_from([EtherType.IPV4, EtherType.IPV6]),
    remote_group_id=st.sampled_from(["", *GROUPS]),
)


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, SecurityGroup], dict[str, tuple[str, NetworkPort]]]:
    """Groups by id, and ports by id, each on a host."""
    groups = {name: group(name, *draw(st.lists(RULES, max_size=3))) for name in GROUPS}
    ports = {}
    for number in range(draw(st.integers(1, 8))):
        secure = draw(st.booleans()) or draw(st.booleans())
        mine = draw(st.lists(st.sampled_from(GROUPS), unique=True)) if secure else []
        made = port(f"p{number}", *mine, address=f"10.0.0.{number}", port_security=secure)
        ports[made.id] = (draw(st.sampled_from(HOSTS)), made)
    return groups, ports


def told_to(
    host: str, groups: Mapping[str, SecurityGroup], ports: Mapping[str, tuple[str, NetworkPort]]
) -> HostFilters:
    return on_host(
        [each for at, each in ports.values() if at == host],
        groups.values(),
        [each for _, each in ports.values()],
    )


@given(models(), st.sampled_from(GROUPS), RULES)
def test_a_change_of_rules_reaches_the_hosts_with_ports_in_the_group_and_no_other(
    model: tuple[dict[str, SecurityGroup], dict[str, tuple[str, NetworkPort]]],
    name: str,
    added: SecurityRule,
) -> None:
    groups, ports = model
    after = {**groups, name: replace(groups[name], rules=(*groups[name].rules, added))}
    is_new = filter_rule(added) not in {filter_rule(each) for each in groups[name].rules}

    touched = touched_by_rules(name, [each for _, each in ports.values()])

    hosts = {ports[each][0] for each in touched}
    for host in HOSTS:
        differs = told_to(host, groups, ports) != told_to(host, after, ports)
        assert differs == (is_new and host in hosts)


@given(models(), st.sampled_from(GROUPS))
def test_a_new_member_reaches_the_hosts_whose_rules_name_the_group_and_no_other(
    model: tuple[dict[str, SecurityGroup], dict[str, tuple[str, NetworkPort]]], name: str
) -> None:
    groups, ports = model
    after = {**ports, "new": ("elsewhere", port("new", name, address="10.9.9.9"))}

    touched = touched_by_members(name, groups.values(), [each for _, each in ports.values()])

    hosts = {ports[each][0] for each in touched}
    for host in HOSTS:
        assert (told_to(host, groups, ports) != told_to(host, groups, after)) == (host in hosts)


@given(models())
def test_every_name_is_there_and_every_port_is_told_once(
    model: tuple[dict[str, SecurityGroup], dict[str, tuple[str, NetworkPort]]],
) -> None:
    """HostFilters refuses names that are missing; and equal models are told equally, in whatever order they come."""
    groups, ports = model

    for host in HOSTS:
        mine = [each for at, each in ports.values() if at == host]
        everywhere = [each for _, each in ports.values()]
        told = on_host(mine, groups.values(), everywhere)
        assert [each.port_id for each in told.ports] == sorted(each.id for each in mine)
        assert told == on_host(mine[::-1], list(groups.values())[::-1], everywhere[::-1])
