"""What commands take: pairs, names that the shell can complete, the switches of waiting."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from fabric.cli.exits import Failed
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


class Keys(click.ParamType[dict[str, str]]):
    """KEY=VALUE,KEY=VALUE with keys that are known: all of the first, and any of the optional ones, but one at least."""

    def __init__(self, *needed: str, optional: tuple[str, ...] = ()) -> None:
        self.needed = needed
        self.keys = (*needed, *optional)
        self.name = ",".join(f"{key}={key.upper()}" for key in self.keys)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self.name  # keys are as they are typed, and not in capitals as other types' names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        found: dict[str, str] = {}
        for part in str(value).split(","):
            key, equals, rest = part.partition("=")
            if not equals or not rest or key not in self.keys or key in found:
                self.fail(f"{value!r} is not {self.name}", param, ctx)
            found[key] = rest
        for key in self.needed:
            if key not in found:
                self.fail(f"{value!r} does not say {key}", param, ctx)
        return found


INT32_MAX: Final = 2**31 - 1
"""The most that the API's whole numbers can be (proto3's int32); what is sensible, each field's rules say."""


def _held(
    number: int, kind: click.ParamType[int], param: click.Parameter | None, ctx: click.Context | None
) -> int:
    if abs(number) > INT32_MAX:
        kind.fail(f"{number} is more than the API can be told: {INT32_MAX} is the most", param, ctx)
    return number


class Whole(click.types.IntParamType):
    """A whole number that a request can hold."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return _held(super().convert(value, param, ctx), self, param, ctx)


class WholeIn(click.IntRange):
    """A whole number that a request can hold, between these."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return _held(super().convert(value, param, ctx), self, param, ctx)


WHOLE = Whole()


class PortRange(click.ParamType[tuple[int, int]]):
    """A port, or FIRST:LAST."""

    name = "PORT[:PORT]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        first, colon, last = str(value).partition(":")
        ports = (first, last) if colon else (first, first)
        if not all(it.isdecimal() and len(it) <= len("65535") for it in ports):
            self.fail(f"{value!r} is no port and not FIRST:LAST", param, ctx)
        return int(ports[0]), int(ports[1])


PORT_RANGE = PortRange()


class NotEmpty(click.types.StringParamType):
    """Text that narrows something down: a script's empty variable must not lay it open instead."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text: str = super().convert(value, param, ctx)
        if not text.strip():
            self.fail("it is empty: leave the option out if nothing is meant", param, ctx)
        return text


NOT_EMPTY = NotEmpty()


def given(said: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's optional options that were given."""
    return {name: value for name, value in said.items() if value is not None}


def something(changes: dict[str, Any]) -> dict[str, Any]:
    """What a `set` is to change. Raises UsageError where that is nothing."""
    if not changes:
        raise click.UsageError("nothing to change was given")
    return changes


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
external_networks = names_of(lambda client: (it.name for it in client.networks.list() if it.external))
floating_ips = names_of(lambda client: (it.ip_address for it in client.floating_ips.list()))
networks = names_of(lambda client: (it.name for it in client.networks.list()))
ports = names_of(lambda client: (it.name for it in client.ports.list()))
projects = names_of(lambda client: (it.name for it in client.projects.list()))
routers = names_of(lambda client: (it.name for it in client.routers.list()))
security_groups = names_of(lambda client: (it.name for it in client.security_groups.list()))
subnets = names_of(lambda client: (it.name for it in client.subnets.list()))
volumes = names_of(lambda client: (it.name for it in client.volumes.list()))
servers = names_of(lambda client: (it.name for it in client.instances.list().instances))
users = names_of(lambda client: (it.name for it in client.users.list()))


def waiting(default_s: int) -> Callable[[F], F]:
    """Give a command --wait and --wait-timeout; it gets `wait` and `wait_timeout_s`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def until_interrupted(*args: Any, wait: bool, **said: Any) -> Any:
            try:
                return function(*args, wait=wait, **said)
            except KeyboardInterrupt:
                if not wait:
                    raise
                raise Failed("interrupted: what was asked for goes on, and is not waited for") from None

        command = click.option(
            "--wait-timeout",
            "wait_timeout_s",
            type=click.FloatRange(min=1),
            default=default_s,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait at most.",
        )(cast("F", until_interrupted))
        return click.option("--wait", is_flag=True, help="Return when it is done, and fail if it fails.")(
            command
        )

    return decorate
