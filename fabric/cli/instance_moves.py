"""`fabric server shelve`, `resize` and `migrate`: servers that are put away, or go to another host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.exits import Failed
from fabric.cli.instance_views import line, why
from fabric.cli.instances import each_then_wait, many_servers, server
from fabric.cli.params import examples, waiting
from fabric.cli.session import Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from fabric.client.instances import Instance

SHELVED = ("SHELVED_OFFLOADED", "SHELVED")
OFFLOADED = SHELVED[:1]
RESIZED = ("VERIFY_RESIZE",)
AS_BEFORE = ("ACTIVE", "SHUTOFF")


def settled(session: Session, begun: Instance, states: tuple[str, ...], timeout_s: float) -> Instance:
    """Wait with progress on stderr until the server is at rest in one of the states. Raises Failed."""
    found = session.client.instances.wait_for(
        begun, states[0], timeout_s=timeout_s, on_change=lambda seen: session.say(line(seen, begun))
    )
    if found.status.state not in states or found.status.HasField("fault"):
        raise Failed(f"server {found.name} is {found.status.state}, not {' or '.join(states)}: {why(found)}")
    return found


def act(
    session: Session,
    servers: tuple[str, ...],
    begin: Callable[[str], Instance],
    states: tuple[str, ...],
    wait_timeout_s: float | None,
) -> None:
    """Begin with each server, and wait for all of them to come to rest where that is wanted."""
    begun: dict[str, Instance] = {}

    def begin_one(name: str) -> None:
        begun[name] = begin(name)

    def wait_one(name: str) -> None:
        if name in begun and wait_timeout_s is not None:
            settled(session, begun[name], states, wait_timeout_s)

    each_then_wait(session, servers, begin_one, None if wait_timeout_s is None else wait_one)


@server.command(
    epilog=examples(
        "fabric server shelve --wait nebula_lab_01", "fabric server shelve --offload nebula_lab_01"
    )
)
@click.option(
    "--offload", is_flag=True, help="Free the host too, whatever the fabric's offload time is; waits for it."
)
@many_servers
@waiting(3660)
@pass_session
def shelve(
    session: Session, *, offload: bool, servers: tuple[str, ...], wait: bool, wait_timeout_s: float
) -> None:
    """Put servers away: their disks become images, and their hosts are freed. Names, ids and metadata stay."""
    instances = session.client.instances
    if not offload:
        act(
            session,
            servers,
            lambda name: instances.act("shelve", name),
            SHELVED,
            wait_timeout_s if wait else None,
        )
        return

    def free(name: str) -> Instance:
        found = instances.get(name)
        if found.status.state not in SHELVED:
            begun = instances.act("shelve", found.id)
            found = settled(session, begun, SHELVED, wait_timeout_s)
        return found if found.status.state in OFFLOADED else instances.act("shelve-offload", found.id)

    act(session, servers, free, OFFLOADED, wait_timeout_s if wait else None)


class DefaultGroup(click.Group):
    """A group whose first verb may be left out: `resize --flavor F web` is `resize begin --flavor F web`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["begin", *args]
        return super().parse_args(ctx, args)


@server.group(
    cls=DefaultGroup, epilog=examples("fabric server resize --flavor m1.nebula_small nebula_web_01")
)
def resize() -> None:
    """Move servers to another flavor, on another host. Confirm a resize when it is good, revert it when it is not."""


@resize.command(
    "begin",
    epilog=examples(
        "fabric server resize --flavor m1.nebula_small --wait nebula_web_01",
        "fabric server resize begin --flavor m1.nebula_small nebula_web_01",
    ),
)
@click.option("--flavor", required=True, help="The new size, by name or id.", shell_complete=params.flavors)
@many_servers
@waiting(3660)
@pass_session
def resize_begin(
    session: Session, *, flavor: str, servers: tuple[str, ...], wait: bool, wait_timeout_s: float
) -> None:
    """Move servers to another flavor: the word `begin` may be left out. They are off meanwhile, and wait in VERIFY_RESIZE."""
    instances = session.client.instances
    act(
        session,
        servers,
        lambda name: instances.act("resize", name, flavor=flavor),
        RESIZED,
        wait_timeout_s if wait else None,
    )


@resize.command("confirm", epilog=examples("fabric server resize confirm nebula_web_01"))
@many_servers
@pass_session
def resize_confirm(session: Session, *, servers: tuple[str, ...]) -> None:
    """Keep resized or migrated servers as they are now. Their old copies go."""
    instances = session.client.instances
    act(session, servers, lambda name: instances.act("confirm-resize", name), AS_BEFORE, None)


@resize.command(
    "revert",
    epilog=examples(
        "fabric server resize revert nebula_web_01", "fabric server resize revert --wait nebula_web_01"
    ),
)
@many_servers
@waiting(660)
@pass_session
def resize_revert(session: Session, *, servers: tuple[str, ...], wait: bool, wait_timeout_s: float) -> None:
    """Take resized or migrated servers back to where they came from, as they were. What they wrote since is gone."""
    instances = session.client.instances
    act(
        session,
        servers,
        lambda name: instances.act("revert-resize", name),
        AS_BEFORE,
        wait_timeout_s if wait else None,
    )


@server.command(
    epilog=examples(
        "fabric server migrate --wait nebula_web_01", "fabric server migrate --host n2 nebula_web_01"
    )
)
@click.option(
    "--host",
    default="",
    metavar="HOST",
    help="Where to.  [default: any other host]",
    shell_complete=params.hosts,
)
@many_servers
@waiting(3660)
@pass_session
def migrate(
    session: Session, *, host: str, servers: tuple[str, ...], wait: bool, wait_timeout_s: float
) -> None:
    """Move servers to other hosts while they are off (system administrators). Confirm or revert as after a resize."""
    instances = session.client.instances
    act(
        session,
        servers,
        lambda name: instances.act("migrate", name, host=host),
        RESIZED,
        wait_timeout_s if wait else None,
    )
