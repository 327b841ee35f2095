"""How a supervisor is spoken to: one JSON line each way over a Unix socket that only root can open."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from fabric.errors import Bug, FabricError, InvalidRequest, PermissionDenied, Unavailable

State = Literal["waiting", "starting", "ready", "restarting", "stopped", "failed"]
"""`waiting` for what it needs, `restarting` after a crash and a pause, `stopped` by request, `failed` too often."""


class ProcessStatus(Struct, frozen=True, kw_only=True):
    """One process, as its supervisor sees it."""

    name: str
    state: State
    pid: int = 0
    uptime_s: float = 0.0
    restarts: int = 0
    last_end: str = ""


class FabricStatus(Struct, frozen=True, kw_only=True):
    """All of them."""

    supervisor_pid: int
    processes: tuple[ProcessStatus, ...]
    has_outside: bool = True
    """Whether the network that leads out of the fabric has been made."""

    @property
    def is_ready(self) -> bool:
        """Whether everything is."""
        return self.has_outside and all(each.state == "ready" for each in self.processes)

    @property
    def failed(self) -> tuple[ProcessStatus, ...]:
        """Those that were given up."""
        return tuple(each for each in self.processes if each.state == "failed")


class Command(Struct, frozen=True, kw_only=True):
    """What a supervisor is asked to do.

    `signal` is what `kill` sends, and what `stop` and `restart` begin with. `environment` is for the one start that is asked for.
    """

    verb: Literal["status", "start", "stop", "restart", "kill", "down"]
    process: str = ""
    signal: int = 15
    environment: dict[str, str] = {}


class Answer(Struct, frozen=True, kw_only=True):
    """The state of things after the command, or why it was not carried out."""

    status: FabricStatus | None = None
    error: str = ""


def ask(path: Path, command: Command, *, timeout_s: float = 30.0) -> FabricStatus:
    """Send one command and wait for it to be carried out.

    Raises:
        Unavailable: no supervisor answers there.
        PermissionDenied: it is root's alone.
        InvalidRequest: it knows no such process, or cannot do that to it.
    """
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(timeout_s)
            client.connect(str(path))
            client.sendall(msgspec.json.encode(command) + b"\n")
            with client.makefile("rb") as lines:
                line = lines.readline()
    except PermissionError:
        raise PermissionDenied("only root may speak to a fabric's supervisor", needed="root") from None
    except OSError as absent:
        raise Unavailable(f"no supervisor answers on {path}: {absent.strerror or absent}") from None
    if not line:
        raise Unavailable("the supervisor ended before it answered")
    answer = msgspec.json.decode(line, type=Answer)
    if answer.status is None:
        raise InvalidRequest(answer.error, field="process")
    return answer.status


def answer_to(line: bytes) -> Command:
    """The command in a line. Raises Bug for what is none: only our own command line writes here."""
    try:
        return msgspec.json.decode(line, type=Command)
    except msgspec.DecodeError as wrong:
        raise Bug(f"not a command: {wrong}") from None


def said(status: FabricStatus | FabricError) -> bytes:
    """The line that answers."""
    answer = Answer(error=status.message) if isinstance(status, FabricError) else Answer(status=status)
    return msgspec.json.encode(answer) + b"\n"


def environment_from(pairs: tuple[str, ...]) -> Mapping[str, str]:
    """`NAME=VALUE` words as a mapping. Raises InvalidRequest for what is none."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"{pair!r} is not NAME=VALUE", field="env")
        found[name] = value
    return found
