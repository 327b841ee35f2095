"""The root of the command line: its nouns, its options, and how errors end it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from fabric.cli.exits import FAILED, USAGE, exit_code, explain
from fabric.cli.lazy import Entry, LazyGroup
from fabric.cli.output import harmless
from fabric.cli.profiles import Login
from fabric.cli.session import Session
from fabric.errors import FabricError

NOUNS = MappingProxyType(
    {
        "completion": Entry("fabric.cli.completion:completion", "Print the completion script of a shell."),
        "console": Entry(
            "fabric.cli.console:console", "Servers' consoles: what they have written, and being there."
        ),
        "dev": Entry("fabric.cli.dev:dev", "A whole fabric on this machine."),
        "flavor": Entry("fabric.cli.flavors:flavor", "The menu of sizes."),
        "floating": Entry(
            "fabric.cli.routers:floating", "Floating IPs: external addresses that lead to ports."
        ),
        "host": Entry("fabric.cli.hosts:host", "The machines below, for administrators."),
        "image": Entry("fabric.cli.images:image", "What servers' disks start as."),
        "keypair": Entry("fabric.cli.keypairs:keypair", "Your SSH public keys."),
        "login": Entry("fabric.cli.tokens:login", "Log in, for the commands to come."),
        "network": Entry("fabric.cli.networks:network", "What servers can be attached to."),
        "port": Entry("fabric.cli.ports:port", "Places on networks, and what may pass there."),
        "project": Entry("fabric.cli.projects:project", "What owns servers and quota, for administrators."),
        "role": Entry("fabric.cli.users:role", "What users may do in projects, for administrators."),
        "router": Entry("fabric.cli.routers:router", "What joins subnets, and leads out of them."),
        "security": Entry("fabric.cli.security_groups:security", "Security groups: what may pass at ports."),
        "server": Entry("fabric.cli.servers:server", "Servers: make them, look after them, end them."),
        "subnet": Entry("fabric.cli.subnets:subnet", "The ranges of networks' addresses."),
        "token": Entry("fabric.cli.tokens:token", "Tokens, which prove who is asking."),
        "user": Entry("fabric.cli.users:user", "People, for administrators."),
        "volume": Entry("fabric.cli.volumes:volume", "Disks that outlive servers."),
    }
)
"""Every noun, and where it is."""


class Root(LazyGroup):
    """Turns errors into one line and an exit code."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _told(is_debugged="--debug" in args):  # the root's own help and version are written here
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _told(is_debugged=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


@contextmanager
def _told(*, is_debugged: bool) -> Iterator[None]:
    """Whatever goes wrong here as one line, and click's way to end with its exit code. Unchanged for whoever looks for its cause."""
    try:
        yield
    except FabricError as error:
        if is_debugged:
            raise
        click.echo(f"fabric: {harmless(explain(error))}", err=True)
        raise click.exceptions.Exit(exit_code(error)) from error
    except UnicodeEncodeError as error:
        # Arguments are bytes to the kernel. What is not UTF-8 among them comes as lone surrogates, which no request can hold.
        if is_debugged or error.encoding != "utf-8":
            raise
        click.echo(f"fabric: {error.object!r} is not UTF-8", err=True)
        raise click.exceptions.Exit(USAGE) from error
    except BrokenPipeError:
        raise  # click ends quietly when whoever reads the output has had enough
    except OSError as error:
        if is_debugged:
            raise
        click.echo(f"fabric: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        raise click.exceptions.Exit(FAILED) from error


def options_of(params: dict[str, Any], password: str) -> Login:
    """The login that the root's options describe. A password is no option: everybody on a machine can read its command lines."""
    return Login(
        endpoint=params.get("endpoint") or "",
        ca_file=params.get("ca_file"),
        token=params.get("token") or "",
        username=params.get("username") or "",
        password=password,
        project=params.get("project") or "",
    )


def prepare(session: Session, params: dict[str, Any]) -> Session:
    """The session with what the root's options say."""
    session.set(
        options_of(params, session.world.environ.get("FABRIC_PASSWORD", "")),
        cloud=params.get("cloud") or "",
        clouds_file=params.get("clouds_file"),
        timeout_s=params.get("timeout") or 30.0,
    )
    return session


@click.group(
    cls=Root,
    entries=NOUNS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Every option above can also be set in the environment, as FABRIC_ENDPOINT, FABRIC_PROJECT and so on;"
    " the password only there, in a profile, or when asked for. `fabric NOUN VERB --help` shows an example of each verb.",
)
@click.version_option(package_name="cellfabric", prog_name="fabric", message="%(prog)s %(version)s")
@click.option("--cloud", envvar="FABRIC_CLOUD", metavar="NAME", help="A profile of the clouds file.")
@click.option(
    "--clouds-file",
    envvar="FABRIC_CLOUDS_FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where profiles are.  [default: ~/.config/cellfabric/clouds.toml]",
)
@click.option("--endpoint", envvar="FABRIC_ENDPOINT", metavar="HOST:PORT", help="The API to talk to.")
@click.option(
    "--ca-file",
    envvar="FABRIC_CA_FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PEM certificates that the API's must be signed by.  [default: the system's]",
)
@click.option("--username", envvar="FABRIC_USERNAME", metavar="USER", help="Who you are.")
@click.option(
    "--project", envvar="FABRIC_PROJECT", metavar="PROJECT", help="The project to work in, by name or id."
)
@click.option(
    "--token", envvar="FABRIC_TOKEN", metavar="TOKEN", help="A token, instead of user and password."
)
@click.option(
    "--timeout",
    envvar="FABRIC_TIMEOUT",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For each call, with its retries.",
)
@click.option("--debug", envvar="FABRIC_DEBUG", is_flag=True, help="Show where errors come from.")
@click.pass_context
def cli(ctx: click.Context, /, **params: Any) -> None:
    """Cellfabric's command line. Nouns and verbs are those of `openstack`."""
    ctx.obj = prepare(ctx.obj or Session(), params)


def main() -> None:
    """The installed command."""
    cli(prog_name="fabric")
