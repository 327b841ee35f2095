"""Everything that plans of hosts are made of, kept so that what one change touches is known without looking at the rest.

A `NetworkPicture` is told of each record that comes, changes or goes, and answers which hosts' plans that may have changed: too many
rather than too few, for a plan is compared with what was sent. What many hosts' plans share is made once, and is the very same value in
all of them until it changes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import product
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeVar

from fabric.model.binding import PortBinding, RouterGateway
from fabric.model.firewall import AddressSet, FilterRule, RuleGroup
from fabric.model.network import FloatingIp, Network, NetworkPort, Router, Subnet
from fabric.model.network_plan import Neighbour, PlannedSubnet
from fabric.model.security_group import SecurityGroup, SecurityRule
from fabric.network.core import filters

V = TypeVar("V")

KINDS: Final = (Network, Subnet, NetworkPort, Router, FloatingIp, SecurityGroup, PortBinding, RouterGateway)
"""What a picture is made of."""


class HostRef(NamedTuple):
    """A host of any cell."""

    cell: str
    name: str


class Index:
    """Which things are found under a word. Words without any are not kept."""

    def __init__(self) -> None:
        self._ids: defaultdict[Any, set[str]] = defaultdict(set)

    def __getitem__(self, word: object) -> frozenset[str]:
        return frozenset(self._ids.get(word, ()))

    def move(self, thing: str, before: Iterable[object], after: Iterable[object]) -> None:
        """Find it under other words than before."""
        old, new = set(before), set(after)
        for word in old - new:
            self._ids[word].discard(thing)
            if not self._ids[word]:
                del self._ids[word]
        for word in new - old:
            self._ids[word].add(thing)


class Census:
    """On which hosts the things of a word are: known without a look at the things, of which there may be thousands. Words without any are
    not kept.
    """

    def __init__(self) -> None:
        self._counts: defaultdict[str, Counter[HostRef]] = defaultdict(Counter)

    def __getitem__(self, word: str) -> frozenset[HostRef]:
        return frozenset(self._counts.get(word, ()))

    def move(self, before: Iterable[tuple[str, HostRef]], after: Iterable[tuple[str, HostRef]]) -> None:
        """Count one thing at other words and hosts than before."""
        old, new = set(before), set(after)
        for word, host in old - new:
            counts = self._counts[word]
            counts[host] -= 1
            if not counts[host]:
                del counts[host]
            if not counts:
                del self._counts[word]
        for word, host in new - old:
            self._counts[word][host] += 1


class NetworkPicture:
    """See the module. The mappings are by id; bindings by their port's, gateways by their router's."""

    def __init__(self) -> None:
        self._records: Final[dict[type, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self._subnets_in = Index()
        self._routers_at = Index()
        self._routers_in = Index()
        self._routers_out = Index()
        self._floating_of = Index()
        self._members = Index()
        self._naming = Index()
        self._bound_in = Index()
        self._bound_on = Index()
        self._gateways_on = Index()
        self._hosts_with = Census()
        self._hosts_in_group = Census()
        self._rules: dict[str, RuleGroup] = {}
        self._filter_rules: dict[str, dict[SecurityRule, FilterRule]] = {}
        self._sets: dict[str, AddressSet] = {}
        self._neighbours: dict[str, tuple[tuple[HostRef, Neighbour], ...]] = {}
        self._planned_subnets: dict[str, tuple[PlannedSubnet, ...]] = {}

    # ------------------------------------------------------------------ what is there

    def of(self, kind: type[V]) -> Mapping[str, V]:
        """All of a kind, by id. A live view."""
        return MappingProxyType(self._records[kind])

    def get(self, kind: type[V], thing: str) -> V | None:
        """One of a kind."""
        found: V | None = self._records[kind].get(thing)
        return found

    def subnets_in(self, network_id: str) -> frozenset[str]:
        """The ids of a network's subnets."""
        return self._subnets_in[network_id]

    def routers_at(self, subnet_id: str) -> frozenset[str]:
        """The ids of routers with an interface in a subnet."""
        return self._routers_at[subnet_id]

    def floating_ips_of(self, port_id: str) -> frozenset[str]:
        """The ids of the floating IPs that lead to a port."""
        return self._floating_of[port_id]

    def bound_on(self, host: HostRef) -> frozenset[str]:
        """The ids of ports that are on a host."""
        return self._bound_on[host]

    def gateways_on(self, host: HostRef) -> frozenset[str]:
        """The ids of routers that lead out from a host."""
        return self._gateways_on[host]

    def members_of(self, group_id: str) -> frozenset[str]:
        """The ids of ports that are in a group, wherever they are."""
        return self._members[group_id]

    def hosts_of_network(self, network_id: str) -> frozenset[HostRef]:
        """Hosts that take part in a network, or may: they have a port of it, or of one that a router joins to it; or lead it out."""
        routers = self._routers_in[network_id] | self._routers_out[network_id]
        return self._hosts_in((network_id,)).union(*(self.hosts_of_router(each) for each in routers))

    def hosts_with(self, network_id: str) -> frozenset[HostRef]:
        """Hosts that have a port of a network."""
        return self._hosts_in((network_id,))

    def hosts_of_router(self, router_id: str) -> frozenset[HostRef]:
        """Hosts that have a router, or may: they have a port of a network that it joins, or it leads out there."""
        there = _host_of(self.get(RouterGateway, router_id))
        return self._hosts_in(_legs_of(self.get(Router, router_id), "network_id")).union(there)

    # ------------------------------------------------------------------ what plans share

    def rule_group(self, group: SecurityGroup) -> RuleGroup:
        """A group's rules as hosts have them; the same value until the group changes."""
        known = self._rules.get(group.id)
        if known is None:
            # Of a thousand rules one is new, and the others were made for the group as it was before.
            before = self._filter_rules.get(group.id, {})
            made = {each: before.get(each) or filters.filter_rule(each) for each in group.rules}
            self._filter_rules[group.id] = made
            known = self._rules[group.id] = RuleGroup(id=group.id, rules=frozenset(made.values()))
        return known

    def address_set(self, group_id: str) -> AddressSet:
        """The addresses of a group's members; the same value until one of them changes."""
        known = self._sets.get(group_id)
        if known is None:
            ports = (self._records[NetworkPort][each] for each in self._members[group_id])
            known = self._sets[group_id] = filters.address_set(group_id, ports)
        return known

    def neighbours(self, network_id: str) -> tuple[tuple[HostRef, Neighbour], ...]:
        """A network's ports that other hosts can send to, by id, each with its host."""
        known = self._neighbours.get(network_id)
        if known is None:
            found = ((each, self.get(NetworkPort, each)) for each in sorted(self._bound_in[network_id]))
            placed = ((self._records[PortBinding][each], port) for each, port in found if port is not None)
            known = self._neighbours[network_id] = tuple(
                (HostRef(binding.cell, binding.host), _neighbour(port, binding))
                for binding, port in placed
                if binding.tunnel_address
            )
        return known

    def planned_subnets(self, network_id: str) -> tuple[PlannedSubnet, ...]:
        """A network's ranges, by id."""
        known = self._planned_subnets.get(network_id)
        if known is None:
            subnets = self._records[Subnet]
            known = self._planned_subnets[network_id] = tuple(
                _planned_subnet(subnets[each]) for each in sorted(self._subnets_in[network_id])
            )
        return known

    # ------------------------------------------------------------------ what changes

    def put(self, kind: type[V], thing: str, value: V | None) -> frozenset[HostRef]:
        """Show one record as it is now, None for gone. Returns the hosts whose plans may have changed."""
        before = self.get(kind, thing)
        if before == value:
            return frozenset()
        # Asked before and after: what a thing touches depends on what it is found by.
        touched = self._touched(before, value)
        if value is None:
            del self._records[kind][thing]
        else:
            self._records[kind][thing] = value
        self._find(thing, before, value)
        return touched | self._touched(before, value)

    def _find(self, thing: str, before: object, after: object) -> None:
        """Have indexes find the thing by what it is now, and forget what was made of what it was."""
        match before if after is None else after:
            case Subnet():
                self._subnets_in.move(thing, _network_of(before), _network_of(after))
                _forget(self._planned_subnets, (*_network_of(before), *_network_of(after)))
            case NetworkPort():
                self._members.move(thing, _groups_of(before), _groups_of(after))
                there = _host_of(self.get(PortBinding, thing))
                self._hosts_in_group.move(
                    product(_groups_of(before), there), product(_groups_of(after), there)
                )
                _forget(self._sets, (*_groups_of(before), *_groups_of(after)))
                _forget(self._neighbours, (*_network_of(before), *_network_of(after)))
            case Router():
                self._routers_at.move(thing, _legs_of(before, "subnet_id"), _legs_of(after, "subnet_id"))
                self._routers_in.move(thing, _legs_of(before, "network_id"), _legs_of(after, "network_id"))
                self._routers_out.move(thing, _outside_of(before), _outside_of(after))
            case FloatingIp():
                self._floating_of.move(thing, _port_of(before), _port_of(after))
            case SecurityGroup():
                self._naming.move(thing, _named_by(before), _named_by(after))
                _forget(self._rules, (thing,))
                if after is None:
                    _forget(self._filter_rules, (thing,))
            case PortBinding():
                self._bound_in.move(thing, _network_of(before), _network_of(after))
                self._bound_on.move(thing, _host_of(before), _host_of(after))
                self._hosts_with.move(
                    product(_network_of(before), _host_of(before)),
                    product(_network_of(after), _host_of(after)),
                )
                groups = _groups_of(self.get(NetworkPort, thing))
                self._hosts_in_group.move(product(groups, _host_of(before)), product(groups, _host_of(after)))
                _forget(self._neighbours, (*_network_of(before), *_network_of(after)))
            case RouterGateway():
                self._gateways_on.move(thing, _host_of(before), _host_of(after))

    def _touched(self, before: object, after: object) -> frozenset[HostRef]:
        """Hosts that a thing means something to, as things are found now."""
        both = [each for each in (before, after) if each is not None]
        found: set[HostRef] = set()
        for each in both:
            match each:
                case Network(id=network_id):
                    found |= self.hosts_of_network(network_id)
                case Subnet() | PortBinding():
                    found |= self.hosts_of_network(each.network_id)
                    found |= set(_host_of(each))
                case NetworkPort():
                    found |= self._hosts_of((each.id,))
                case Router():
                    found |= self.hosts_of_router(each.id)
                    found |= self._hosts_in(_legs_of(each, "network_id"))
                case FloatingIp():
                    found |= self._hosts_of(_port_of(each))
                case SecurityGroup():
                    found |= self._hosts_in_group[each.id]
                case RouterGateway():
                    found |= self.hosts_of_router(each.router_id)
        if isinstance(both[0], NetworkPort):
            found |= self._touched_afar(before, after)
        return frozenset(found)

    def _touched_afar(self, before: object, after: object) -> frozenset[HostRef]:
        """Other hosts that a port means something to: those that send to it, and those that let in the members of its groups."""
        found: set[HostRef] = set()
        if _seen_of(before) != _seen_of(after):
            found |= self._around((*_network_of(before), *_network_of(after)))
        for group_id in {*_groups_of(before), *_groups_of(after)}:
            if _member(before, group_id) != _member(after, group_id):
                found |= frozenset[HostRef]().union(
                    *(self._hosts_in_group[each] for each in self._naming[group_id])
                )
        return frozenset(found)

    def _around(self, network_ids: Iterable[str]) -> frozenset[HostRef]:
        return frozenset[HostRef]().union(*(self.hosts_of_network(each) for each in network_ids))

    def _hosts_in(self, network_ids: Iterable[str]) -> frozenset[HostRef]:
        return frozenset[HostRef]().union(*(self._hosts_with[each] for each in set(network_ids)))

    def _hosts_of(self, port_ids: Iterable[str]) -> frozenset[HostRef]:
        bindings = self._records[PortBinding]
        found = (bindings[each] for each in port_ids if each in bindings)
        return frozenset(HostRef(each.cell, each.host) for each in found)


def _forget(made: dict[str, Any], words: Iterable[str]) -> None:
    for word in words:
        made.pop(word, None)


# What records are found by; nothing of one that is not there.


def _network_of(record: object) -> tuple[str, ...]:
    return (record.network_id,) if isinstance(record, Subnet | NetworkPort | PortBinding) else ()


def _host_of(record: object) -> tuple[HostRef, ...]:
    if isinstance(record, PortBinding | RouterGateway):
        return (HostRef(record.cell, record.host),)
    return ()


def _groups_of(record: object) -> tuple[str, ...]:
    return record.security_group_ids if isinstance(record, NetworkPort) else ()


def _port_of(record: object) -> tuple[str, ...]:
    return (record.port_id,) if isinstance(record, FloatingIp) and record.port_id else ()


def _outside_of(record: object) -> tuple[str, ...]:
    return (record.external_network_id,) if isinstance(record, Router) and record.external_network_id else ()


def _legs_of(record: object, field: Literal["network_id", "subnet_id"]) -> tuple[str, ...]:
    legs = record.interfaces if isinstance(record, Router) else ()
    return tuple(getattr(each, field) for each in legs)


def _named_by(record: object) -> tuple[str, ...]:
    rules = record.rules if isinstance(record, SecurityGroup) else ()
    return tuple(each.remote_group_id for each in rules if each.remote_group_id)


def _seen_of(record: object) -> object:
    """What other hosts know a port by."""
    return (record.mac, record.fixed_addresses) if isinstance(record, NetworkPort) else None


def _member(record: object, group_id: str) -> object:
    """What a port is to those who let in a group's members."""
    if not isinstance(record, NetworkPort) or group_id not in record.security_group_ids:
        return None
    return filters.sources_of(record)


def _neighbour(port: NetworkPort, binding: PortBinding) -> Neighbour:
    return Neighbour(
        port_id=port.id,
        mac=port.mac,
        addresses=tuple(each.address for each in port.fixed_addresses),
        tunnel_address=binding.tunnel_address,
    )


def _planned_subnet(subnet: Subnet) -> PlannedSubnet:
    return PlannedSubnet(
        id=subnet.id,
        cidr=subnet.cidr,
        gateway=subnet.gateway,
        service_address=subnet.service_address,
        dhcp=subnet.dhcp,
        dns_servers=subnet.dns_servers,
        host_routes=subnet.host_routes,
    )
