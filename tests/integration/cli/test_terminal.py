"""A real terminal (a pseudo one) joined to a console that a test plays."""

from __future__ import annotations

import contextlib
import os
import pty
import queue
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.cli.terminal import SANE, converse, escape_from

ROOT = Path(__file__).resolve().parents[3]
ESCAPE = escape_from("^]")


class Played:
    """A console whose guest says what a test makes it say."""

    def __init__(self, *, echoes: bool = False) -> None:
        self.typed = b""
        self._echoes = echoes
        self._said: queue.Queue[bytes | Exception | None] = queue.Queue()

    def send(self, data: bytes) -> None:
        self.typed += data
        if self._echoes and data:
            self._said.put(data)

    def close(self) -> None:
        self._said.put(None)

    def say(self, what: bytes | Exception) -> None:
        self._said.put(what)

    def __iter__(self) -> Iterator[bytes]:
        while (said := self._said.get()) is not None:
            if isinstance(said, Exception):
                raise said
            yield said


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends: what a person's fingers and eyes are at, and what a program has."""
    outer, inner = pty.openpty()
    yield outer, inner
    for each in (outer, inner):
        with contextlib.suppress(OSError):
            os.close(each)


def _typing(outer: int, *keys: bytes) -> threading.Thread:
    """Keys, one after the other, once the terminal is raw: before, its line discipline would keep them."""

    def type_() -> None:
        while termios.tcgetattr(outer)[3] & termios.ICANON:
            time.sleep(0.01)
        for key in keys:
            os.write(outer, key)
            time.sleep(0.05)

    thread = threading.Thread(target=type_)
    thread.start()
    return thread


def test_every_key_but_the_escape_goes_to_the_guest(terminal: tuple[int, int]) -> None:
    outer, inner = terminal
    console = Played()
    typing = _typing(outer, b"ls\r", b"\x03", b"\x04\x1a\x1c", ESCAPE + b"lost")

    has_left = converse(console, source=inner, target=inner, escape=ESCAPE, linger_s=0)

    typing.join()
    assert has_left
    assert console.typed == b"ls\r\x03\x04\x1a\x1c"


def test_the_terminal_is_given_back_as_it_was(terminal: tuple[int, int]) -> None:
    outer, inner = terminal
    before = termios.tcgetattr(inner)
    console = Played()
    console.say(b"\x1b[?1049h\x1b[?25l")
    typing = _typing(outer, ESCAPE)

    converse(console, source=inner, target=inner, escape=ESCAPE, linger_s=0)

    typing.join()
    assert termios.tcgetattr(inner) == before
    shown = os.read(outer, 4096)
    assert shown.endswith(SANE.replace(b"\r\n", b"\r\r\n")) or SANE.rstrip() in shown


def test_the_terminal_is_given_back_when_the_console_is_lost(terminal: tuple[int, int]) -> None:
    _, inner = terminal
    before = termios.tcgetattr(inner)
    console = Played()
    console.say(RuntimeError("lost"))

    with pytest.raises(RuntimeError):
        converse(console, source=inner, target=inner, escape=ESCAPE, linger_s=0)

    assert termios.tcgetattr(inner) == before


def test_a_console_that_ends_was_not_left(terminal: tuple[int, int]) -> None:
    _, inner = terminal
    console = Played()
    console.say(b"bye")
    console.close()

    assert not converse(console, source=inner, target=inner, escape=ESCAPE, linger_s=0)


def test_a_pipe_is_typed_to_its_end_and_the_answer_is_waited_for() -> None:
    source, fingers = os.pipe()
    eyes, target = os.pipe()
    console = Played(echoes=True)
    os.write(fingers, b"uptime\r" + ESCAPE)
    os.close(fingers)

    has_left = converse(console, source=source, target=target, escape=ESCAPE, linger_s=0.3)

    os.close(target)
    assert has_left
    assert os.read(eyes, 4096) == b"uptime\r" + ESCAPE
    os.close(eyes)
    os.close(source)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_command_gives_the_terminal_back(
    terminal: tuple[int, int], number: signal.Signals
) -> None:
    _, inner = terminal
    before = termios.tcgetattr(inner)
    program = (
        "from tests.integration.cli.test_terminal import Played, ESCAPE\n"
        "from fabric.cli.terminal import converse\n"
        "import os, threading\n"
        "class Polled(Played):\n"
        "    def __iter__(self):\n"
        "        wait = threading.Event()\n"
        "        while True:\n"
        "            wait.wait(0.05)\n"
        "            yield b''\n"
        "converse(Polled(), source=0, target=1, escape=ESCAPE, linger_s=0)\n"
    )
    process = subprocess.Popen(
        (sys.executable, "-c", program), stdin=inner, stdout=inner, cwd=ROOT, start_new_session=True
    )
    while termios.tcgetattr(inner)[3] & termios.ICANON:
        assert process.poll() is None
        time.sleep(0.02)

    process.send_signal(number)

    assert process.wait(10) == 128 + number
    assert termios.tcgetattr(inner) == before


@pytest.mark.parametrize(("text", "byte"), [("^]", b"\x1d"), ("^a", b"\x01"), ("^[", b"\x1b"), ("none", b"")])
def test_an_escape_is_written_as_people_write_it(text: str, byte: bytes) -> None:
    assert escape_from(text) == byte


@pytest.mark.parametrize("text", ["", "x", "^", "^é", "^1", "]"])
def test_what_is_no_control_character_is_no_escape(text: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        escape_from(text)
