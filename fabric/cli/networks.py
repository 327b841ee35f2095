"""`fabric network`: what servers can be attached to."""

from __future__ import annotations

import click

from fabric.cli import params
from fabric.cli.output import Shape, listing, print_list, print_one, showing, when
from fabric.cli.params import examples
from fabric.cli.session import Session, pass_session


@click.group()
def network() -> None:
    """Networks that servers can be attached to."""


@network.command("list", epilog=examples("fabric network list"))
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List every network."""
    print_list(
        shape,
        ("ID", "Name", "Kind", "MTU"),
        ((it.id, it.name, it.kind, it.mtu) for it in session.client.networks.list()),
    )


@network.command(epilog=examples("fabric network show nebula_net"))
@click.argument("network", shell_complete=params.networks)
@showing
@pass_session
def show(session: Session, *, network: str, shape: Shape) -> None:
    """Show one, by name or id."""
    found = session.client.networks.get(network)
    print_one(
        shape,
        {
            "id": found.id,
            "name": found.name,
            "kind": found.kind,
            "mtu": found.mtu,
            "dns_nameservers": list(found.dns_servers),
            "created_at": when(found.create_time),
        },
    )
