"""`fabric console`: what servers have written to their serial console, being at it, and the way to their screens."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from fabric.cli import params
from fabric.cli.exits import Failed
from fabric.cli.output import Shape, harmless, print_one, showing
from fabric.cli.params import examples
from fabric.cli.session import Session, pass_session
from fabric.model.console import ConsoleEnd, ConsoleKind

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDS: Mapping[ConsoleEnd, str] = {
    ConsoleEnd.UNSPECIFIED: "the console has ended",
    ConsoleEnd.GUEST_OFF: "the server is off",
    ConsoleEnd.TAKEN_OVER: "somebody else has taken the console over",
    ConsoleEnd.HOST_LOST: "the server's host cannot be reached any more",
    ConsoleEnd.IDLE: "nothing was typed or shown for too long",
    ConsoleEnd.TOO_LONG: "no console lasts longer; attach again",
    ConsoleEnd.REVOKED: "your token has expired, or was revoked",
    ConsoleEnd.MOVED: "the server is not where it was any more",
}
"""What the end of a console means, for people."""


@click.group()
def console() -> None:
    """Servers' consoles: what they have written, and being there."""


@console.group()
def log() -> None:
    """What servers have written to their serial console."""


@log.command(
    epilog=examples(
        "fabric console log show nebula_web_01", "fabric console log show --lines 50 nebula_web_01"
    )
)
@click.option(
    "--lines", type=params.WholeIn(min=1), metavar="N", help="Only the last lines.  [default: all there is]"
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


class Escape(click.ParamType[bytes]):
    """`^]`, or `none`."""

    name = "^CHAR"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        from fabric.cli.terminal import escape_from

        if isinstance(value, bytes):
            return value
        try:
            return escape_from(str(value))
        except ValueError as wrong:
            self.fail(str(wrong), param, ctx)


@console.command(
    epilog=examples(
        "fabric console attach nebula_web_01",
        "fabric console attach --force --escape ^A nebula_web_01",
        "echo uptime | fabric console attach --linger 5 nebula_web_01",
    )
)
@click.option("--force", is_flag=True, help="Take the console over from whoever has it.")
@click.option(
    "--escape",
    type=Escape(),
    default="^]",
    show_default=True,
    metavar="^CHAR",
    help="The key that leaves, of a terminal; `none` for none.",
)
@click.option(
    "--linger",
    "linger_s",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the server may be silent before this ends, where what is typed comes from a pipe and has ended.",
)
@click.argument("server", shell_complete=params.servers)
@pass_session
def attach(session: Session, *, force: bool, escape: bytes, linger_s: float, server: str) -> None:
    """Be at a server's serial console, until you type the escape character (Ctrl-]) or it ends.

    One person is at it at a time. Everything else you type goes to the server, Ctrl-C too; what it says comes to your terminal as it is.
    """
    from fabric.cli.terminal import converse

    if sys.stdin is None or sys.stdout is None:
        raise click.UsageError("standard input and output are closed: there is no console without them")
    consoles = session.client.consoles
    ticket = consoles.ticket(server, ConsoleKind.SERIAL)
    with consoles.attach(ticket.ticket, take_over=force) as attached:
        source, target = sys.stdin.fileno(), sys.stdout.fileno()
        if sys.stdin.isatty():
            leave = f"; the escape character is ^{chr(escape[0] ^ 0x40)}" if escape else ""
            session.say(f"connected to {attached.name}{leave}")
        has_left = converse(attached, source=source, target=target, escape=escape, linger_s=linger_s)
        if has_left:
            return
        why = ENDS[attached.why]
        if attached.why is not ConsoleEnd.GUEST_OFF:
            raise Failed(why)
        session.say(why)


@console.group()
def url() -> None:
    """Where a browser shows servers' screens."""


@url.command(
    "show",
    epilog=examples("fabric console url show nebula_web_01", "fabric console url show -f json nebula_web_01"),
)
@click.option(
    "--novnc",
    is_flag=True,
    expose_value=False,
    help="For noVNC; there is no other kind, so it may be left out.",
)
@click.argument("server", shell_complete=params.servers)
@showing
@pass_session
def show_url(session: Session, *, server: str, shape: Shape) -> None:
    """Print an address for a browser that shows a server's screen. It is a secret, good once, for a minute."""
    ticket = session.client.consoles.ticket(server, ConsoleKind.VNC)
    if not ticket.url:
        raise Failed("this fabric serves no browsers: its operator has set no console.listen")
    print_one(shape, {"protocol": "vnc", "type": "novnc", "url": ticket.url})
