"""A person's terminal joined to a guest's serial port, and given back as it was, however that ends.

What is typed goes to the guest key by key, Ctrl-C too; only the escape character stays here. Without a terminal on standard input (a pipe,
a file) the bytes go as they are, and at their end the guest has a while to answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import threading
import time
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, Protocol

PIECE_BYTES: Final = 4096
_POLL_S: Final = 0.1

SANE: Final = b"\x1b[!p\x1b[?1047l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[0m\r\n"
"""What takes back what a guest may have told the terminal: modes (DECSTR), the other screen, reports of the mouse and of pasting, a hidden
cursor, colours."""


class Console(Protocol):
    """A guest's serial port."""

    def send(self, data: bytes) -> None:
        """Type."""
        ...

    def close(self) -> None:
        """Leave."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """What the guest says."""
        ...


class Ended(SystemExit):
    """A signal asks to end."""


def converse(console: Console, *, source: int, target: int, escape: bytes, linger_s: float) -> bool:
    """Join descriptors `source` and `target` to a console until it ends, or until the escape character is typed.

    Args:
        console: closed when this returns.
        source: what is typed, a terminal or anything else that can be read.
        target: where it is shown.
        escape: the character that leaves; empty for none.
        linger_s: how long the guest may be silent after the end of a `source` that is no terminal.

    Returns:
        Whether whoever is here has left, rather than the console ended.
    """
    fingers = _Fingers(console, source, escape=escape, linger_s=linger_s)
    with console_closed(console), _signals_end(), _raw(source), _sane(target), fingers:
        for said in console:
            fingers.heard()
            _write(target, said)
    return fingers.has_left


class _Fingers:
    """The thread that reads what is typed."""

    def __init__(self, console: Console, source: int, *, escape: bytes, linger_s: float) -> None:
        self.has_left = False
        self._console = console
        self._source = source
        self._escape = escape if os.isatty(source) else b""
        self._linger_s = linger_s
        self._heard_s = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="typed", daemon=True)

    def heard(self) -> None:
        """The guest has said something."""
        self._heard_s = time.monotonic()

    def __enter__(self) -> _Fingers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._console.close()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                # Now and then, so that a source that says nothing holds nobody up.
                if not select.select([self._source], [], [], _POLL_S)[0]:
                    continue
                typed = os.read(self._source, PIECE_BYTES)
            except (OSError, ValueError):
                typed = b""
            if not typed:
                self._linger()
                self._leave()
                return
            before, escape, _ = typed.partition(self._escape) if self._escape else (typed, b"", b"")
            self._console.send(before)
            if escape:
                self._leave()
                return

    def _linger(self) -> None:
        self.heard()
        while (
            not os.isatty(self._source)
            and not self._is_over.is_set()
            and time.monotonic() - self._heard_s < self._linger_s
        ):
            self._is_over.wait(_POLL_S)

    def _leave(self) -> None:
        if not self._is_over.is_set():
            self.has_left = True
            self._console.close()


@contextlib.contextmanager
def console_closed(console: Console) -> Iterator[None]:
    """Leave the console at the end, whatever it is."""
    try:
        yield
    finally:
        console.close()


@contextlib.contextmanager
def _raw(source: int) -> Iterator[None]:
    """A terminal that hands on every key, and is as it was afterwards."""
    if not os.isatty(source):
        yield
        return
    before: list[Any] = termios.tcgetattr(source)
    try:
        tty.setraw(source, termios.TCSADRAIN)
        yield
    finally:
        # Flushed: what was typed ahead was meant for the guest, not for the shell.
        termios.tcsetattr(source, termios.TCSAFLUSH, before)


@contextlib.contextmanager
def _sane(target: int) -> Iterator[None]:
    try:
        yield
    finally:
        if os.isatty(target):
            with contextlib.suppress(OSError):
                _write(target, SANE)


@contextlib.contextmanager
def _signals_end() -> Iterator[None]:
    """Have signals that would end the process unwind it instead, so that the terminal is given back."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise Ended(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(target: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(target, left) :]


def escape_from(text: str) -> bytes:
    """The escape character as people write it: `^]`, or `none`. Raises ValueError."""
    if text == "none":
        return b""
    if len(text) == 2 and text[0] == "^" and "@" <= text[1].upper() <= "_":
        return bytes((ord(text[1].upper()) ^ 0x40,))
    raise ValueError(f"{text!r} is neither ^ and a character nor none")
