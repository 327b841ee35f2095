"""How a command ends: the exit code of every error, and what people can do about it. Scripts branch on the codes: they never change."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import IO, Any, Final

import click

from fabric.cli.output import harmless
from fabric.errors import (
    AlreadyExists,
    Conflict,
    FabricError,
    InvalidRequest,
    NoCapacity,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Reason,
    TooMuch,
    Unauthenticated,
    Unavailable,
    WrongState,
)

FAILED: Final = 1
USAGE: Final = 2
AUTH: Final = 3
NOT_FOUND: Final = 4
CONFLICT: Final = 5
NO_ROOM: Final = 6
UNAVAILABLE: Final = 7

MEANING: Final[Mapping[int, str]] = MappingProxyType(
    {
        0: "done",
        FAILED: "it failed, or the server that was waited for ended elsewhere",
        USAGE: "the command or the request is wrong as it is",
        AUTH: "who you are is not known, or you may not",
        NOT_FOUND: "it is not there, or not yours to see",
        CONFLICT: "not in this state, the name is taken, or somebody else was faster",
        NO_ROOM: "the project's quota, or no host with room",
        UNAVAILABLE: "cannot be reached, too busy, or not done in time; may be tried again as it is",
    }
)
"""What each exit code tells a script."""

_CODE: Final[Mapping[type[FabricError], int]] = MappingProxyType(
    {
        InvalidRequest: USAGE,
        Unauthenticated: AUTH,
        PermissionDenied: AUTH,
        NotFound: NOT_FOUND,
        AlreadyExists: CONFLICT,
        WrongState: CONFLICT,
        Conflict: CONFLICT,
        QuotaExceeded: NO_ROOM,
        NoCapacity: NO_ROOM,
        TooMuch: UNAVAILABLE,
        Unavailable: UNAVAILABLE,
    }
)

_CODE_BY_REASON: Final[Mapping[Reason, int]] = MappingProxyType({Reason.TOO_LARGE: USAGE})

_ADVICE: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        Reason.CREDENTIALS_MISSING: "run `fabric login`, or set FABRIC_USERNAME and FABRIC_PASSWORD",
        Reason.CREDENTIALS_INVALID: "check the user, the password and the project; `fabric login` asks for them again",
        Reason.PERMISSION_DENIED: "ask an administrator for the role, or name another project by --project",
        Reason.NAME_AMBIGUOUS: "use the id; `list` shows it",
        Reason.QUOTA_EXCEEDED: "delete something, or ask an administrator for more quota",
        Reason.ADDRESSES_EXHAUSTED: "delete ports that nobody needs, or add a subnet or an allocation pool",
        Reason.CHANGED_MEANWHILE: "look again, and repeat the command if it still makes sense",
        Reason.RATE_LIMITED: "wait a moment",
        Reason.INTERNAL: "report it to whoever runs this fabric, with the id",
    }
)

_ADVICE_BY_NEED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "system": "be one of them by --cloud or --username, or ask one; no role in a project makes you one",
        "root": "run it with sudo",
    }
)
"""What helps where no role in a project does."""


class Failed(click.ClickException):
    """What was waited for ended, and not well. Not an error of the API's, which has done what it was asked."""

    exit_code = FAILED

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"fabric: {harmless(self.format_message())}", file=file, err=file is None)


def exit_code(error: FabricError) -> int:
    """The code that a command ends with."""
    by_reason = _CODE_BY_REASON.get(error.reason)
    if by_reason is not None:
        return by_reason
    return next((_CODE[kind] for kind in type(error).__mro__ if kind in _CODE), FAILED)


def explain(error: FabricError) -> str:
    """An error as people read it: what is wrong, where, and what to do."""
    text = error.message
    if isinstance(error, InvalidRequest) and error.field and error.field not in text:
        text = f"{error.field}: {text}"
    advice = _ADVICE_BY_NEED.get(error.facts.get("needed", "")) or _ADVICE.get(error.reason)
    return f"{text}\n  {advice}" if advice is not None else text
