"""Network namespaces for tests: made, entered by a thread, and gone again with everything in them."""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hostd.syscalls import CLONE_NEWNET, setns

_T = TypeVar("_T")


def ip(*words: str, netns: str = "") -> str:
    """Run ip(8), in a namespace if said."""
    where = ("-n", netns) if netns else ()
    return subprocess.run(("ip", *where, *words), check=True, capture_output=True, text=True).stdout


def inside(netns: str, work: Callable[[], _T]) -> _T:
    """Do `work` in a thread that is in the namespace; sockets it makes stay there."""

    def enter_and_work() -> _T:
        with open(f"/run/netns/{netns}", "rb") as namespace:  # noqa: PTH123 - a namespace
            setns(namespace.fileno(), CLONE_NEWNET)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_work).result(timeout=30)


@contextlib.contextmanager
def a_namespace(word: str) -> Iterator[str]:
    """A namespace with its loopback up. Fails at the end when a process still lives in it."""
    name = f"cf-{word}-{uuid.uuid4().hex[:8]}"
    ip("netns", "add", name)
    try:
        ip("link", "set", "lo", "up", netns=name)
        yield name
        assert ip("netns", "pids", name) == ""
    finally:
        ip("netns", "del", name)
