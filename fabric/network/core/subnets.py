"""Subnets: what somebody asked for as a subnet that can be, and who may have which of its addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fabric.errors import InvalidRequest, Reason, WrongState
from fabric.model.network import (
    PHYSICAL_NETWORK,
    AddressRange,
    HostRoute,
    Network,
    NetworkKind,
    Subnet,
)
from fabric.network.core import ranges
from fabric.network.core.ranges import Interval, IpNetwork

VXLAN_OVERHEAD_BYTES = 50
"""What the outer Ethernet, IPv4, UDP and VXLAN headers take of an underlay's MTU (RFC 7348)."""

DEFAULT_MTU = {NetworkKind.TENANT: 1500 - VXLAN_OVERHEAD_BYTES, NetworkKind.EXTERNAL: 1500}
LEAST_MTU = 576
LEAST_MTU_IPV6 = 1280
"""RFC 8200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedSubnet:
    """What somebody said of a new subnet; `gateway` empty: the first address."""

    cidr: str
    gateway: str = ""
    has_gateway: bool = True
    dhcp: bool = True
    dns_servers: tuple[str, ...] = ()
    pools: tuple[AddressRange, ...] = ()
    host_routes: tuple[HostRoute, ...] = ()


def checked_mtu(mtu: int, kind: NetworkKind, subnets: Iterable[Subnet], *, field: str) -> int:
    """The MTU, or the kind's for 0. Raises InvalidRequest where it is too small for what is there."""
    found = mtu or DEFAULT_MTU[kind]
    has_ipv6 = any(version_of(each) == 6 for each in subnets)
    least = LEAST_MTU_IPV6 if has_ipv6 else LEAST_MTU
    if found < least:
        why = " for IPv6" if has_ipv6 else ""
        raise InvalidRequest(f"{field} is {found}; it must be at least {least}{why}", field=field)
    return found


def checked_physical(asked: str, kind: NetworkKind, *, field: str) -> str:
    """What a network is on: an external one has a word for it, the others none. Raises InvalidRequest where one was said all the same."""
    if kind is NetworkKind.EXTERNAL:
        return asked or PHYSICAL_NETWORK
    if asked:
        raise InvalidRequest(f"{field}: only an external network is on a physical one", field=field)
    return ""


def planned(
    asked: AskedSubnet, network: Network, others: Iterable[Subnet], *, bare: Subnet, field: str
) -> Subnet:
    """The subnet with everything decided.

    Args:
        asked: what somebody said.
        network: where it is to be.
        others: what the network has already.
        bare: the new subnet as far as nothing has to be decided: its id, its names.
        field: the path of the subnet in the request.

    Raises:
        InvalidRequest: naming the field: no such subnet can be, or it overlaps one of the others.
    """
    cidr = ranges.subnet(asked.cidr, field=f"{field}.cidr")
    for other in others:
        if ranges.overlap(cidr, ipaddress.ip_network(other.cidr)):
            raise InvalidRequest(
                f"{field}.cidr: {cidr} overlaps {other.cidr} of subnet {other.name or other.id} on the same network",
                field=f"{field}.cidr",
            )
    if cidr.version == 6 and network.mtu < LEAST_MTU_IPV6:
        raise InvalidRequest(
            f"{field}.cidr: the network's MTU is {network.mtu}; IPv6 needs {LEAST_MTU_IPV6}",
            field=f"{field}.cidr",
        )
    usable = ranges.hosts(cidr)
    gateway = _gateway(asked, cidr, usable, field=f"{field}.gateway")
    own = [] if gateway is None else [gateway]
    pools = (
        _pools(asked.pools, cidr, gateway, field=f"{field}.allocation_pools")
        if asked.pools
        else ranges.without([usable], own)
    )
    service = _service(usable, own, pools, asked_pools=bool(asked.pools))
    pools = ranges.without(pools, [service])
    if not pools:
        raise InvalidRequest(
            f"{field}.allocation_pools: no address is left for guests", field=f"{field}.allocation_pools"
        )
    return replace(
        bare,
        network_id=network.id,
        cidr=str(cidr),
        gateway="" if gateway is None else ranges.text(gateway, cidr.version),
        service_address=ranges.text(service, cidr.version),
        dhcp=asked.dhcp,
        dns_servers=dns_servers(asked.dns_servers, cidr.version, field=f"{field}.dns_servers"),
        allocation_pools=tuple(_range(each, cidr.version) for each in pools),
        host_routes=host_routes(asked.host_routes, cidr, field=f"{field}.host_routes"),
    )


def repooled(subnet: Subnet, asked: tuple[AddressRange, ...], *, field: str) -> tuple[AddressRange, ...]:
    """Other pools for a subnet that is there; what is outside them stays with whoever has it. Raises InvalidRequest."""
    cidr = cidr_of(subnet)
    gateway = int(ipaddress.ip_address(subnet.gateway)) if subnet.gateway else None
    service = int(ipaddress.ip_address(subnet.service_address))
    pools = ranges.without(_pools(asked, cidr, gateway, field=field), [service])
    if not pools:
        raise InvalidRequest(f"{field}: no address is left for guests", field=field)
    return tuple(_range(each, cidr.version) for each in pools)


def dns_servers(asked: Sequence[str], version: int, *, field: str) -> tuple[str, ...]:
    """Name servers of the subnet's family, which is the one it can tell its guests by DHCP. Raises InvalidRequest."""
    found = tuple(str(ranges.address(each, field=field)) for each in asked)
    for each in found:
        if ipaddress.ip_address(each).version != version:
            raise InvalidRequest(f"{field}: {each} is not an IPv{version} address", field=field)
    if len(set(found)) != len(found):
        raise InvalidRequest(f"{field} names one server twice", field=field)
    return found


def host_routes(asked: Sequence[HostRoute], cidr: IpNetwork, *, field: str) -> tuple[HostRoute, ...]:
    """Routes that guests can follow: by an address of the subnet. Raises InvalidRequest."""
    found = []
    for each in asked:
        destination = ranges.network(each.destination, field=f"{field}.destination")
        hop = ranges.address(each.next_hop, field=f"{field}.next_hop")
        if hop not in cidr:
            raise InvalidRequest(
                f"{field}.next_hop: {hop} is not in {cidr}: guests could not reach it",
                field=f"{field}.next_hop",
            )
        if destination.version != cidr.version:
            raise InvalidRequest(
                f"{field}.destination: {destination} is not IPv{cidr.version}", field=f"{field}.destination"
            )
        found.append(HostRoute(destination=str(destination), next_hop=str(hop)))
    if len({each.destination for each in found}) != len(found):
        raise InvalidRequest(f"{field} has two routes to one destination", field=field)
    return tuple(found)


def cidr_of(subnet: Subnet) -> IpNetwork:
    """The range."""
    return ipaddress.ip_network(subnet.cidr)


def version_of(subnet: Subnet) -> int:
    """4 or 6."""
    return cidr_of(subnet).version


def pools_of(subnet: Subnet) -> tuple[Interval, ...]:
    """Where addresses are taken from, as numbers."""
    return tuple(sorted(ranges.interval(each) for each in subnet.allocation_pools))


def asked_address(subnet: Subnet, asked: str, *, field: str) -> str:
    """An address that somebody asks for by itself, in or out of the pools. Raises InvalidRequest where nobody may have it."""
    cidr = cidr_of(subnet)
    found = ranges.address(asked, field=field)
    if found not in cidr or int(found) not in ranges.hosts(cidr):
        raise InvalidRequest(f"{field}: {found} is not a host's address of {cidr}", field=field)
    text = str(found)
    if text == subnet.gateway:
        raise InvalidRequest(f"{field}: {found} is the gateway of {cidr}, which is a router's", field=field)
    if text == subnet.service_address:
        raise InvalidRequest(f"{field}: {found} is held for DHCP and metadata of {cidr}", field=field)
    return text


def check_can_end(network: Network) -> None:
    """Whether somebody may delete the network at all. Raises WrongState for the system's own."""
    if network.kind is NetworkKind.HOST_LOCAL:
        raise WrongState(
            f"network {network.name} is the hosts' own and stays",
            reason=Reason.WRONG_STATE,
            network=network.id,
        )


def _gateway(asked: AskedSubnet, cidr: IpNetwork, usable: Interval, *, field: str) -> int | None:
    if not asked.has_gateway:
        if asked.gateway:
            raise InvalidRequest(f"{field} contradicts no_gateway", field=field)
        return None
    if not asked.gateway:
        return usable.first
    found = ranges.address(asked.gateway, field=field)
    if found not in cidr or int(found) not in usable:
        raise InvalidRequest(
            f"{field}: {found} is outside the hosts' addresses of {cidr}, where guests could not reach it",
            field=field,
        )
    return int(found)


def _pools(
    asked: Sequence[AddressRange], cidr: IpNetwork, gateway: int | None, *, field: str
) -> tuple[Interval, ...]:
    usable = ranges.hosts(cidr)
    found: list[Interval] = []
    for each in asked:
        first, last = ranges.address(each.first, field=field), ranges.address(each.last, field=field)
        if any(end not in cidr or int(end) not in usable for end in (first, last)):
            raise InvalidRequest(
                f"{field}: {first}-{last} is not within the hosts' addresses of {cidr}", field=field
            )
        if int(first) > int(last):
            raise InvalidRequest(f"{field}: {first} comes after {last}", field=field)
        found.append(Interval(int(first), int(last)))
    found.sort()
    for one, next_one in pairwise(found):
        if next_one.first <= one.last:
            raise InvalidRequest(
                f"{field}: two of them have {ranges.text(next_one.first, cidr.version)}", field=field
            )
    if gateway is not None and any(gateway in each for each in found):
        raise InvalidRequest(
            f"{field}: the gateway {ranges.text(gateway, cidr.version)} is in one of them", field=field
        )
    return tuple(found)


def _service(usable: Interval, own: Sequence[int], pools: Sequence[Interval], *, asked_pools: bool) -> int:
    """The lowest address that is nobody's, outside of pools that somebody asked for if there is one."""
    free = ranges.without([usable], own)
    if asked_pools:
        for each in free:
            number = each.first
            for pool in pools:
                if number in pool:
                    number = pool.last + 1
            if number in each:
                return number
    return pools[0].first


def _range(of: Interval, version: int) -> AddressRange:
    return AddressRange(first=ranges.text(of.first, version), last=ranges.text(of.last, version))
