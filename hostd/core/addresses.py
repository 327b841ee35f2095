"""What only one port of a network can have on a host. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fabric.model.network import Port


def claims(ports: Iterable[Port]) -> Iterator[tuple[str, str]]:
    """(network, MAC or address) of each: the same ones on two tenant networks are no conflict.

    The hosts' own network is one, whatever it is called.
    """
    for port in ports:
        network = port.network_id if port.vni else ""
        yield network, port.mac
        for each in port.addresses:
            yield network, each.address
