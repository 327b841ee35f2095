"""The rules of a group, gathered so that many of one kind cost as much as one: the packet filter and the check of connections use
the same. Pure.

A group of a thousand rules is most often one service for a thousand prefixes, or a thousand ports for everybody. Both become one
`Allowance` with a set beside it, in which the kernel finds an element without walking, and in which a rule more is an element more.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from fabric.model.firewall import Direction, EtherType, FilterRule, PortRange

EVERY_PORT: Final = PortRange(first=0, last=0xFFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is spoken, whoever the remote is: a protocol number and, if said, an ICMP type and code. None is any."""

    protocol: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """A service on any of `ports` (None: whatever the port, or none) with remotes in any of `prefixes` or in `remote_set`.

    `prefixes` None and `remote_set` None is everybody. Ports and prefixes are merged: sorted, disjoint, not adjacent.
    """

    service: Service
    ports: tuple[PortRange, ...] | None = None
    prefixes: tuple[str, ...] | None = None
    remote_set: str | None = None


def allowances(
    rules: Iterable[FilterRule], direction: Direction, ether_type: EtherType
) -> tuple[Allowance, ...]:
    """What the rules of one direction and family allow together, in an order that depends on nothing but what they say."""
    by_prefix: dict[tuple[Service, PortRange], set[str]] = {}
    by_remote: dict[tuple[Service, str | None], set[PortRange]] = {}
    for rule in rules:
        if rule.direction is not direction or rule.ether_type is not ether_type:
            continue
        service = Service(protocol=rule.protocol, icmp_type=rule.icmp_type, icmp_code=rule.icmp_code)
        ports = rule.ports or EVERY_PORT
        if rule.remote_prefix is not None:
            by_prefix.setdefault((service, ports), set()).add(rule.remote_prefix)
        else:
            by_remote.setdefault((service, rule.remote_set), set()).add(ports)
    found: list[Allowance] = []
    for (service, ports), said in by_prefix.items():
        prefixes = merged(said)
        # All of a family is everybody, however it was put together.
        if prefixes[0].endswith("/0"):
            by_remote.setdefault((service, None), set()).add(ports)
        else:
            found.append(Allowance(service=service, ports=_merged_ports((ports,)), prefixes=prefixes))
    found += [
        Allowance(service=service, ports=_merged_ports(ranges), remote_set=remote)
        for (service, remote), ranges in by_remote.items()
    ]
    return tuple(sorted(found, key=_order))


def merged(prefixes: Iterable[str]) -> tuple[str, ...]:
    """The fewest prefixes of the same addresses, those of IPv4 first; nftables refuses sets that overlap."""
    networks = [_network(prefix) for prefix in prefixes]
    if len(networks) == 1:
        return (str(networks[0]),)
    fours = ipaddress.collapse_addresses(it for it in networks if isinstance(it, ipaddress.IPv4Network))
    sixes = ipaddress.collapse_addresses(it for it in networks if isinstance(it, ipaddress.IPv6Network))
    return (*map(str, fours), *map(str, sixes))


@lru_cache(maxsize=8192)
def _network(prefix: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Of the thousands of rules that a host goes by, a change leaves all but one as they were, and to read a prefix is most of the work."""
    return ipaddress.ip_network(prefix)


class Addresses:
    """A set of addresses of either family that finds one without walking."""

    def __init__(self, prefixes: Iterable[str]) -> None:
        self._prefixes = tuple(prefixes)

    @cached_property
    def _spans(self) -> dict[int, tuple[list[int], list[int]]]:
        spans: dict[int, tuple[list[int], list[int]]] = {4: ([], []), 6: ([], [])}
        for prefix in merged(self._prefixes):
            network = ipaddress.ip_network(prefix)
            firsts, lasts = spans[network.version]
            firsts.append(int(network.network_address))
            lasts.append(int(network.broadcast_address))
        return spans

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address):
            return False
        firsts, lasts = self._spans[address.version]
        found = bisect_right(firsts, int(address)) - 1
        return found >= 0 and int(address) <= lasts[found]


def _merged_ports(ranges: Iterable[PortRange]) -> tuple[PortRange, ...] | None:
    """The fewest ranges of the same ports; None for all of them."""
    found: list[PortRange] = []
    for it in sorted(ranges):
        if found and it.first <= found[-1].last + 1:
            found[-1] = PortRange(first=found[-1].first, last=max(found[-1].last, it.last))
        else:
            found.append(it)
    return None if found == [EVERY_PORT] else tuple(found)


def _order(allowance: Allowance) -> tuple[object, ...]:
    service = allowance.service
    numbers = (service.protocol, service.icmp_type, service.icmp_code)
    return (
        tuple(-1 if number is None else number for number in numbers),
        allowance.remote_set or "",
        allowance.prefixes is not None,
        tuple((it.first, it.last) for it in allowance.ports or ()),
    )
