"""`fabric image`: what disks start as."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.many import each
from fabric.cli.output import Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import PAIR, examples
from fabric.cli.session import Session, pass_session
from fabric.ids import is_id

if TYPE_CHECKING:
    from fabric.client import Client
    from fabric.client.images import Image
    from fabric.client.transfer import Progress

FORMATS = ("raw", "qcow2", "kernel", "ramdisk")
"""A test keeps them equal to the client's, which would cost a start of gRPC here."""


def view(image: Image) -> dict[str, Value]:
    """Every field, as it is printed."""
    from fabric.client.images import format_name, visibility_name

    return {
        "id": image.id,
        "name": image.name,
        "status": image.state.lower(),
        "disk_format": format_name(image),
        "visibility": visibility_name(image),
        "size": image.size_bytes,
        "virtual_size": image.virtual_size_bytes,
        "sha256": image.sha256,
        "min_disk": image.min_disk_gib,
        "min_ram": image.min_ram_mib,
        "kernel_id": image.kernel_id,
        "ramdisk_id": image.ramdisk_id,
        "properties": dict(sorted(image.properties.items())),
        "owner": image.project_id,
        "created_at": when(image.create_time),
    }


def image_id(client: Client, named: str) -> str:
    """The id of an image given by id or name."""
    return named if not named or is_id(named) else client.images.get(named).id


def progress_of(verb: str) -> Progress | None:
    """Shows percents on a terminal, and is silent elsewhere."""
    if not sys.stderr.isatty():
        return None
    shown = -1

    def show(passed: int, total: int) -> None:
        nonlocal shown
        percent = 100 * passed // max(1, total)
        if percent != shown:
            shown = percent
            click.echo(f"\r{verb} {percent} %", nl=passed >= total, err=True)

    return show


@click.group()
def image() -> None:
    """What servers' disks start as, and kernels and ramdisks to boot them by."""


@image.command(
    epilog=examples(
        "fabric image create --file debian-12.qcow2 --disk-format qcow2 --min-disk 2 debian-12",
        "fabric image create --file vmlinuz --disk-format kernel guest-kernel",
        "fabric image create --file root.raw --disk-format raw --kernel-id guest-kernel --ramdisk-id guest-ramdisk"
        " --public --property os_command_line='console=ttyS0' nebula_standard_os",
    )
)
@click.option(
    "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="The bytes."
)
@click.option(
    "--disk-format", type=click.Choice(FORMATS), required=True, help="What the bytes are; it is checked."
)
@click.option(
    "--public/--private",
    default=False,
    help="For everybody (system administrators), or this project.  [private]",
)
@click.option(
    "--kernel-id",
    default="",
    metavar="IMAGE",
    help="Boot by this kernel image.",
    shell_complete=params.images,
)
@click.option(
    "--ramdisk-id", default="", metavar="IMAGE", help="With this ramdisk image.", shell_complete=params.images
)
@click.option(
    "--min-disk",
    "min_disk_gib",
    type=params.WHOLE,
    default=0,
    metavar="GIB",
    help="The least root disk, in GiB.",
)
@click.option(
    "--min-ram", "min_ram_mib", type=params.WHOLE, default=0, metavar="MIB", help="The least memory, in MiB."
)
@click.option(
    "--sha256", default="", metavar="HEX", help="What the file must have, if that is known from elsewhere."
)
@click.option(
    "--property", "properties", type=PAIR, multiple=True, help="hw_firmware_type=uefi, trait:NAME=required, …"
)
@click.argument("name")
@showing
@pass_session
def create(
    session: Session,
    *,
    file: Path,
    disk_format: str,
    public: bool,
    kernel_id: str,
    ramdisk_id: str,
    min_disk_gib: int,
    min_ram_mib: int,
    sha256: str,
    properties: tuple[tuple[str, str], ...],
    name: str,
    shape: Shape,
) -> None:
    """Upload an image; it is checked, and usable, when the command returns."""
    client = session.client
    made = client.images.create(
        name=name,
        file=file,
        disk_format=disk_format,
        public=public,
        kernel_id=image_id(client, kernel_id),
        ramdisk_id=image_id(client, ramdisk_id),
        min_disk_gib=min_disk_gib,
        min_ram_mib=min_ram_mib,
        properties=dict(properties),
        sha256=sha256,
        progress=progress_of("uploading"),
    )
    print_one(shape, view(made))


@image.command("list", epilog=examples("fabric image list", "fabric image list --sort-column Size"))
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List the project's images, and the public ones."""
    found = session.client.images.list()
    print_list(
        shape,
        ("ID", "Name", "Status", "Disk Format", "Visibility", "Size"),
        (
            (
                fields["id"],
                fields["name"],
                fields["status"],
                fields["disk_format"],
                fields["visibility"],
                fields["size"],
            )
            for fields in map(view, found)
        ),
    )


@image.command(epilog=examples("fabric image show nebula_standard_os"))
@click.argument("image", shell_complete=params.images)
@showing
@pass_session
def show(session: Session, *, image: str, shape: Shape) -> None:
    """Show one, by name or id."""
    print_one(shape, view(session.client.images.get(image)))


@image.command(epilog=examples("fabric image save --file debian-12.qcow2 debian-12"))
@click.option(
    "--file", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where to write it."
)
@click.argument("image", shell_complete=params.images)
@pass_session
def save(session: Session, *, file: Path, image: str) -> None:
    """Download an image; run again after a failure, it goes on where it stopped."""
    session.client.images.save(image, file, progress=progress_of("downloading"))


@image.command(epilog=examples("fabric image delete debian-11 debian-10"))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", shell_complete=params.images)
@pass_session
def delete(session: Session, *, images: tuple[str, ...]) -> None:
    """Delete images; servers made from them keep their disks."""
    each(session, images, session.client.images.delete)
