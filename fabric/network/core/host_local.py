"""Networks of the first form, as values: every host serves a subnet of its own, and the claim fixes each address."""

from __future__ import annotations

import ipaddress
from typing import Final

from fabric.errors import InvalidRequest
from fabric.model.network import Network
from fabric.network.addresses import slots_in

PREFIX_LENGTHS: Final = range(16, 29)
"""Sizes of guest subnets that make sense: a /28 has four addresses for guests."""

_PRIVATE: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")


def check_guest_cidr(guest_cidr: str, *, field: str) -> int:
    """How many guests a host's subnet has addresses for.

    Raises:
        InvalidRequest: naming `field`: not a subnet, not a private one (RFC 1918), or of a size that makes no sense.
    """
    try:
        subnet = ipaddress.IPv4Network(guest_cidr)
    except ValueError:
        raise InvalidRequest(
            f"{field} must be an IPv4 subnet such as 10.100.1.0/24, without host bits", field=field
        ) from None
    if subnet.prefixlen not in PREFIX_LENGTHS:
        raise InvalidRequest(
            f"{field} must be a /{PREFIX_LENGTHS.start} to a /{PREFIX_LENGTHS.stop - 1}", field=field
        )
    if not any(subnet.subnet_of(ipaddress.IPv4Network(private)) for private in _PRIVATE):
        raise InvalidRequest(f"{field} must be a private subnet: within {', '.join(_PRIVATE)}", field=field)
    return slots_in(guest_cidr)


def default_network(
    *, network_id: str, name: str, mtu: int, dns_servers: tuple[str, ...], now_ms: int
) -> Network:
    """The network that is there when nobody has made one.

    Raises:
        InvalidRequest: a name server is not an IPv4 address.
    """
    for server in dns_servers:
        try:
            ipaddress.IPv4Address(server)
        except ValueError:
            raise InvalidRequest(
                f"network.dns_servers: {server!r} is not an IPv4 address", field="network.dns_servers"
            ) from None
    return Network(
        id=network_id,
        name=name,
        mtu=mtu,
        dns_servers=dns_servers,
        create_time_ms=now_ms,
        update_time_ms=now_ms,
    )
