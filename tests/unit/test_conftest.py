"""The guards of tests/conftest.py, each shown to bite: a guard nobody has seen fail may be a wall nobody built."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import threads_since

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_unit_test_cannot_connect(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as sock, pytest.raises(AssertionError, match="network socket"):
        sock.connect((address, 9))


def test_a_unit_test_cannot_listen() -> None:
    with socket.socket() as sock, pytest.raises(AssertionError, match="network socket"):
        sock.bind(("127.0.0.1", 0))


def test_a_unit_test_cannot_sleep() -> None:
    with pytest.raises(AssertionError, match=r"slept 0\.2 s"):
        time.sleep(0.2)


def test_a_unit_test_cannot_wait_in_its_event_loop() -> None:
    with pytest.raises(AssertionError, match="waited"):
        asyncio.run(asyncio.sleep(0.2))


async def test_a_unit_test_may_yield_to_its_event_loop() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)


def test_a_unit_test_cannot_write_into_the_tree() -> None:
    with pytest.raises(AssertionError, match="outside tmp_path"):
        os.open(ROOT / "tests" / "left-behind", os.O_CREAT | os.O_WRONLY)

    assert not (ROOT / "tests" / "left-behind").exists()


def test_a_unit_test_may_write_to_its_own_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("fine")

    assert (tmp_path / "file").read_text() == "fine"


def test_a_thread_left_running_is_named() -> None:
    before, end = set(threading.enumerate()), threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten")
    thread.start()

    try:
        assert threads_since(before) == ["forgotten"]
    finally:
        end.set()
        thread.join()
    assert threads_since(before) == []
