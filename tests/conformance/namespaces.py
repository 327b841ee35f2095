"""Network namespaces for tests: made, entered by a thread, and gone again with everything in them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
    """A namespace with its loopback up. Fails at the end when a process still lives in it.

    However it ends, with it go the namespaces that a host daemon made for it: their names begin with its own. Whoever wants to know that
    the daemon has taken them away itself has to ask before.
    """
    name = f"cf-{word}-{uuid.uuid4().hex[:8]}"
    ip("netns", "add", name)
    try:
        ip("link", "set", "lo", "up", netns=name)
        yield name
        assert ip("netns", "pids", name) == ""
    finally:
        for each in (*namespaces(f"{name}."), name):
            for pid in ip("netns", "pids", each).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", each)


def namespaces(prefix: str) -> list[str]:
    """The names of namespaces, or of what was to become one, that begin so."""
    return sorted(path.name for path in Path("/run/netns").iterdir() if path.name.startswith(prefix))
