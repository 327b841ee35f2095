"""`fabric project`: what owns servers and quota."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.output import Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import examples
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.projects import Project


def view(project: Project) -> dict[str, Value]:
    """Every field, as it is printed."""
    limit, used = project.quota_limit, project.quota_used
    return {
        "id": project.id,
        "name": project.name,
        "description": project.description,
        "quota_instances": limit.instances,
        "quota_cores": limit.vcpus,
        "quota_ram": limit.ram_mib,
        "quota_volumes": limit.volumes,
        "quota_gigabytes": limit.volume_gib,
        "used_instances": used.instances,
        "used_cores": used.vcpus,
        "used_ram": used.ram_mib,
        "used_volumes": used.volumes,
        "used_gigabytes": used.volume_gib,
        "created_at": when(project.create_time),
    }


@click.group()
def project() -> None:
    """What owns servers and quota (system administrators)."""


@project.command(
    epilog=examples(
        "fabric project create nebula_prod",
        "fabric project create --instances 50 --cores 200 --ram 524288 --description 'Nebula Inc.' nebula_prod",
    )
)
@click.option("--description", default="", help="For people.")
@click.option("--instances", type=int, help="How many servers it may have.")
@click.option("--cores", "vcpus", type=int, help="How many virtual CPUs they may have together.")
@click.option(
    "--ram", "ram_mib", type=int, metavar="MIB", help="How much memory they may have together, in MiB."
)
@click.argument("name")
@showing
@pass_session
def create(
    session: Session,
    *,
    description: str,
    instances: int | None,
    vcpus: int | None,
    ram_mib: int | None,
    name: str,
    shape: Shape,
) -> None:
    """Make a project, with the system's default quota or its own."""
    quota = None
    if instances is not None or vcpus is not None or ram_mib is not None:
        if instances is None or vcpus is None or ram_mib is None:
            raise click.UsageError("a quota is --instances, --cores and --ram together")
        from fabric.client.projects import Quota

        quota = Quota(instances=instances, vcpus=vcpus, ram_mib=ram_mib)
    print_one(shape, view(session.client.projects.create(name=name, description=description, quota=quota)))


@project.command("list", epilog=examples("fabric project list"))
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List every project."""
    print_list(
        shape,
        ("ID", "Name", "Description"),
        ((it.id, it.name, it.description) for it in session.client.projects.list()),
    )


@project.command(epilog=examples("fabric project show nebula_prod"))
@click.argument("project", shell_complete=params.projects)
@showing
@pass_session
def show(session: Session, *, project: str, shape: Shape) -> None:
    """Show one with its quota, by name or id."""
    print_one(shape, view(session.client.projects.get(project)))
