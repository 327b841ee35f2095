"""What every command has: the client, made when it is first used, and the ways to talk to the person."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from fabric.cli.output import warn
from fabric.cli.profiles import Login, read_profile
from fabric.cli.token_cache import Cached, TokenCache
from fabric.errors import InvalidRequest, Reason, Unauthenticated

if TYPE_CHECKING:
    from fabric.client import Client

APP = "cellfabric"


class Connect(Protocol):
    """Makes a client: the real one, or a test's."""

    def __call__(
        self, login: Login, token: str, *, renew: Callable[[], str] | None, timeout_s: float
    ) -> Client: ...


def connect_really(login: Login, token: str, *, renew: Callable[[], str] | None, timeout_s: float) -> Client:
    """A client of the login's API."""
    # gRPC writes its own diagnoses to stderr, which say less than our errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from fabric.client import Client

    return Client(login.endpoint, login.ca_file, token, renew=renew, timeout_s=timeout_s)


def is_somebody_there() -> bool:
    """Whether standard input is a terminal. Services are started without any: Python then has None for it."""
    return sys.stdin is not None and sys.stdin.isatty()


@dataclass(kw_only=True)
class World:
    """What a command reaches for besides its arguments."""

    connect: Connect = connect_really
    now_s: Callable[[], float] = time.time
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    run_instead: Callable[[list[str]], None] = lambda argv: os.execvp(argv[0], argv)  # noqa: S606 - no shell is meant
    """Become another program, as `server ssh` does."""
    can_ask: Callable[[], bool] = is_somebody_there
    """Whether there is somebody to ask for a password."""

    def folder(self, variable: str, fallback: str) -> Path:
        """An XDG base directory (freedesktop's Base Directory Specification): absolute, or it does not count."""
        said = self.environ.get(variable, "")
        home = Path(self.environ.get("HOME") or Path.home())
        return (Path(said) if said.startswith("/") else home / fallback) / APP


class Session:
    """One run of the command line."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.options = Login()
        self.cloud = ""
        self.clouds_file: Path | None = None
        self.timeout_s = 30.0

    def set(self, options: Login, *, cloud: str, clouds_file: Path | None, timeout_s: float) -> None:
        """Take what the command line and the environment say."""
        self.options, self.cloud, self.clouds_file, self.timeout_s = options, cloud, clouds_file, timeout_s

    @cached_property
    def login(self) -> Login:
        """Options over the profile. Raises InvalidRequest where there is no endpoint."""
        path = self.clouds_file or self.world.folder("XDG_CONFIG_HOME", ".config") / "clouds.toml"
        found = self.options.over(read_profile(path, self.cloud))
        if not found.endpoint:
            raise InvalidRequest(
                f"which fabric? Give --endpoint or FABRIC_ENDPOINT, or write a profile to {path}",
                field="endpoint",
            )
        return found

    @cached_property
    def cache(self) -> TokenCache:
        """Tokens of earlier commands."""
        return TokenCache(self.world.folder("XDG_CACHE_HOME", ".cache") / "tokens")

    @cached_property
    def client(self) -> Client:
        """The client, logged in."""
        login = self.login
        if login.token:
            return self.connect(login.token)
        token = self.cache.get(login, now_s=self.world.now_s()) or self.log_in()
        return self.connect(token, renew=self.log_in)

    def connect(self, token: str, *, renew: Callable[[], str] | None = None) -> Client:
        """A client with this token."""
        return self.world.connect(self.login, token, renew=renew, timeout_s=self.timeout_s)

    def log_in(self) -> str:
        """A fresh token, kept for the commands to come."""
        login = self.login
        self.cache.drop(login)
        password = self.password()
        client = self.connect("")
        try:
            issued = client.tokens.issue(user=login.username, password=password, project=login.project)
        finally:
            client.close()
        self.cache.put(login, Cached(issued.token, issued.expire_time.seconds))
        return issued.token

    def password(self) -> str:
        """The password, asked for if there is somebody to ask. Raises Unauthenticated where there is none."""
        if not self.login.username:
            raise Unauthenticated(
                f"nobody is logged in to {self.login.endpoint}", reason=Reason.CREDENTIALS_MISSING
            )
        if self.login.password:
            return self.login.password
        if not self.world.can_ask():
            raise Unauthenticated(
                f"there is no password for {self.login.username}", reason=Reason.CREDENTIALS_MISSING
            )
        asked: str = click.prompt(f"Password of {self.login.username}", hide_input=True, err=True)
        return asked

    def say(self, text: str) -> None:
        """Tell the person something that is not the command's output."""
        warn(text)


pass_session = click.make_pass_decorator(Session)
