"""`fabric keypair`: SSH public keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.many import each
from fabric.cli.openssh import make_key, read_public_key, write_private
from fabric.cli.output import Shape, Value, listing, print_list, print_one, showing, when
from fabric.cli.params import examples
from fabric.cli.session import Session, pass_session
from fabric.errors import FabricError

if TYPE_CHECKING:
    from fabric.client.keypairs import Keypair


def view(keypair: Keypair) -> dict[str, Value]:
    """Every field but the key itself."""
    return {
        "id": keypair.id,
        "name": keypair.name,
        "type": keypair.public_key.partition(" ")[0],
        "fingerprint": keypair.fingerprint,
        "user_id": keypair.user_id,
        "created_at": when(keypair.create_time),
    }


@click.group()
def keypair() -> None:
    """Your SSH public keys, which servers are given at their first boot."""


@keypair.command(
    epilog=examples(
        "fabric keypair create nebula_key > nebula_key.pem",
        "fabric keypair create --private-key nebula_key.pem nebula_key",
        "fabric keypair create --public-key ~/.ssh/id_ed25519.pub laptop",
    )
)
@click.option(
    "--public-key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Register this key, instead of making one.",
)
@click.option(
    "--private-key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the private key to this new file, instead of printing it.",
)
@click.argument("name")
@showing
@pass_session
def create(
    session: Session, *, public_key: Path | None, private_key: Path | None, name: str, shape: Shape
) -> None:
    """Make a key here, register its public half, and print the private one, which is kept nowhere else."""
    if public_key is not None:
        if private_key is not None:
            raise click.UsageError("--private-key is for a key that is made now: leave out --public-key")
        print_one(
            shape, view(session.client.keypairs.create(name=name, public_key=read_public_key(public_key)))
        )
        return
    key = make_key()
    if private_key is None:
        session.client.keypairs.create(name=name, public_key=key.public)
        click.echo(key.private, nl=False)
        session.say("Keep the private key where only you can read it: chmod 600")
        return
    write_private(private_key, key.private)
    try:
        made = session.client.keypairs.create(name=name, public_key=key.public)
    except FabricError:
        private_key.unlink()
        raise
    print_one(shape, view(made))


@keypair.command("list", epilog=examples("fabric keypair list"))
@listing
@pass_session
def list_(session: Session, *, shape: Shape) -> None:
    """List yours."""
    print_list(
        shape,
        ("Name", "Fingerprint", "Type"),
        ((it.name, it.fingerprint, it.public_key.partition(" ")[0]) for it in session.client.keypairs.list()),
    )


@keypair.command(
    epilog=examples("fabric keypair show nebula_key", "fabric keypair show --public-key nebula_key")
)
@click.option("--public-key", "only_key", is_flag=True, help="Print the public key and nothing else.")
@click.argument("keypair", shell_complete=params.keypairs)
@showing
@pass_session
def show(session: Session, *, only_key: bool, keypair: str, shape: Shape) -> None:
    """Show one of yours."""
    found = session.client.keypairs.get(keypair)
    if only_key:
        click.echo(found.public_key)
    else:
        print_one(shape, view(found))


@keypair.command(epilog=examples("fabric keypair delete nebula_key"))
@click.argument("keypairs", nargs=-1, required=True, metavar="KEYPAIR...", shell_complete=params.keypairs)
@pass_session
def delete(session: Session, *, keypairs: tuple[str, ...]) -> None:
    """Remove keys; servers that have them keep them."""
    each(session, keypairs, session.client.keypairs.delete)
