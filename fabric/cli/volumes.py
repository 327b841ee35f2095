"""`fabric volume`: disks that outlive servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.many import each
from fabric.cli.output import Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import examples
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from fabric.client.volumes import Volume

COLUMNS = ("ID", "Name", "Status", "Size", "Attached to")


def view(volume: Volume) -> dict[str, Value]:
    """Every field, as it is printed."""
    return {
        "id": volume.id,
        "name": volume.name,
        "status": volume.status,
        "size": volume.size_gib,
        "server_id": volume.instance_id,
        "image": f"{volume.image_name} ({volume.image})" if volume.image else "",
        "device": f"/dev/disk/by-id/virtio-{volume.serial}",
        "delete_on_termination": volume.delete_on_termination,
        "directory": volume.directory,
        "cell": volume.cell,
        "host": volume.host,
        "created_at": when(volume.create_time),
        "attached_at": when(volume.attach_time),
    }


def row(volume: Volume) -> tuple[Value, ...]:
    """A line of a list."""
    return (volume.id, volume.name, volume.status, volume.size_gib, volume.instance_id)


@click.group()
def volume() -> None:
    """Disks that outlive servers. `fabric server add volume` plugs one in."""


@volume.command(
    epilog=examples(
        "fabric volume create --size 10 nebula_data",
        "fabric volume create --image nebula_standard_os --size 10 nebula_root",
        "fabric volume create --directory nfs1 --size 10 nebula_shared",
    )
)
@click.option(
    "--directory",
    default="",
    metavar="NAME",
    help="Keep its data in this directory, which several hosts share.  [default: on the host it is first used on]",
)
@click.option(
    "--image",
    default="",
    help="What its data starts as, by name or id: a server can boot from it.  [default: empty]",
    shell_complete=params.images,
)
@click.option(
    "--size",
    "size_gib",
    type=params.WholeIn(min=1),
    required=True,
    metavar="GIB",
    help="How large it is, in GiB.",
)
@click.argument("name")
@showing
@pass_session
def create(session: Session, *, directory: str, image: str, size_gib: int, name: str, shape: Shape) -> None:
    """Make a volume, empty or of an image.

    It takes room when it is first used, and stays on the host that it is then on; one in a shared directory goes to any host that has that.
    """
    made = session.client.volumes.create(name=name, size_gib=size_gib, image=image, directory=directory)
    print_one(shape, view(made))


@volume.command("list", epilog=examples("fabric volume list", "fabric volume list --sort-column Size"))
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List the project's volumes."""
    print_list(shape, COLUMNS, map(row, session.client.volumes.list()))


@volume.command(epilog=examples("fabric volume show nebula_data"))
@click.argument("volume", shell_complete=params.volumes)
@showing
@pass_session
def show(session: Session, *, volume: str, shape: Shape) -> None:
    """Show one, by name or id."""
    print_one(shape, view(session.client.volumes.get(volume)))


@volume.command(
    "set",
    epilog=examples(
        "fabric volume set --name nebula_archive nebula_data", "fabric volume set --size 20 nebula_data"
    ),
)
@click.option("--name", default="", help="Another name.")
@click.option(
    "--size",
    "size_gib",
    type=params.WholeIn(min=1),
    default=None,
    metavar="GIB",
    help="A larger size, in GiB; of a volume that no server has.",
)
@click.argument("volume", shell_complete=params.volumes)
@showing
@pass_session
def set_(session: Session, *, name: str, size_gib: int | None, volume: str, shape: Shape) -> None:
    """Give a volume another name, or make it larger. The filesystem in it is its guest's to grow."""
    if not name and size_gib is None:
        raise click.UsageError("nothing to change: give --name or --size")
    print_one(shape, view(session.client.volumes.update(volume, name=name, size_gib=size_gib or 0)))


@volume.command(epilog=examples("fabric volume delete nebula_data"))
@click.argument("volumes", nargs=-1, required=True, shell_complete=params.volumes)
@pass_session
def delete(session: Session, *, volumes: tuple[str, ...]) -> None:
    """Delete volumes that no server has, with their data."""
    each(session, volumes, session.client.volumes.delete)
