"""Where hosts reach each other: the network that carries the tunnels of tenant networks."""

from __future__ import annotations

import ipaddress

from fabric.errors import InvalidRequest


def check_tunnel_address(address: str, *, field: str) -> str:
    """The address as it is written everywhere, empty where a host has none.

    Raises:
        InvalidRequest: naming `field`: not an address, or one that no other host could send to.
    """
    if not address:
        return ""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise InvalidRequest(f"{field} must be an address such as 192.0.2.13", field=field) from None
    if (
        "%" in address
        or found.is_unspecified
        or found.is_multicast
        or found.is_loopback
        or found.is_link_local
    ):
        raise InvalidRequest(f"{field} must be an address that other hosts can send to", field=field)
    return str(found)
