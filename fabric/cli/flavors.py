"""`fabric flavor`: the menu of sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.many import each
from fabric.cli.output import Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import PAIR, examples
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.flavors import Flavor


def view(flavor: Flavor) -> dict[str, Value]:
    """Every field, as it is printed."""
    return {
        "id": flavor.id,
        "name": flavor.name,
        "ram": flavor.ram_mib,
        "disk": flavor.disk_gib,
        "vcpus": flavor.vcpus,
        "description": flavor.description,
        "properties": dict(sorted(flavor.properties.items())),
        "created_at": when(flavor.create_time),
    }


@click.group()
def flavor() -> None:
    """The menu of sizes: memory, virtual CPUs and root disk."""


@flavor.command(
    epilog=examples(
        "fabric flavor create --id auto --ram 512 --disk 1 --vcpus 1 m1.nebula_micro",
        "fabric flavor create --ram 8192 --disk 80 --vcpus 4 --property trait:GPU=required g1.large",
    )
)
@click.option(
    "--id",
    type=click.Choice(["auto"]),
    default="auto",
    expose_value=False,
    help="Taken for openstack's sake: ids are always made by the server.",
)
@click.option("--ram", "ram_mib", type=params.WHOLE, required=True, metavar="MIB", help="Memory, in MiB.")
@click.option(
    "--disk",
    "disk_gib",
    type=params.WHOLE,
    default=0,
    metavar="GIB",
    help="Root disk in GiB; 0: the image's size.",
)
@click.option("--vcpus", type=params.WHOLE, default=1, show_default=True, help="Virtual CPUs.")
@click.option("--description", default="", help="For people.")
@click.option("--property", "properties", type=PAIR, multiple=True, help="trait:NAME=required or =forbidden.")
@click.argument("name")
@showing
@pass_session
def create(
    session: Session,
    *,
    ram_mib: int,
    disk_gib: int,
    vcpus: int,
    description: str,
    properties: tuple[tuple[str, str], ...],
    name: str,
    shape: Shape,
) -> None:
    """Add a size to the menu (system administrators)."""
    made = session.client.flavors.create(
        name=name,
        vcpus=vcpus,
        ram_mib=ram_mib,
        disk_gib=disk_gib,
        description=description,
        properties=dict(properties),
    )
    print_one(shape, view(made))


@flavor.command("list", epilog=examples("fabric flavor list", "fabric flavor list -f json"))
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List every size."""
    print_list(
        shape,
        ("ID", "Name", "RAM", "Disk", "VCPUs"),
        ((it.id, it.name, it.ram_mib, it.disk_gib, it.vcpus) for it in session.client.flavors.list()),
    )


@flavor.command(epilog=examples("fabric flavor show m1.nebula_micro"))
@click.argument("flavor", shell_complete=params.flavors)
@showing
@pass_session
def show(session: Session, *, flavor: str, shape: Shape) -> None:
    """Show one, by name or id."""
    print_one(shape, view(session.client.flavors.get(flavor)))


@flavor.command(epilog=examples("fabric flavor delete m1.nebula_micro"))
@click.argument("flavors", nargs=-1, required=True, metavar="FLAVOR...", shell_complete=params.flavors)
@pass_session
def delete(session: Session, *, flavors: tuple[str, ...]) -> None:
    """Take sizes off the menu (system administrators); servers made with them keep theirs."""
    each(session, flavors, session.client.flavors.delete)
