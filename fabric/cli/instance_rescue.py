"""`fabric server rescue`: a way into a server that does not boot any more. Its opposite needs nothing, and comes from the table."""

from __future__ import annotations

import secrets

import click

from fabric.cli import params
from fabric.cli.instances import one_server, server, wait_for
from fabric.cli.params import examples, waiting
from fabric.cli.session import Session, pass_session

PASSWORD_BYTES = 12
"""96 bits, in 16 letters: nobody guesses it in the hours that a rescue takes."""


@server.command(
    epilog=examples(
        "fabric server rescue --wait nebula_web_01",
        "fabric server rescue --image nebula_rescue_os --no-password nebula_web_01",
    )
)
@click.option(
    "--image",
    default="",
    metavar="IMAGE",
    shell_complete=params.images,
    help="What it boots from meanwhile.  [default: what it was made from]",
)
@click.option(
    "--password/--no-password",
    "sets_password",
    default=True,
    help="Whether root gets a password for this once, which is printed.  [yes]",
)
@one_server
@waiting(660)
@pass_session
def rescue(
    session: Session, *, image: str, sets_password: bool, server: str, wait: bool, wait_timeout_s: float
) -> None:
    """Boot a server from a rescue image. Its own disk is the second; the server's keypair lets you in, too."""
    password = secrets.token_urlsafe(PASSWORD_BYTES) if sets_password else ""
    begun = session.client.instances.act("rescue", server, image=image, password=password)
    if password:
        click.echo(password)
        session.say("root's password while it is rescued; it is kept nowhere")
    if wait:
        wait_for(session, begun, "RESCUE", wait_timeout_s)
