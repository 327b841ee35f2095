"""Which tracked connections the rules allow no longer. Pure.

The packet filter lets pass what belongs to a connection without looking at the rules again. So a rule that goes takes effect on new
connections at once, and on those it had allowed when they are forgotten: here it is decided which. What is decided depends on the
connections and on the rules of now, on nothing that happened in between; after any crash the answer is the same.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from fabric.model.firewall import UDP, Direction, EtherType, HostFilters, PortFilter
from hostd.core.allowances import Addresses, Allowance, allowances
from hostd.core.firewall import Segment, link_local

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a connection, as conntrack calls it. For ICMP there are no ports."""

    source: IpAddress
    destination: IpAddress
    source_port: int = 0
    destination_port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A tracked connection: as it was begun, and as its answers come, which differs where addresses were translated.

    `key` is what the kernel calls it, for whoever has it forgotten.
    """

    zone: int
    protocol: int
    original: Tuple
    reply: Tuple
    icmp_type: int | None = None
    icmp_code: int | None = None
    key: bytes = field(default=b"", compare=False, repr=False)


def forgotten(
    connections: Iterable[Connection],
    filters: HostFilters,
    segments: Iterable[Segment],
    departed: frozenset[tuple[str, str]] = frozenset(),
) -> Iterator[Connection]:
    """Those of `connections` that must be forgotten: with an end here that may not have it any more, or with no end here at all.

    `departed` are (network, address) of ports that are gone: the next who has the address inherits no connection. An address that
    several ports may use by allowed pairs is allowed what each of them is: nobody knows which it was. In zone 0 what has no end
    here is somebody else's.
    """
    rules = _Rules(filters)
    networks = {segment.zone: segment.network_id for segment in segments}
    gone = {(network, ipaddress.ip_address(address)) for network, address in departed}
    for it in connections:
        network = networks.get(it.zone)
        if network is None:
            continue
        if (network, it.original.source) in gone or (network, it.reply.source) in gone:
            yield it
            continue
        senders = rules.ports_at(network, it.original.source)
        receivers = rules.ports_at(network, it.reply.source)
        if not senders and not receivers:
            if it.zone:
                yield it
        elif not all(rules.may_send(port, it) for port in senders) or not all(
            rules.may_receive(port, it) for port in receivers
        ):
            yield it


def departures(loaded: HostFilters, wanted: HostFilters) -> frozenset[tuple[str, str]]:
    """(network, address) of what `loaded` gave to a port that does not have it in `wanted`."""
    now = _owners(wanted)
    return frozenset(where for where, port_id in _owners(loaded).items() if now.get(where) != port_id)


def curtailed(loaded: HostFilters, wanted: HostFilters) -> frozenset[str]:
    """The networks in which something that `loaded` allowed may be allowed no longer: of no others need connections be read."""
    sets = {it.name: it.members for it in wanted.sets}
    shrunk = {it.name for it in loaded.sets if not it.members <= sets.get(it.name, frozenset())}
    groups = {it.id: it.rules for it in wanted.groups}
    narrower = {
        it.id
        for it in loaded.groups
        if not it.rules <= groups.get(it.id, frozenset())
        or any(rule.remote_set in shrunk for rule in it.rules)
    }
    ports = {it.port_id: it for it in wanted.ports}
    return frozenset(
        port.network_id for port in loaded.ports if _is_curtailed(port, ports.get(port.port_id), narrower)
    )


def _is_curtailed(port: PortFilter, now: PortFilter | None, narrower: set[str]) -> bool:
    if now is None or (port.network_id, port.mac) != (now.network_id, now.mac):
        return True
    if not set(port.addresses) <= set(now.addresses):
        return True
    if not now.port_security:
        return False
    return (
        not port.port_security
        or not set(port.allowed_pairs) <= set(now.allowed_pairs)
        or not set(port.groups) <= set(now.groups)
        or not narrower.isdisjoint(port.groups)
    )


def _owners(filters: HostFilters) -> dict[tuple[str, str], str]:
    return {(port.network_id, address): port.port_id for port in filters.ports for address in port.addresses}


# ------------------------------------------------------------------ what the packet filter would say of a first packet


class _Rules:
    """The rules, made ready to be asked of many connections."""

    def __init__(self, filters: HostFilters) -> None:
        self._groups = {it.id: it for it in filters.groups}
        self._sets = {it.name: Addresses(it.members) for it in filters.sets}
        self._gathered: dict[tuple[str, Direction, EtherType], tuple[_Allowed, ...]] = {}
        self._fixed: dict[tuple[str, IpAddress], PortFilter] = {}
        self._paired: dict[str, list[tuple[Addresses, PortFilter]]] = {}
        for port in filters.ports:
            for address in (*port.addresses, link_local(port.mac)):
                self._fixed[port.network_id, ipaddress.ip_address(address)] = port
            if port.allowed_pairs:
                addresses = Addresses(
                    it
                    for pair in port.allowed_pairs
                    for it in (pair.prefix, link_local(pair.mac or port.mac))
                )
                self._paired.setdefault(port.network_id, []).append((addresses, port))

    def ports_at(self, network: str, address: IpAddress) -> tuple[PortFilter, ...]:
        """The ports that may have the address: the one it is fixed to, else all it is allowed to."""
        fixed = self._fixed.get((network, address))
        if fixed is not None:
            return (fixed,)
        return tuple(port for addresses, port in self._paired.get(network, ()) if address in addresses)

    def may_send(self, port: PortFilter, it: Connection) -> bool:
        """Whether the port's egress would let the connection begin."""
        remote, service_port = it.original.destination, it.original.destination_port
        if it.protocol == UDP and (it.original.source_port, service_port) == _DHCP_CLIENT[remote.version]:
            return True
        return self._allow(port, Direction.EGRESS, it, remote, service_port)

    def may_receive(self, port: PortFilter, it: Connection) -> bool:
        """Whether the port's ingress would let the connection begin."""
        remote, service_port = it.reply.destination, it.reply.source_port
        if it.protocol == UDP and (service_port, it.reply.destination_port) == _DHCP_CLIENT[remote.version]:
            return remote.version == 4 or remote.is_link_local
        return self._allow(port, Direction.INGRESS, it, remote, service_port)

    def _allow(
        self, port: PortFilter, direction: Direction, it: Connection, remote: IpAddress, service_port: int
    ) -> bool:
        if not port.port_security:
            return True
        ether_type = EtherType.IPV4 if remote.version == 4 else EtherType.IPV6
        return any(
            allowed.includes(it, remote, service_port)
            for group in port.groups
            for allowed in self._of(group, direction, ether_type)
        )

    def _of(self, group: str, direction: Direction, ether_type: EtherType) -> tuple[_Allowed, ...]:
        key = (group, direction, ether_type)
        if key not in self._gathered:
            gathered = allowances(self._groups[group].rules, direction, ether_type)
            self._gathered[key] = tuple(_Allowed(it, self._sets) for it in gathered)
        return self._gathered[key]


_DHCP_CLIENT: Final = {4: (68, 67), 6: (546, 547)}
"""Source and destination of a client's request, which needs no rule, and so neither does its answer."""


class _Allowed:
    """An allowance, made ready."""

    def __init__(self, allowance: Allowance, sets: Mapping[str, Addresses]) -> None:
        self._service = allowance.service
        self._firsts = None if allowance.ports is None else [it.first for it in allowance.ports]
        self._lasts = [it.last for it in allowance.ports or ()]
        self._remotes: Addresses | None = None
        if allowance.remote_set is not None:
            self._remotes = sets[allowance.remote_set]
        elif allowance.prefixes is not None:
            self._remotes = Addresses(allowance.prefixes)

    def includes(self, it: Connection, remote: IpAddress, service_port: int) -> bool:
        service = self._service
        if service.protocol not in {None, it.protocol}:
            return False
        if service.icmp_type not in {None, it.icmp_type} or service.icmp_code not in {None, it.icmp_code}:
            return False
        if self._firsts is not None:
            found = bisect_right(self._firsts, service_port) - 1
            if found < 0 or service_port > self._lasts[found]:
                return False
        return self._remotes is None or remote in self._remotes
