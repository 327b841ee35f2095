"""`fabric network`: what ports, and so servers, are on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fabric.cli import params
from fabric.cli.many import each
from fabric.cli.output import Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import examples, given, something
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.networks import Network


def view(network: Network) -> dict[str, Value]:
    """Every field, as it is printed."""
    return {
        "id": network.id,
        "name": network.name,
        "kind": network.kind,
        "mtu": network.mtu,
        "dns_nameservers": list(network.dns_servers),
        "created_at": when(network.create_time),
        "project_id": network.project_id,
        "description": network.description,
        "shared": network.shared,
        "router:external": network.external,
        "subnets": list(network.subnet_ids),
        "provider:segmentation_id": network.vni or None,
        "provider:physical_network": network.physical_network,
        "updated_at": when(network.update_time),
    }


@click.group()
def network() -> None:
    """Networks that servers can be attached to."""


@network.command(
    epilog=examples(
        "fabric network create nebula_net",
        "fabric network create --external --description 'The world outside' public",
    )
)
@click.option("--description", default="", help="For people.")
@click.option("--mtu", type=params.WHOLE, default=0, metavar="BYTES", help="The MTU of its interfaces.")
@click.option(
    "--share/--no-share",
    "shared",
    default=False,
    help="Whether every project may use it (system administrators).",
)
@click.option(
    "--external/--internal",
    default=False,
    help="Whether it is the world outside, for gateways and floating IPs (system administrators).",
)
@click.option(
    "--provider-physical-network",
    "physical_network",
    default="",
    metavar="NAME",
    help="What an external network is on, as hosts' settings call it.  [default: external]",
)
@click.argument("name")
@showing
@pass_session
def create(
    session: Session,
    *,
    description: str,
    mtu: int,
    shared: bool,
    external: bool,
    physical_network: str,
    name: str,
    shape: Shape,
) -> None:
    """Make a network that spans the hosts."""
    made = session.client.networks.create(
        name=name,
        description=description,
        mtu=mtu,
        shared=shared,
        external=external,
        physical_network=physical_network,
    )
    print_one(shape, view(made))


@network.command("list", epilog=examples("fabric network list"))
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List the project's networks, and those that everybody sees."""
    print_list(
        shape,
        ("ID", "Name", "Kind", "MTU", "Shared", "Subnets"),
        (
            (it.id, it.name, it.kind, it.mtu, it.shared, list(it.subnet_ids))
            for it in session.client.networks.list()
        ),
    )


@network.command(epilog=examples("fabric network show nebula_net"))
@click.argument("network", shell_complete=params.networks)
@showing
@pass_session
def show(session: Session, *, network: str, shape: Shape) -> None:
    """Show one, by name or id."""
    print_one(shape, view(session.client.networks.get(network)))


@network.command("set", epilog=examples("fabric network set --name office --mtu 1400 nebula_net"))
@click.option("--name", help="Another name.")
@click.option("--description", help="For people.")
@click.option("--mtu", type=params.WHOLE, metavar="BYTES", help="The MTU of its interfaces.")
@click.option(
    "--share/--no-share", "shared", default=None, help="Whether every project may use it (administrators)."
)
@click.argument("network", shell_complete=params.networks)
@pass_session
def set_(session: Session, /, *, network: str, **said: Any) -> None:
    """Change one."""
    session.client.networks.update(network, **something(given(said)))


@network.command(epilog=examples("fabric network delete nebula_net"))
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...", shell_complete=params.networks)
@pass_session
def delete(session: Session, *, networks: tuple[str, ...]) -> None:
    """Delete networks with their subnets; refused while anything is on them."""
    each(session, networks, session.client.networks.delete)


@network.command(
    epilog=examples(
        "fabric network trace --from nebula_web_01 --to nebula_db_01 --proto tcp --port 5432",
        "fabric network trace --from nebula_web_01 --to 198.51.100.7",
    )
)
@click.option(
    "--from",
    "source",
    required=True,
    metavar="SERVER",
    shell_complete=params.servers,
    help="Where the packet comes from: a server or a port.",
)
@click.option(
    "--to",
    "destination",
    required=True,
    metavar="ADDRESS",
    help="Where to: an address, a server or a port.",
)
@click.option(
    "--protocol",
    "--proto",
    default="icmp",
    show_default=True,
    help="tcp, udp, icmp, another name or a number.",
)
@click.option(
    "--port", type=params.WHOLE, help="The destination port, or the ICMP type; any where it is not said."
)
@listing
@pass_session
def trace(
    session: Session, *, source: str, destination: str, protocol: str, port: int | None, shape: Shape
) -> None:
    """Say what a packet would meet: the rules, the way, and whether the hosts have followed all that.

    No packet is sent: this is what the fabric knows. A packet here is the first of a connection.
    """
    from fabric.client.traces import outcome_name

    found = session.client.traces.trace(source, destination, protocol=protocol, port=port)
    print_list(
        shape,
        ("Step", "Outcome", "Why", "ID"),
        ((each.kind, outcome_name(each.outcome), each.detail, each.resource_id) for each in found.steps),
    )
    session.say(f"{found.source_address} to {found.destination_address}: {outcome_name(found.outcome)}")
