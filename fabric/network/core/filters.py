"""What hosts must filter: ports, their groups and the members of those, compiled to the values of `fabric.model.firewall`.

A rule that lets a group in names the group's address set, not its members: so a member who comes or goes anywhere changes one set on the
hosts that have the set, and no rule. Nothing is looked up here but what was passed: what is missing allows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fabric.model import firewall
from fabric.model.firewall import (
    ICMP,
    ICMPV6,
    AddressSet,
    FilterRule,
    HostFilters,
    PortFilter,
    PortRange,
    RuleGroup,
)
from fabric.model.network import NetworkPort
from fabric.model.security_group import ANY, Direction, EtherType, SecurityGroup, SecurityRule

_DIRECTIONS: Final = MappingProxyType(
    {Direction.INGRESS: firewall.Direction.INGRESS, Direction.EGRESS: firewall.Direction.EGRESS}
)
_FAMILIES: Final = MappingProxyType(
    {EtherType.IPV4: firewall.EtherType.IPV4, EtherType.IPV6: firewall.EtherType.IPV6}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPort:
    """A port where it is: of which instance, and behind which tap of the host."""

    port: NetworkPort
    instance_id: str
    tap: str


def compiled(
    placed: Iterable[PlacedPort],
    groups: Mapping[str, SecurityGroup],
    members: Mapping[str, Iterable[NetworkPort]],
) -> HostFilters:
    """Everything that one host filters.

    Args:
        placed: the ports on the host.
        groups: by id, at least those of the ports. One that is not there allows nothing.
        members: the ports of each group wherever they are, by the group's id; at least of the groups that rules of `groups` name.

    Returns:
        Values in order, so that equal models give equal filters.
    """
    return assembled(
        placed,
        groups,
        rules=rule_group,
        addresses=lambda group_id: address_set(group_id, members.get(group_id, ())),
    )


def assembled(
    placed: Iterable[PlacedPort],
    groups: Mapping[str, SecurityGroup],
    *,
    rules: Callable[[SecurityGroup], RuleGroup],
    addresses: Callable[[str], AddressSet],
) -> HostFilters:
    """As `compiled`, of parts that somebody may have made already: a group's rules, and the address set of a group by its id."""
    ports = sorted(placed, key=lambda each: each.port.id)
    used = [groups[each] for each in sorted(_groups_of(it.port for it in ports)) if each in groups]
    named = {rule.remote_group_id for group in used for rule in group.rules if rule.remote_group_id}
    return HostFilters(
        ports=tuple(_port_filter(each, groups) for each in ports),
        groups=tuple(rules(each) for each in used),
        sets=tuple(addresses(each) for each in sorted(named)),
    )


def rule_group(group: SecurityGroup) -> RuleGroup:
    """A group's rules as hosts have them. Two that allow the same are one there."""
    return RuleGroup(id=group.id, rules=frozenset(filter_rule(each) for each in group.rules))


def address_set(group_id: str, members: Iterable[NetworkPort]) -> AddressSet:
    """Where packets of a group's members come from: their addresses, and what else may come out of their ports (as in the reference)."""
    found = {address for port in members for address in sources_of(port)}
    return AddressSet(name=group_id, members=frozenset(found))


def sources_of(port: NetworkPort) -> tuple[str, ...]:
    """The addresses a port may send from."""
    return (
        *(each.address for each in port.fixed_addresses),
        *(each.cidr for each in port.allowed_address_pairs),
    )


def filter_rule(rule: SecurityRule) -> FilterRule:
    """One rule as hosts have it."""
    is_icmp = rule.protocol in {ICMP, ICMPV6}
    has_ports = not is_icmp and rule.port_min != ANY
    return FilterRule(
        id=rule.id,
        direction=_DIRECTIONS[rule.direction],
        ether_type=_FAMILIES[rule.ether_type],
        protocol=_said(rule.protocol),
        ports=PortRange(first=rule.port_min, last=rule.port_max) if has_ports else None,
        icmp_type=_said(rule.port_min) if is_icmp else None,
        icmp_code=_said(rule.port_max) if is_icmp else None,
        remote_prefix=rule.remote_cidr or None,
        remote_set=rule.remote_group_id or None,
    )


def touched_by_rules(group_id: str, ports: Iterable[NetworkPort]) -> frozenset[str]:
    """The ids of ports for which a change of the group's rules means something: those that are in it."""
    return frozenset(each.id for each in ports if each.port_security and group_id in each.security_group_ids)


def touched_by_members(
    group_id: str, groups: Iterable[SecurityGroup], ports: Sequence[NetworkPort]
) -> frozenset[str]:
    """The ids of ports for which it means something who is in the group: those in a group with a rule that names it."""
    naming = [each.id for each in groups if any(rule.remote_group_id == group_id for rule in each.rules)]
    return frozenset[str]().union(*(touched_by_rules(each, ports) for each in naming))


def _port_filter(placed: PlacedPort, groups: Mapping[str, SecurityGroup]) -> PortFilter:
    port = placed.port
    return PortFilter(
        port_id=port.id,
        instance_id=placed.instance_id,
        network_id=port.network_id,
        tap=placed.tap,
        mac=port.mac,
        addresses=tuple(each.address for each in port.fixed_addresses),
        allowed_pairs=tuple(
            firewall.AddressPair(prefix=each.cidr, mac=each.mac) for each in port.allowed_address_pairs
        ),
        port_security=port.port_security,
        groups=tuple(each for each in port.security_group_ids if each in groups),
    )


def _groups_of(ports: Iterable[NetworkPort]) -> set[str]:
    return {group for port in ports for group in port.security_group_ids}


def _said(number: int) -> int | None:
    return None if number == ANY else number
