"""The log: one line for each event, JSON for machines or columns for people, on standard error, with secrets taken out.

Configure once, before gRPC starts (gRPC's threads and a later reconfiguration can deadlock). Event names are constants, values are
fields, and a field whose name or whose value looks like a secret is replaced: the last of several fences, not the first.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog

HIDDEN: Final = "***"

_SECRET_NAMES: Final = frozenset(
    {
        "authorization",
        "password",
        "password_hash",
        "passphrase",
        "private_key",
        "secret",
        "ticket",
        "token",
        "user_data",
    }
)
"""Fields that are never shown. A test compares them with the `secret` option of the protos."""

_SECRET_VALUES: Final = re.compile(
    r"fab_[A-Za-z0-9_-]{20,}|\$(?:argon2[a-z]*|6)\$\S+|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""What our secrets look like, wherever they turn up: tokens and tickets, hashes of passwords (of users, of rescued guests), keys."""

_DEPTH: Final = 4


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: hide secrets in an event's fields, however deep they are."""
    for name, value in event.items():
        event[name] = HIDDEN if name in _SECRET_NAMES and value else _shown(value, _DEPTH)
    return event


def _shown(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        if not depth:
            return HIDDEN  # what was not looked at is not shown
        if isinstance(value, Mapping):
            return {
                _without_secrets(name): HIDDEN if name in _SECRET_NAMES else _shown(inner, depth - 1)
                for name, inner in value.items()
            }
        return [_shown(inner, depth - 1) for inner in value]
    # Whatever it is, it would be written as its text: an exception's may hold anything.
    return _without_secrets(value)


def _without_secrets(value: object) -> str:
    return _SECRET_VALUES.sub(HIDDEN, str(value))


class _Plain(logging.Formatter):
    """What libraries say through the standard module, tracebacks with it, with secrets taken out."""

    def format(self, record: logging.LogRecord) -> str:
        return _without_secrets(super().format(record))


def configure(
    *,
    process: str,
    level: Literal["debug", "info", "warning", "error"] = "info",
    style: Literal["json", "console"] = "json",
    stream: TextIO | None = None,
) -> None:
    """Set up logging for the whole process. `process` is in every line, so that lines of several can be mixed."""
    out = sys.stderr if stream is None else stream
    number = getattr(logging, level.upper())
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(sort_keys=False, default=str)
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=out.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(process=process)
    # Libraries say little through the standard module, and what they say may be anything: warnings only, without arguments' objects.
    said = logging.StreamHandler(out)
    said.setFormatter(_Plain("%(name)s: %(message)s"))
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[said], force=True)
