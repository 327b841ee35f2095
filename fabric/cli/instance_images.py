"""Images of servers' disks, and disks of images: `fabric server image create`, `backup create` and `rebuild`."""

from __future__ import annotations

from pathlib import Path

import click

from fabric.cli import params
from fabric.cli.images import view
from fabric.cli.instances import one_server, server, wait_for
from fabric.cli.output import Shape, print_one, showing
from fabric.cli.params import PAIR, examples, waiting
from fabric.cli.session import Session, pass_session

IMAGE_WAIT_S = 3700
"""A little more than the action's own deadline."""


@server.group()
def image() -> None:
    """Images of servers' disks."""


@server.group()
def backup() -> None:
    """Images of servers' disks that replace one another."""


@image.command(
    "create",
    epilog=examples(
        "fabric server image create --name nebula_web_golden --wait nebula_web_01",
        "fabric server image create --name before-upgrade --property note='Debian 12' db",
    ),
)
@click.option("--name", required=True, metavar="NAME", help="The image's name.")
@click.option(
    "--property",
    "properties",
    type=PAIR,
    multiple=True,
    help="Beside what its image says; may be given several times.",
)
@one_server
@waiting(IMAGE_WAIT_S)
@showing
@pass_session
def create_image(
    session: Session,
    *,
    name: str,
    properties: tuple[tuple[str, str], ...],
    server: str,
    wait: bool,
    wait_timeout_s: float,
    shape: Shape,
) -> None:
    """Make an image of a server's disk, as it is at one instant. The server goes on meanwhile."""
    begun, image_id = session.client.instances.create_image(server, name=name, properties=dict(properties))
    if wait:
        wait_for(session, begun, None, wait_timeout_s)
    print_one(shape, view(session.client.images.get(image_id)))


@backup.command(
    "create",
    epilog=examples("fabric server backup create --name db-monday --type daily --rotate 7 --wait db"),
)
@click.option(
    "--name", required=True, metavar="NAME", help="The image's name; with a suffix where it is taken."
)
@click.option(
    "--type",
    "backup_type",
    required=True,
    metavar="TYPE",
    help="The kind of backup; each is rotated by itself.",
)
@click.option(
    "--rotate",
    "rotation",
    type=click.IntRange(1, 1000),
    required=True,
    metavar="N",
    help="How many of this kind are kept, this one among them.",
)
@one_server
@waiting(IMAGE_WAIT_S)
@showing
@pass_session
def create_backup(
    session: Session,
    *,
    name: str,
    backup_type: str,
    rotation: int,
    server: str,
    wait: bool,
    wait_timeout_s: float,
    shape: Shape,
) -> None:
    """Make an image of a server's disk; once it is there, the oldest of its kind beyond N are deleted."""
    begun, image_id = session.client.instances.create_backup(
        server, name=name, backup_type=backup_type, rotation=rotation
    )
    if wait:
        wait_for(session, begun, None, wait_timeout_s)
    print_one(shape, view(session.client.images.get(image_id)))


@server.command(
    epilog=examples(
        "fabric server rebuild --image nebula_standard_os --wait nebula_web_01",
        "fabric server rebuild --image debian-12 --key-name other --user-data setup.sh web",
    )
)
@click.option(
    "--image",
    required=True,
    metavar="IMAGE",
    shell_complete=params.images,
    help="What its disk is made from.",
)
@click.option(
    "--key-name",
    default="",
    metavar="KEYPAIR",
    shell_complete=params.keypairs,
    help="Let in this keypair instead.",
)
@click.option(
    "--user-data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the first-boot agent is given instead.",
)
@click.option(
    "--property",
    "properties",
    type=PAIR,
    multiple=True,
    help="The metadata it is to have instead; may be given several times.",
)
@click.option("--name", default="", metavar="NAME", help="Another name.")
@one_server
@waiting(900)
@pass_session
def rebuild(
    session: Session,
    *,
    image: str,
    key_name: str,
    user_data: Path | None,
    properties: tuple[tuple[str, str], ...],
    name: str,
    server: str,
    wait: bool,
    wait_timeout_s: float,
) -> None:
    """Make a server's disk anew from an image. Its addresses stay; what was on the disk is lost."""
    fields: dict[str, object] = {
        "image": image,
        "key_name": key_name,
        "metadata": dict(properties),
        "name": name,
    }
    if user_data is not None:
        fields["user_data"] = user_data.read_bytes()
    before = session.client.instances.get(server).status.state
    begun = session.client.instances.act("rebuild", server, **fields)
    if wait:
        # What was off stays off; what had failed is to run again.
        wait_for(session, begun, before if before == "SHUTOFF" else "ACTIVE", wait_timeout_s)
