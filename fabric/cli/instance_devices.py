"""`fabric server add` and `remove`, and the volumes that are plugged into servers, running or not, and out of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.exits import Failed
from fabric.cli.instance_views import line
from fabric.cli.instances import server
from fabric.cli.output import Shape, listing, print_list
from fabric.cli.params import examples, waiting
from fabric.cli.session import Session, pass_session
from fabric.cli.volumes import COLUMNS, row

if TYPE_CHECKING:
    from fabric.client.instances import Instance

PLUG_WAIT_S = 60
"""A guest has 30 s to let go of a device."""


def plug(session: Session, begun: Instance, wait_timeout_s: float | None) -> None:
    """Wait until the server's host has done it, where that is asked for. Raises Failed."""
    if wait_timeout_s is None:
        return
    found = session.client.instances.wait_until_told(
        begun, timeout_s=wait_timeout_s, on_change=lambda seen: session.say(line(seen, begun))
    )
    if found.status.HasField("fault") and found.status.fault != begun.status.fault:
        raise Failed(f"server {found.name}: {found.status.fault.code}: {found.status.fault.message}")


server_argument = click.argument("server", shell_complete=params.servers)


@server.group(epilog=examples("fabric server add volume --wait nebula_web_01 nebula_data"))
def add() -> None:
    """Plug volumes and interfaces into servers, and give them addresses and groups."""


@server.group(epilog=examples("fabric server remove volume --wait nebula_web_01 nebula_data"))
def remove() -> None:
    """Pull volumes and interfaces out of servers, and take addresses and groups from them."""


@add.command(
    "volume",
    epilog=examples(
        "fabric server add volume --wait nebula_web_01 nebula_data",
        "fabric server add volume --delete-on-termination nebula_web_01 nebula_scratch",
    ),
)
@click.option("--delete-on-termination", is_flag=True, help="Delete the volume with the server.")
@server_argument
@click.argument("volume", shell_complete=params.volumes)
@waiting(PLUG_WAIT_S)
@pass_session
def add_volume(
    session: Session,
    *,
    delete_on_termination: bool,
    server: str,
    volume: str,
    wait: bool,
    wait_timeout_s: float,
) -> None:
    """Plug a volume into a server. The guest finds it under the name that `fabric volume show` tells."""
    begun = session.client.instances.act(
        "attach-volume", server, volume=volume, delete_on_termination=delete_on_termination
    )
    plug(session, begun, wait_timeout_s if wait else None)


@remove.command("volume", epilog=examples("fabric server remove volume --wait nebula_web_01 nebula_data"))
@server_argument
@click.argument("volume", shell_complete=params.volumes)
@waiting(PLUG_WAIT_S)
@pass_session
def remove_volume(session: Session, *, server: str, volume: str, wait: bool, wait_timeout_s: float) -> None:
    """Pull a volume out of a server. Unmount it in the guest first; asked again where the guest did not let go of it."""
    begun = session.client.instances.act("detach-volume", server, volume=volume)
    plug(session, begun, wait_timeout_s if wait else None)


@server.group(epilog=examples("fabric server volume list nebula_web_01"))
def volume() -> None:
    """The volumes of servers."""


@volume.command("list", epilog=examples("fabric server volume list nebula_web_01"))
@server_argument
@listing
@pass_session
def volume_list(session: Session, *, server: str, shape: Shape) -> None:
    """List the volumes that a server has."""
    found = session.client.instances.get(server)
    print_list(shape, COLUMNS, map(row, session.client.volumes.list(instance_id=found.id)))
