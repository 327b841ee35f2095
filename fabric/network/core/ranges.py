"""Ranges of addresses as values: reading them from what people wrote, with the field at fault, and arithmetic on them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fabric.errors import InvalidRequest
from fabric.model.network import AddressRange

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

PREFIX_LENGTHS: Final = {4: range(8, 31), 6: range(48, 127)}
"""Sizes of subnets by IP version: the smallest have room for a router and a guest."""

_NEVER_SUBNETS: Final = (
    ("0.0.0.0/8", "means this network (RFC 1122)"),
    ("127.0.0.0/8", "is loopback"),
    ("169.254.0.0/16", "is link-local, where metadata is served"),
    ("224.0.0.0/3", "is multicast or reserved"),
    ("::/16", "holds the unspecified, the loopback and IPv4-mapped addresses"),
    ("fe80::/10", "is link-local"),
    ("ff00::/8", "is multicast"),
)


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """Addresses as numbers, both ends included. Empty ones do not exist."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.first <= number <= self.last


def address(text: str, *, field: str) -> IpAddress:
    """The address. Raises InvalidRequest, naming `field`, for what is none; zones (`%eth0`) mean nothing here."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidRequest(f"{field}: {text!r} is not an IP address", field=field) from None
    _check_zone(text, field=field)
    return found


def network(text: str, *, field: str) -> IpNetwork:
    """The network, or one address as a network of its own.

    Raises:
        InvalidRequest: naming `field` and, for host bits, the right one. Zones mean nothing here, either.
    """
    _check_zone(text, field=field)
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidRequest(
            f"{field}: {text!r} is not a subnet such as 10.0.0.0/24 or fd00::/64", field=field
        ) from None
    raise InvalidRequest(f"{field}: {text!r} has host bits; the subnet is {meant}", field=field)


def subnet(text: str, *, field: str) -> IpNetwork:
    """A network that guests may have addresses of.

    Raises:
        InvalidRequest: it is no network, too large or too small, or of a kind that is never routed or never a host's.
    """
    found = network(text, field=field)
    lengths = PREFIX_LENGTHS[found.version]
    if found.prefixlen not in lengths:
        raise InvalidRequest(
            f"{field}: an IPv{found.version} subnet is a /{lengths.start} to a /{lengths.stop - 1},"
            f" not a /{found.prefixlen}",
            field=field,
        )
    for never, why in _NEVER_SUBNETS:
        if overlap(found, ipaddress.ip_network(never)):
            raise InvalidRequest(f"{field}: {found} is no subnet for guests: {never} {why}", field=field)
    return found


def overlap(one: IpNetwork, other: IpNetwork) -> bool:
    """Whether an address is in both."""
    return one.version == other.version and one.overlaps(other)


def hosts(of: IpNetwork) -> Interval:
    """What hosts may have: not the subnet's own address (in IPv6 the routers' anycast, RFC 4291), nor IPv4's broadcast address."""
    last = int(of.broadcast_address)
    return Interval(int(of.network_address) + 1, last - 1 if of.version == 4 else last)


def interval(of: AddressRange) -> Interval:
    """The numbers of a stored range."""
    return Interval(int(ipaddress.ip_address(of.first)), int(ipaddress.ip_address(of.last)))


def text(number: int, version: int) -> str:
    """An address as people write it: canonical (RFC 5952)."""
    return str(ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number))


def without(intervals: Iterable[Interval], gone: Iterable[int]) -> tuple[Interval, ...]:
    """What is left of the intervals, in order."""
    left = sorted(intervals)
    for number in gone:
        left = [part for each in left for part in _split(each, number)]
    return tuple(left)


def size(intervals: Sequence[Interval]) -> int:
    """How many there are in disjoint intervals."""
    return sum(each.size for each in intervals)


def _check_zone(text: str, *, field: str) -> None:
    # For `ipaddress` a zone may have any characters, and what is accepted becomes text of hosts' rules and configuration.
    if "%" in text:
        raise InvalidRequest(f"{field}: {text!r} has a zone, which only its own machine knows", field=field)


def _split(whole: Interval, gone: int) -> list[Interval]:
    if gone not in whole:
        return [whole]
    below = [Interval(whole.first, gone - 1)] if whole.first < gone else []
    above = [Interval(gone + 1, whole.last)] if gone < whole.last else []
    return below + above
