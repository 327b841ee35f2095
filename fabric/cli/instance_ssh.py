"""`fabric server ssh`: into a guest, with the keys that it showed on its console."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabric.cli.instances import one_server, server
from fabric.cli.params import examples
from fabric.cli.session import APP, Session, pass_session
from fabric.errors import FabricError, InvalidRequest, WrongState

if TYPE_CHECKING:
    from fabric.client.instances import Instance

LETS_IN = frozenset({"ACTIVE", "RESCUE", "VERIFY_RESIZE"})
"""States of servers that run."""

_BLOCK = re.compile(rb"-----BEGIN SSH HOST KEY KEYS-----\s(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
_KEY = re.compile(r"(?:ssh|ecdsa-sha2)-[a-z0-9-]{1,32} [A-Za-z0-9+/]{16,4096}={0,2}")


@server.command(
    epilog=examples(
        "fabric server ssh --login root -i nebula_key.pem nebula_web_01",
        "fabric server ssh -i nebula_key.pem nebula_web_01 -- uptime",
    )
)
@click.option(
    "--login", "user", metavar="USER", help="Log in as.  [default: the image's os_admin_user, or root]"
)
@click.option(
    "-i",
    "--identity",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The private key.",
)
@one_server
@click.argument("ssh_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@pass_session
def ssh(
    session: Session, *, user: str | None, identity: Path | None, server: str, ssh_arguments: tuple[str, ...]
) -> None:
    """Log in to a server by ssh, or run a command on it.

    The host keys that the guest has shown on its console are the ones that are believed. Where it has shown none, what it comes with first
    is remembered, by the server's id and not by its address, which another server will have one day.
    """
    found = session.client.instances.get(server)
    session.world.run_instead(
        ssh_command(
            session,
            found,
            user=user or admin_user(session, found),
            identity=identity,
            host_keys=shown_keys(session, found),
        )
        + list(ssh_arguments)
    )


def admin_user(session: Session, instance: Instance) -> str:
    """Whom the image lets in: its property os_admin_user, which Glance's images have too."""
    try:
        return session.client.images.get(instance.spec.image_id).properties.get("os_admin_user", "root")
    except FabricError:  # the image may be deleted, the server keeps its disk
        return "root"


def shown_keys(session: Session, instance: Instance) -> tuple[str, ...]:
    """The host keys that the guest showed on its console when it last booted, as cloud-init and its kin do; none where it has not."""
    try:
        return host_keys(session.client.instances.console_log(instance.id))
    except FabricError:  # a host that is away; what was remembered before still counts
        return ()


def host_keys(console: bytes) -> tuple[str, ...]:
    """The keys in the last block of them, without their comments. A guest writes what it likes: what is no key is left out."""
    blocks = _BLOCK.findall(console)
    if not blocks:
        return ()
    lines = blocks[-1].decode("ascii", "replace").splitlines()
    return tuple(match[0] for line in lines if (match := _KEY.match(line.strip())))


def ssh_command(
    session: Session, instance: Instance, *, user: str, identity: Path | None, host_keys: Sequence[str] = ()
) -> list[str]:
    """The command that logs in. Raises WrongState where there is nothing to log in to."""
    status = instance.status
    if status.state not in LETS_IN:
        may = " or ".join(sorted(LETS_IN))
        raise WrongState(f"server {instance.name} is {status.state}: only one that is {may} lets anybody in")
    if not status.addresses:
        raise WrongState(f"server {instance.name} has no address")
    if user.startswith("-") or "@" in user:
        raise InvalidRequest(f"{user!r} is no user's name", field="login")
    alias = f"{APP}-{instance.id}"
    known = session.world.folder("XDG_CACHE_HOME", ".cache") / "known_hosts.d" / instance.id
    known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if host_keys:
        known.write_text("".join(f"{alias} {key}\n" for key in host_keys), encoding="ascii")
    command = ["ssh"]
    for option in (
        f"HostKeyAlias={alias}",
        f"UserKnownHostsFile={known}",
        f"StrictHostKeyChecking={'yes' if host_keys else 'accept-new'}",
        "CheckHostIP=no",
    ):
        command += ["-o", option]
    if identity is not None:
        command += ["-i", str(identity), "-o", "IdentitiesOnly=yes"]
    # A floating IP leads there from outside; others may be good on their own networks alone.
    floating = (each.address for each in status.addresses if each.kind == "FLOATING")
    return [*command, "-l", user, next(floating, status.addresses[0].address)]
