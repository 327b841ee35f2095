"""What holds for every test, and what a unit test may not do.

A unit test works on values. It opens no network socket, never waits for real, leaves no thread behind and writes nowhere but below the
temporary directory: so it is fast, may run beside any other, and fails for one reason only. The guards below make that true rather than
agreed. Where Python has an audit event they listen to that, because it also tells what a library does.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
UNIT = ROOT / "tests" / "unit"

LONGEST_WAIT_S = 0.05
"""What a unit test may really wait; more is a test of patience. Longer waits belong on a virtual clock."""

WRITABLE = tuple(
    os.path.realpath(path)
    for path in (tempfile.gettempdir(), "/dev", "/proc/self", ROOT / ".hypothesis", ROOT / ".pytest_cache")
)
# Before anything imports gRPC. Tests start processes from one that speaks gRPC; its own care for forks starts its threads again in the
# child, which has had its files closed by then, and now and then dies of it before it becomes the program that was wanted (seen).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC

# No deadline: how long an example takes says more about the machine than about the code. CI tries the same examples each time, so that it
# judges the change and nothing else; new ones are sought wherever somebody works.
settings.register_profile("dev", deadline=None)
settings.register_profile(
    "ci", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs root for whoever is not root, but not in CI: there, leaving it out would look like passing it."""
    if item.get_closest_marker("owns_machine") is None or os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        pytest.fail("needs root, which CI must have")
    pytest.skip("needs root: makes namespaces, interfaces or domains")


class NotInAUnitTest(AssertionError):
    """A unit test reached for the world. Hand it a fake, a virtual clock or tmp_path, or move it to tests/integration."""


class _Guard:
    """Whether a unit test is running in this process. Audit hooks cannot be removed, so they ask."""

    on = False


def _check_socket(arguments: tuple[object, ...]) -> None:
    sock, address = arguments
    if isinstance(sock, socket.socket) and sock.family in {socket.AF_INET, socket.AF_INET6}:
        raise NotInAUnitTest(f"used a network socket: {address!r}")


def _check_open(arguments: tuple[object, ...]) -> None:
    path, _, flags = arguments
    if not isinstance(path, str | bytes) or not isinstance(flags, int) or not flags & WRITES:
        return
    name = os.path.realpath(os.fsdecode(path))
    if not name.startswith(WRITABLE) and "__pycache__" not in name:
        raise NotInAUnitTest(f"wrote to {name}, outside tmp_path")


_CHECKS = {
    "socket.connect": _check_socket,
    "socket.bind": _check_socket,
    "open": _check_open,
}


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _Guard.on and (check := _CHECKS.get(event)) is not None:
        check(arguments)


sys.addaudithook(_audit)


def threads_since(before: set[threading.Thread]) -> list[str]:
    """The names of the threads that run now and were not among `before`."""
    return sorted(
        thread.name for thread in threading.enumerate() if thread not in before and thread.is_alive()
    )


@pytest.fixture(autouse=True)
def _values_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Guard the tests below tests/unit, and no others."""
    if not request.path.is_relative_to(UNIT):
        yield
        return
    real_sleep, real_select = time.sleep, selectors.DefaultSelector.select

    def sleep(seconds: float) -> None:
        if seconds > LONGEST_WAIT_S:
            raise NotInAUnitTest(f"slept {seconds} s")
        real_sleep(seconds)

    def select(
        self: selectors.DefaultSelector, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        # A loop gets here with a timeout only when it has nothing to do until then: that is a real wait.
        if timeout is not None and timeout > LONGEST_WAIT_S:
            raise NotInAUnitTest(f"an event loop waited {timeout:.2f} s for real")
        return real_select(self, timeout)

    # Patched, because waiting has neither an audit event nor a seam that every library would use.
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(selectors.DefaultSelector, "select", select)
    before = set(threading.enumerate())
    _Guard.on = True
    try:
        yield
    finally:
        _Guard.on = False
    left = threads_since(before)
    assert not left, f"threads left running: {left}"
