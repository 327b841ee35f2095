"""What commands take: pairs, names that the shell can complete, the switches of waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from fabric.errors import FabricError

if TYPE_CHECKING:
    from fabric.client import Client

F = TypeVar("F", bound=Callable[..., Any])

COMPLETION_TIMEOUT_S = 2.0
"""Whoever presses TAB does not wait for longer."""


def examples(*lines: str) -> str:
    """The end of a verb's help. Tests run these lines through the parser, so they stay right."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class Pair(click.ParamType[tuple[str, str]]):
    """KEY=VALUE."""

    name = "KEY=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, rest = str(value).partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, rest


PAIR = Pair()

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names_of(read: Callable[[Client], Iterable[str]]) -> Completer:
    """A completer that asks the API. It never asks for a password, and what goes wrong completes nothing."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from fabric.cli.main import prepare
        from fabric.cli.session import Session

        root = ctx.find_root()
        # No command is run while completing, so nobody has given the session the root's options yet.
        session = prepare(root.obj or Session(), {**root.params, "timeout": COMPLETION_TIMEOUT_S})
        session.world.can_ask = lambda: False
        try:
            found = sorted(set(read(session.client)))
        except (FabricError, OSError):
            return []
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]

    return complete


flavors = names_of(lambda client: (it.name for it in client.flavors.list()))
hosts = names_of(lambda client: (it.name for it in client.hosts.list().hosts))
images = names_of(lambda client: (it.name for it in client.images.list()))
keypairs = names_of(lambda client: (it.name for it in client.keypairs.list()))
networks = names_of(lambda client: (it.name for it in client.networks.list()))
projects = names_of(lambda client: (it.name for it in client.projects.list()))
servers = names_of(lambda client: (it.name for it in client.instances.list().instances))
users = names_of(lambda client: (it.name for it in client.users.list()))


def waiting(default_s: int) -> Callable[[F], F]:
    """Give a command --wait and --wait-timeout; it gets `wait` and `wait_timeout_s`."""

    def decorate(function: F) -> F:
        function = click.option(
            "--wait-timeout",
            "wait_timeout_s",
            type=click.FloatRange(min=1),
            default=default_s,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait at most.",
        )(function)
        return click.option("--wait", is_flag=True, help="Return when it is done, and fail if it fails.")(
            function
        )

    return decorate
