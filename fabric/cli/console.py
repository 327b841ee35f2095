"""`fabric console log show`: what servers write to their serial console."""

from __future__ import annotations

import sys

import click

from fabric.cli import params
from fabric.cli.output import harmless
from fabric.cli.params import examples
from fabric.cli.session import Session, pass_session


@click.group()
def console() -> None:
    """What servers write to their serial console."""


@console.group()
def log() -> None:
    """What servers have written to their serial console."""


@log.command(
    epilog=examples(
        "fabric console log show nebula_web_01", "fabric console log show --lines 50 nebula_web_01"
    )
)
@click.option(
    "--lines", type=click.IntRange(min=1), metavar="N", help="Only the last lines.  [default: all there is]"
)
@click.argument("server", shell_complete=params.servers)
@pass_session
def show(session: Session, *, lines: int | None, server: str) -> None:
    """Print the end of a server's console log.

    A guest writes there what it likes, control sequences too: a terminal gets them as escapes, a file or a pipe as they are.
    """
    output = session.client.instances.console_log(server, lines=lines or 0)
    if sys.stdout.isatty():
        text = output.decode("utf-8", "replace").replace("\r\n", "\n").replace("\t", "    ")
        click.echo(harmless(text), nl=not text.endswith("\n"))
    else:
        click.echo(output, nl=False)
