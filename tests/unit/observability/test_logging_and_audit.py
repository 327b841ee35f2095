from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import Bug
from fabric.observability.audit import DENIED_PER_MINUTE, FIRST, Book, verify
from fabric.observability.logging import configure, redact

TOKEN = "fab_" + "A1b2C3d4" * 5
HASH = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA"
GUESTS_HASH = "$6$rounds=5000$c2FsdA$aGFzaA"


@pytest.mark.parametrize(
    "event",
    [
        {"password": "canary"},
        {"token": "canary"},
        {"user_data": b"canary"},
        {"authorization": "Bearer canary"},
        {"request": {"user": {"password": "canary"}}},
        {"several": [{"secret": "canary"}]},
    ],
)
def test_a_field_that_names_a_secret_is_hidden_however_deep(event: dict[str, object]) -> None:
    assert "canary" not in repr(redact(None, "info", event))


@pytest.mark.parametrize("secret", [TOKEN, HASH, GUESTS_HASH, "-----BEGIN OPENSSH PRIVATE KEY-----"])
def test_what_looks_like_a_secret_is_hidden_wherever_it_is(secret: str) -> None:
    shown = redact(None, "info", {"message": f"the header was Bearer {secret}!", "list": [secret]})

    assert secret not in repr(shown)
    assert "the header was" in repr(shown)


@pytest.mark.parametrize(
    "value",
    [
        ValueError(f"no such header: Bearer {TOKEN}"),
        Path(f"/tickets/{TOKEN}"),
        {"a": {"b": {"c": {"d": {"e": TOKEN}}}}},
        {TOKEN: 1},
        [[[[[{"password": "canary"}]]]]],
    ],
    ids=["an exception", "a path", "deep down", "a name", "a named one deep down"],
)
def test_what_is_no_text_is_shown_as_carefully_as_text(value: object) -> None:
    """The log writes all it is given as text in the end; what was no text yet, or lay deeper than was looked, was written as it was."""
    out = io.StringIO()
    with _configured(out):
        structlog.get_logger().warning("something", why=value)

    assert "something" in out.getvalue()
    assert TOKEN not in out.getvalue()
    assert "canary" not in out.getvalue()


def test_what_libraries_say_is_shown_as_carefully() -> None:
    """Libraries write tracebacks of exceptions that nobody has caught, in words that may be anything: they passed no fence at all."""
    out = io.StringIO()
    with _configured(out):
        failed = ValueError(f"no such header: Bearer {TOKEN}")
        logging.getLogger("asyncio").error("Task exception was never retrieved: %s", HASH, exc_info=failed)

    assert "was never retrieved" in out.getvalue()
    assert "ValueError" in out.getvalue()
    assert TOKEN not in out.getvalue()
    assert HASH not in out.getvalue()


@contextlib.contextmanager
def _configured(out: TextIO) -> Iterator[None]:
    """The log as processes have it, and afterwards as it was."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    try:
        configure(process="test", stream=out)
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)
        structlog.contextvars.clear_contextvars()
        structlog.configure(**before)


def test_what_is_no_secret_is_left_as_it_is() -> None:
    event = {"method": "/x/Y", "took_ms": 1.5, "code": "OK", "names": ["a"], "password": ""}

    assert redact(None, "info", dict(event)) == event


# ------------------------------------------------------------------------------------------ audit


@dataclass
class Sink:
    lines: list[bytes] = field(default_factory=list)

    def append(self, line: bytes) -> None:
        self.lines.append(line)


@dataclass
class Clock:
    ms: int = 0

    def now_ms(self) -> int:
        return self.ms

    def boot_s(self) -> float:
        return self.ms / 1000


def _record(book: Book, outcome: str = "OK", **fields: Any) -> None:
    told = {"method": "/s/M", "principal": "user:a", "project": "p", "peer": "x", "request_id": "r", **fields}
    book.record(outcome=outcome, **told)


def _written(count: int) -> list[bytes]:
    sink = Sink()
    book = Book(sink, Clock())
    for number in range(count):
        _record(book, target=str(number))
    return sink.lines


def test_an_untouched_log_verifies_and_can_be_gone_on_with() -> None:
    sink = Sink(_written(3))
    book = Book(sink, Clock(), digest=verify(sink.lines))
    _record(book)

    assert verify(sink.lines) == book.digest
    assert verify([]) == FIRST


@given(st.integers(0, 5), st.data())
def test_no_line_can_be_changed_moved_or_taken_out_unseen(index: int, data: st.DataObject) -> None:
    lines = _written(7)
    how = data.draw(st.sampled_from(["drop", "change", "swap", "insert"]))
    if how == "drop":
        del lines[index]
    elif how == "change":
        lines[index] = lines[index].replace(b'"OK"', b'"NO"')
    elif how == "swap":
        lines[index], lines[index + 1] = lines[index + 1], lines[index]
    else:
        lines.insert(index + 1, lines[index])

    with pytest.raises(Bug, match="line"):
        verify(lines)


def test_lines_cut_off_the_end_show_in_the_last_digest() -> None:
    lines = _written(3)

    assert verify(lines[:-1]) != verify(lines)


def test_a_flood_of_denials_is_counted_not_dropped() -> None:
    sink, clock = Sink(), Clock()
    book = Book(sink, clock)
    for _ in range(DENIED_PER_MINUTE + 250):
        _record(book, "PERMISSION_DENIED", is_denial=True)
    _record(book, "OK")
    clock.ms += 60_000
    _record(book, "OK")

    told = [json.loads(line) for line in sink.lines]
    assert (
        sum(entry["count"] for entry in told if entry["outcome"] == "PERMISSION_DENIED")
        == DENIED_PER_MINUTE + 250
    )
    assert len(told) == DENIED_PER_MINUTE + 3
    verify(sink.lines)


def test_a_line_that_could_not_be_written_breaks_no_chain() -> None:
    """A full disk made the log look tampered with: the next line followed one that is not there."""

    class Full(Sink):
        is_full = False

        def append(self, line: bytes) -> None:
            if self.is_full:
                raise OSError("no space left")
            super().append(line)

    sink, clock = Full(), Clock()
    book = Book(sink, clock)
    for _ in range(DENIED_PER_MINUTE + 1):
        _record(book, "PERMISSION_DENIED", is_denial=True)
    clock.ms += 60_000
    sink.is_full = True
    with pytest.raises(OSError, match="no space"):
        _record(book, "OK")
    sink.is_full = False
    clock.ms += 60_000
    _record(book, "OK")

    counts = [json.loads(line)["count"] for line in sink.lines]
    assert verify(sink.lines) == book.digest
    assert sum(counts) == DENIED_PER_MINUTE + 2
