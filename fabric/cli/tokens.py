"""`fabric login` and `fabric token`: proof of who is asking."""

from __future__ import annotations

import click

from fabric.cli import params
from fabric.cli.output import Shape, print_one, showing, when
from fabric.cli.params import examples
from fabric.cli.session import Session, pass_session
from fabric.errors import Reason, Unauthenticated


@click.command(epilog=examples("fabric login", "fabric --cloud lab --username nebula_admin login"))
@pass_session
def login(session: Session) -> None:
    """Log in: later commands as the same user need no password until the token expires."""
    if session.options.token:
        raise click.UsageError("a token was given: leave out --token and FABRIC_TOKEN")
    session.log_in()
    session.say(f"{session.login.username} is logged in to {session.login.endpoint}")


@click.group()
def token() -> None:
    """Tokens, which prove who is asking."""


@token.command(epilog=examples("fabric token issue", "fabric token issue -f value -c id"))
@click.option(
    "--lifetime",
    "lifetime_s",
    type=params.WHOLE,
    default=0,
    metavar="SECONDS",
    help="At most one hour, the default.",
)
@showing
@pass_session
def issue(session: Session, *, lifetime_s: int, shape: Shape) -> None:
    """Log in and print the token, for programs that are given FABRIC_TOKEN."""
    login = session.login
    client = session.connect("")
    issued = client.tokens.issue(
        user=login.username, password=session.password(), project=login.project, lifetime_s=lifetime_s
    )
    print_one(
        shape,
        {
            "expires": when(issued.expire_time),
            "id": issued.token,
            "project_id": issued.project_id,
            "project_name": issued.project_name,
            "role": issued.role,
            "user_id": issued.user_id,
        },
    )


@token.command(epilog=examples("fabric token show"))
@showing
@pass_session
def show(session: Session, *, shape: Shape) -> None:
    """Show who you are, as the token in use says."""
    found = session.client.tokens.who_am_i()
    print_one(
        shape,
        {
            "user_id": found.user_id,
            "user_name": found.user_name,
            "project_id": found.project_id,
            "project_name": found.project_name,
            "role": found.role,
            "system_admin": found.system_admin,
            "expires": when(found.expire_time),
        },
    )


@token.command(epilog=examples("fabric token revoke"))
@pass_session
def revoke(session: Session) -> None:
    """End the token in use, now: the one given, or the one that `fabric login` keeps."""
    login = session.login
    in_use = login.token or session.cache.get(login, now_s=session.world.now_s())
    if not in_use:
        raise Unauthenticated(f"there is no token for {login.endpoint}", reason=Reason.CREDENTIALS_MISSING)
    session.connect(in_use).tokens.revoke()
    session.cache.drop(login)
