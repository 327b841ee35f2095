"""The command line as a test runs it: a real tree and a real client, with the API in memory and nothing else around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click
from click.testing import CliRunner, Result

from fabric.cli.main import cli
from fabric.cli.profiles import Login
from fabric.cli.session import Session, World
from fabric.client import Client
from tests.unit.client.fake_api import NOW_S, TOKEN, FakeApi
from tests.unit.client.worlds import CountedIds, VirtualTime, client_of

ENDPOINT = "api.test:7443"


class Shell:
    """Runs commands. `HOME` is a folder of the test's."""

    def __init__(self, home: Path, *, environ: dict[str, str] | None = None) -> None:
        self.api = FakeApi()
        self.time = VirtualTime()
        self.ids = CountedIds()
        self.environ = (
            {"HOME": str(home), "FABRIC_ENDPOINT": ENDPOINT, "FABRIC_TOKEN": TOKEN}
            if environ is None
            else environ
        )
        self.environ.setdefault("HOME", str(home))
        self.logins: list[tuple[Login, str]] = []
        self.became: list[str] = []
        self.can_ask = False

    def world(self) -> World:
        """What is around a command."""

        def connect(login: Login, token: str, *, renew: Callable[[], str] | None, timeout_s: float) -> Client:
            self.logins.append((login, token))
            return client_of(self.api, self.time, token=token, renew=renew, timeout_s=timeout_s, ids=self.ids)

        return World(
            connect=connect,
            now_s=lambda: float(NOW_S),
            environ=self.environ,
            run_instead=self.became.extend,
            can_ask=lambda: self.can_ask,
        )

    def run(self, *argv: str, text: str = "") -> Result:
        """Run `fabric ARGV`."""
        return CliRunner().invoke(
            cli, list(argv), obj=Session(self.world()), env=self.environ, input=text, prog_name="fabric"
        )

    def ok(self, *argv: str, text: str = "") -> str:
        """Run, and expect success; what was printed on stdout."""
        result = self.run(*argv, text=text)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def json(self, *argv: str) -> Any:
        """Run with `-f json`."""
        return json.loads(self.ok(*argv, "-f", "json"))


def verbs(
    group: click.Group | None = None, before: tuple[str, ...] = ()
) -> dict[tuple[str, ...], click.Command]:
    """Every command that is not a group, by its words."""
    group = cli if group is None else group
    found: dict[tuple[str, ...], click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = cast("click.Command", group.get_command(context, name))
        words = (*before, name)
        if isinstance(command, click.Group):
            found |= verbs(command, words)
        else:
            found[words] = command
    return found
