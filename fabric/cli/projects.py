"""`fabric project`: what owns servers and quota."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fabric.cli import params
from fabric.cli.output import Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import examples, given, something
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


F = TypeVar("F", bound=Callable[..., Any])


def limits(command: F) -> F:
    """The options for what a project may have."""
    for option in reversed(
        (
            click.option("--instances", type=params.WHOLE, help="How many servers it may have."),
            click.option(
                "--cores", "vcpus", type=params.WHOLE, help="How many virtual CPUs they may have together."
            ),
            click.option(
                "--ram",
                "ram_mib",
                type=params.WHOLE,
                metavar="MIB",
                help="How much memory they may have together, in MiB.",
            ),
            click.option("--volumes", type=params.WHOLE, help="How many volumes it may have."),
            click.option(
                "--gigabytes",
                "volume_gib",
                type=params.WHOLE,
                metavar="GIB",
                help="How large they may be together, in GiB.",
            ),
        )
    ):
        command = option(command)
    return command


@project.command(
    epilog=examples(
        "fabric project create nebula_prod",
        "fabric project create --instances 50 --cores 200 --ram 524288 --description 'Nebula Inc.' nebula_prod",
    )
)
@click.option("--description", default="", help="For people.")
@limits
@click.argument("name")
@showing
@pass_session
def create(session: Session, /, *, description: str, name: str, shape: Shape, **said: int | None) -> None:
    """Make a project, with the system's default quota or its own."""
    quota = None
    if asked := given(said):
        if not {"instances", "vcpus", "ram_mib"} <= asked.keys():
            raise click.UsageError(
                "a quota is --instances, --cores and --ram together, with or without --volumes and --gigabytes"
            )
        from fabric.client.projects import Quota

        quota = Quota(**asked)
    print_one(shape, view(session.client.projects.create(name=name, description=description, quota=quota)))


@project.command(
    "set", epilog=examples("fabric project set --cores 400 --volumes 20 --gigabytes 2000 nebula_prod")
)
@click.option("--description", help="For people.")
@limits
@click.argument("project", shell_complete=params.projects)
@pass_session
def set_(session: Session, /, *, project: str, description: str | None, **said: int | None) -> None:
    """Change one: what is said of it, or what it may have. What it has beyond a new limit stays, and no more is accepted."""
    asked = given(said)
    if description is None:
        something(asked)
    session.client.projects.update(project, description=description, limits=asked)


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
