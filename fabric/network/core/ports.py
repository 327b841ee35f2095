"""Ports: which addresses one is to have, what it may send besides, and what strangers to a network may not ask for."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from fabric.errors import InvalidRequest, PermissionDenied, Reason, WrongState
from fabric.model.network import AddressPair, Network, NetworkKind, NetworkPort, Subnet
from fabric.network.core import choice, ranges
from fabric.network.core.subnets import asked_address, cidr_of, version_of


@dataclass(frozen=True, slots=True)
class AskedAddress:
    """An address that somebody wants: of which subnet (its id; empty: whichever has it), and which (empty: any)."""

    subnet_id: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An address to be taken: any of the first of these subnets that has one, or this one of the only subnet."""

    subnets: tuple[Subnet, ...]
    address: str = ""


def wanted_addresses(
    asked: Sequence[AskedAddress], subnets: Sequence[Subnet], *, field: str
) -> tuple[Wanted, ...]:
    """What has to be taken for a port: what was asked for, or one address of each family that the network has.

    Raises:
        InvalidRequest: naming the field below `field`: not the network's subnet, nobody's address, or one that is asked for twice.
    """
    if not asked:
        families = [tuple(each for each in subnets if version_of(each) == version) for version in (4, 6)]
        return tuple(Wanted(family) for family in families if family)
    found = [_wanted(each, subnets, field=f"{field}[{at}]") for at, each in enumerate(asked)]
    said = [each.address for each in found if each.address]
    if len(set(said)) != len(said):
        raise InvalidRequest(f"{field} asks for one address twice", field=field)
    return tuple(found)


def address_pairs(asked: Sequence[AddressPair], *, field: str) -> tuple[AddressPair, ...]:
    """What else may come out of a port, canonical. Raises InvalidRequest."""
    found = []
    for at, each in enumerate(asked):
        where = f"{field}[{at}]"
        cidr = ranges.network(each.cidr, field=f"{where}.cidr")
        if cidr.prefixlen == 0:
            raise InvalidRequest(
                f"{where}.cidr: {cidr} would be every address; switch port security off for that",
                field=f"{where}.cidr",
            )
        mac = checked_mac(each.mac, field=f"{where}.mac_address") if each.mac else ""
        found.append(AddressPair(cidr=str(cidr), mac=mac))
    if len(set(found)) != len(found):
        raise InvalidRequest(f"{field} has one pair twice", field=field)
    return tuple(found)


def checked_mac(mac: str, *, field: str) -> str:
    """A MAC that one interface can have, in lower case. Raises InvalidRequest for a group's, or none (IEEE 802)."""
    number = choice.mac_number(mac)
    if number >> 40 & 1:
        raise InvalidRequest(f"{field}: {mac} is a multicast address, not an interface's", field=field)
    if number == 0:
        raise InvalidRequest(f"{field}: {mac} is nobody's", field=field)
    return mac.lower()


def check_network(network: Network, *, project_id: str, is_admin: bool, field: str) -> None:
    """Whether the project may have ports on a network that it sees.

    Raises:
        InvalidRequest: the hosts' own network has no ports that anybody makes.
        PermissionDenied: an external network is its owner's.
    """
    if network.kind is NetworkKind.HOST_LOCAL:
        raise InvalidRequest(
            f"{field}: the ports of network {network.name} are made by its hosts, with the servers",
            field=field,
        )
    if network.kind is NetworkKind.EXTERNAL and network.project_id != project_id and not is_admin:
        raise PermissionDenied(
            f"network {network.name} is external: reach it by a router, or by a floating IP"
        )


def check_unbound(port: NetworkPort) -> None:
    """Whether the port is nobody's. Raises WrongState."""
    if port.instance_id:
        raise WrongState(
            f"port {port.name or port.id} is in use by server {port.instance_id}; remove it from the server first",
            reason=Reason.RESOURCE_IN_USE,
            port=port.id,
            instance=port.instance_id,
        )


def check_trust(port: NetworkPort, network: Network, *, asked_mac: bool, is_admin: bool) -> None:
    """Whether a port on somebody else's network keeps to what its neighbours can live with. Raises PermissionDenied."""
    if network.project_id == port.project_id or is_admin:
        return
    if not port.port_security or port.allowed_address_pairs or asked_mac:
        raise PermissionDenied(
            f"network {network.name} is shared: only its own project chooses MACs there, lets other addresses"
            " through or switches port security off"
        )


def check_security(port: NetworkPort, *, field: str) -> None:
    """Whether the port's filters make sense together. Raises InvalidRequest."""
    if port.port_security:
        return
    for name, is_set in (
        ("security_groups", port.security_group_ids),
        ("allowed_address_pairs", port.allowed_address_pairs),
    ):
        if is_set:
            raise InvalidRequest(
                f"{field}.{name}: without port security nothing is filtered; leave it out",
                field=f"{field}.{name}",
            )


def _wanted(asked: AskedAddress, subnets: Sequence[Subnet], *, field: str) -> Wanted:
    if asked.subnet_id:
        mine = [each for each in subnets if each.id == asked.subnet_id]
        if not mine:
            raise InvalidRequest(f"{field}.subnet is not one of the port's network", field=f"{field}.subnet")
    elif asked.address:
        number = ranges.address(asked.address, field=f"{field}.ip_address")
        mine = [each for each in subnets if ipaddress.ip_address(number) in cidr_of(each)]
        if not mine:
            raise InvalidRequest(
                f"{field}.ip_address: {number} is in none of the network's subnets",
                field=f"{field}.ip_address",
            )
    else:
        raise InvalidRequest(f"{field} names neither a subnet nor an address", field=field)
    if not asked.address:
        return Wanted(tuple(mine))
    return Wanted(tuple(mine), asked_address(mine[0], asked.address, field=f"{field}.ip_address"))
