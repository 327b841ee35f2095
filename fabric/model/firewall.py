"""What a host must filter: the contract between the network model, which compiles to these values, and hosts, which enforce them.

Everything is resolved: no name has to be looked up, and no default is added later. What many ports share is said once. A rule
belongs to a `RuleGroup`, so changing it touches one value however many ports are in the group; the members of a remote group are
an `AddressSet`, so a member who comes or goes touches one set and no rule.

The meaning is that of Neutron's security groups. They are a stateful allow-list: a packet passes when it belongs or relates to a
connection that was allowed, or when any rule of any group of the port allows it to begin one; without a rule nothing passes. Order
means nothing. What an interface needs to work at all (ARP, neighbour discovery, DHCP as a client) is not said in rules, and what
it may never do (another's address, a DHCP server, router advertisements) cannot be allowed by one.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from fabric.model.network import unzoned

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
PROTOCOLS_WITH_PORTS: Final = frozenset({TCP, UDP, 33, 132, 136})
"""TCP, UDP, DCCP, SCTP and UDP-Lite: the IP protocols of which a rule may name ports."""


class Direction(enum.Enum):
    """Seen from the guest, as in Neutron: INGRESS comes to it."""

    INGRESS = "ingress"
    EGRESS = "egress"


class EtherType(enum.Enum):
    """The family that a rule is about. A rule is about one: allowing both takes two, as in Neutron."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"

    @property
    def ip_version(self) -> int:
        """4 or 6, as `ipaddress` has it."""
        return 4 if self is EtherType.IPV4 else 6


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PortRange:
    """Destination ports, both ends included. Raises ValueError unless 0 <= first <= last <= 65535."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last <= 0xFFFF:
            raise ValueError(f"{self.first}-{self.last} is no range of ports: 0 <= first <= last <= 65535")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRule:
    """One thing that is allowed. What is None is any.

    `protocol` is the number in the IP header, for IPv6 the one behind the extension headers; ICMP over IPv6 is 58. `ports` are the
    destination's and want a protocol that has ports; `icmp_type` and, with it, `icmp_code` want ICMP of the family. The remote is
    the source of ingress and the destination of egress: a prefix such as `10.0.0.0/8`, or the name of an `AddressSet` of which the
    members of the rule's family count, or anybody. `id` says whose rule it is, to people; it takes no part in comparison.

    Raises ValueError for what contradicts itself.
    """

    direction: Direction
    ether_type: EtherType
    protocol: int | None = None
    ports: PortRange | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    remote_prefix: str | None = None
    remote_set: str | None = None
    id: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.protocol is not None and not 0 <= self.protocol <= 0xFF:
            raise ValueError(f"protocol {self.protocol} is not in 0-255")
        if self.ports is not None and self.protocol not in PROTOCOLS_WITH_PORTS:
            raise ValueError(f"protocol {self.protocol} has no ports")
        icmp = ICMP if self.ether_type is EtherType.IPV4 else ICMPV6
        if self.icmp_type is not None and self.protocol != icmp:
            raise ValueError(f"an ICMP type wants protocol {icmp}, not {self.protocol}")
        if self.icmp_code is not None and self.icmp_type is None:
            raise ValueError("an ICMP code wants a type")
        if any(number is not None and not 0 <= number <= 0xFF for number in (self.icmp_type, self.icmp_code)):
            raise ValueError(f"ICMP type {self.icmp_type}, code {self.icmp_code}: each is 0-255")
        if self.remote_prefix is not None and self.remote_set is not None:
            raise ValueError("a remote is a prefix or a set, not both")
        if self.remote_prefix is not None:
            _network_of(self.remote_prefix, self.ether_type.ip_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleGroup:
    """A security group as a host sees it: what its ports may do. `id` is the group's; ports name it in `PortFilter.groups`."""

    id: str
    rules: frozenset[FilterRule] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSet:
    """Addresses that rules share, such as those of all members of a group, on every host.

    `members` are prefixes of either family (`10.0.0.5/32`, `2001:db8::5/128`, or without a length for one address); they may
    overlap. A member counts for rules of its own family only. Raises ValueError for what is no prefix.
    """

    name: str
    members: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for member in self.members:
            _network_of(member)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPair:
    """Another source that a port may use, as Neutron's allowed address pairs. `mac` empty is the port's own.

    Raises ValueError for what is no prefix.
    """

    prefix: str
    mac: str = ""

    def __post_init__(self) -> None:
        _network_of(self.prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortFilter:
    """One port on this host: who may speak through its tap, and which groups say what it may do.

    `addresses` are the fixed ones, of both families, without a length; no two ports of a network have the same. `mac` is lower case
    with colons. `network_id` tells apart equal addresses of different tenants: connections are tracked by network. Without
    `port_security` nothing is filtered, neither spoofing nor rules, as in Neutron; `groups` and `allowed_pairs` are then without
    effect. Otherwise no groups means that nothing passes but what an interface needs.

    Raises ValueError for what is no address.
    """

    port_id: str
    instance_id: str
    network_id: str
    tap: str
    mac: str
    addresses: tuple[str, ...] = ()
    allowed_pairs: tuple[AddressPair, ...] = ()
    port_security: bool = True
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for address in self.addresses:
            ipaddress.ip_address(unzoned(address))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFilters:
    """All of one host: its ports, and the groups and sets that they and their rules name, each once.

    Raises ValueError when two share a name, or one is named that is not there: a host must never have to guess what was meant.
    """

    ports: tuple[PortFilter, ...] = ()
    groups: tuple[RuleGroup, ...] = ()
    sets: tuple[AddressSet, ...] = ()

    def __post_init__(self) -> None:
        _unique("ports", (port.port_id for port in self.ports))
        _unique("taps", (port.tap for port in self.ports))
        groups = _unique("groups", (group.id for group in self.groups))
        sets = _unique("sets", (it.name for it in self.sets))
        _named("group", {name for port in self.ports for name in port.groups}, groups)
        named = {
            rule.remote_set for group in self.groups for rule in group.rules if rule.remote_set is not None
        }
        _named("set", named, sets)


def _network_of(prefix: str, version: int | None = None) -> IpNetwork:
    """The network; raises ValueError for what is none, has bits beyond its length or a zone, or is of another family."""
    network = ipaddress.ip_network(unzoned(prefix))
    if version is not None and network.version != version:
        raise ValueError(f"{prefix} is not of IPv{version}")
    return network


def _unique(what: str, names: Iterable[str]) -> set[str]:
    listed = list(names)
    if len(found := set(listed)) != len(listed):
        raise ValueError(f"two {what} share a name: {sorted(n for n in found if listed.count(n) > 1)}")
    return found


def _named(what: str, wanted: set[str], known: set[str]) -> None:
    if missing := wanted - known:
        raise ValueError(f"no {what} is called {sorted(missing)}")
