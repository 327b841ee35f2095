"""`fabric server set|unset|lock`: what people change of a server's record alone."""

from __future__ import annotations

import sys

import click

from fabric.cli.instances import act, many_servers, one_server, server
from fabric.cli.params import PAIR, examples
from fabric.cli.session import Session, pass_session


@server.command(
    "set",
    epilog=examples(
        "fabric server set --name nebula_web_02 nebula_web_01",
        "fabric server set --property role=web --tag production nebula_web_01",
        "fabric server set --state error nebula_web_01",
        "fabric server set --password nebula_web_01",
    ),
)
@click.option("--name", default="", help="Its name from now on. The host name inside it stays.")
@click.option("--property", "properties", type=PAIR, multiple=True, help="Metadata; may be given again.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag; may be given again.")
@click.option(
    "--state",
    type=click.Choice(["active", "error"]),
    help="Say that it is so, and that nothing is in flight (system administrators). Active is then also what is wanted of its host.",
)
@click.option(
    "--password",
    is_flag=True,
    help="Set a password inside it, through its guest agent. You are asked for it.",
)
@click.option("--password-user", default="root", metavar="USER", show_default=True, help="Whose password.")
@one_server
@pass_session
def set_(
    session: Session,
    *,
    name: str,
    properties: tuple[tuple[str, str], ...],
    tags: tuple[str, ...],
    state: str | None,
    password: bool,
    password_user: str,
    server: str,
) -> None:
    """Change a server's name, metadata, tags or state, or a password inside it. What is not named stays."""
    if not (name or properties or tags or state or password):
        raise click.UsageError("nothing to set: give --name, --property, --tag, --state or --password")
    secret = asked_for(session, password_user) if password else ""
    instances = session.client.instances
    # By id from here on: its name may be one of the things that change.
    instance_id = instances.get(server).id
    if state is not None:
        instances.reset_state(instance_id, state)
    if properties or tags:
        instances.act("set-metadata", instance_id, set=dict(properties), add_tags=tags)
    if secret:
        instances.change_password(instance_id, secret, user=password_user)
    if name:
        instances.act("rename", instance_id, name=name)


def asked_for(session: Session, user: str) -> str:
    """A new password: asked for twice at a terminal, read as one line from anything else. Never an option, which everybody could see.

    Raises UsageError where there is none: a script is not to take what was not done for done.
    """
    if not session.world.can_ask():
        line = sys.stdin.readline().rstrip("\r\n") if sys.stdin is not None else ""
        if not line:
            raise click.UsageError(f"no new password of {user}: nothing came from standard input")
        return line
    secret: str = click.prompt(f"New password of {user}", hide_input=True, confirmation_prompt=True, err=True)
    return secret


@server.command(
    epilog=examples(
        "fabric server unset --property role nebula_web_01",
        "fabric server unset --tag production nebula_web_01",
    )
)
@click.option("--property", "properties", multiple=True, metavar="KEY", help="Metadata; may be given again.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag; may be given again.")
@one_server
@pass_session
def unset(session: Session, *, properties: tuple[str, ...], tags: tuple[str, ...], server: str) -> None:
    """Take metadata and tags off a server. What is not there is fine."""
    if not (properties or tags):
        raise click.UsageError("nothing to unset: give --property or --tag")
    session.client.instances.act("set-metadata", server, unset=properties, remove_tags=tags)


@server.command(
    epilog=examples(
        "fabric server lock nebula_web_01", 'fabric server lock --reason "billing closes at noon" db-1 db-2'
    )
)
@click.option("--reason", default="", metavar="TEXT", help="Why; whoever is refused reads it.")
@many_servers
@pass_session
def lock(session: Session, *, reason: str, servers: tuple[str, ...]) -> None:
    """Refuse every change of servers by those who are not administrators. An administrator's lock only an administrator undoes."""
    instances = session.client.instances
    act(session, servers, lambda name: instances.act("lock", name, reason=reason), None, None)
