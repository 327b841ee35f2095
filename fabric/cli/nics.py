"""What a new server is attached to, as the command line says it: options, and the request they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fabric.cli import params
from fabric.cli.params import Keys

if TYPE_CHECKING:
    from fabric.client.instances import RequestedNetwork

F = TypeVar("F", bound=Callable[..., Any])

NIC = Keys(optional=("net-id", "port-id", "v4-fixed-ip", "v6-fixed-ip"))


def attaching(function: F) -> F:
    """The options of a create, as the parameters `networks`, `ports`, `nics` and `groups`."""
    for option in (
        click.option(
            "--security-group",
            "groups",
            multiple=True,
            metavar="GROUP",
            shell_complete=params.security_groups,
            help="A group of the ports that are made for it; may be given again.  [default: the project's default group]",
        ),
        click.option(
            "--nic",
            "nics",
            type=NIC,
            multiple=True,
            help="An interface, in this order after those of the other options; may be given again.",
        ),
        click.option(
            "--port",
            "ports",
            multiple=True,
            shell_complete=params.ports,
            help="A port that is nobody's; may be given again.",
        ),
        click.option(
            "--network",
            "networks",
            multiple=True,
            help="What it is attached to; may be given again.  [default: the hosts' own network]",
            shell_complete=params.networks,
        ),
    ):
        function = option(function)
    return function


def requested(
    networks: tuple[str, ...], ports: tuple[str, ...], nics: tuple[dict[str, str], ...]
) -> list[RequestedNetwork]:
    """The interfaces that are asked for: on networks, then at ports, then those that are written out."""
    from fabric.client.instances import RequestedAddress, RequestedNetwork

    written = [
        RequestedNetwork(
            network=nic.get("net-id", ""),
            port=nic.get("port-id", ""),
            fixed_ips=[
                RequestedAddress(ip_address=nic[key]) for key in ("v4-fixed-ip", "v6-fixed-ip") if key in nic
            ],
        )
        for nic in nics
    ]
    return [
        *(RequestedNetwork(network=each) for each in networks),
        *(RequestedNetwork(port=each) for each in ports),
        *written,
    ]
