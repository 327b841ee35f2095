"""Addresses as the conductor says them, and what only one port of a network can have on a host. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from fabric.model.network import Port, unzoned


def claims(ports: Iterable[Port]) -> Iterator[tuple[str, str]]:
    """(network, MAC or address) of each: the same ones on two tenant networks are no conflict.

    The hosts' own network is one, whatever it is called.
    """
    for port in ports:
        network = port.network_id if port.vni else ""
        yield network, port.mac
        for each in port.addresses:
            yield network, each.address


IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def address_of(text: str) -> IpAddress:
    """An address. Raises ValueError for what is none, and for one with a zone."""
    return ipaddress.ip_address(unzoned(text))


def network_of(text: str) -> IpNetwork:
    """The network that an address with a length is of. Raises ValueError, as `address_of` does."""
    return ipaddress.ip_network(unzoned(text), strict=False)


def interface_of(address: str, prefix_length: int) -> str:
    """The address with its length. Raises ValueError, as `address_of` does."""
    return str(ipaddress.ip_interface(f"{unzoned(address)}/{prefix_length}"))
