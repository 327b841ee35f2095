"""A process held still: it keeps its connections, and answers nothing until it goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

PATIENCE_S = 30.0
_STILL = frozenset("TtZX")


def pause(pid: int) -> None:
    """Hold every thread of a process. Returns when they are held.

    A signal only asks: a thread that waits for its turn on a busy machine goes on serving until it has seen it, and a write to an etcd
    that was "paused" was answered in that moment (seen).
    """
    os.kill(pid, signal.SIGSTOP)
    end_s = time.monotonic() + PATIENCE_S
    while not _is_still(pid):
        assert time.monotonic() < end_s, f"{pid} goes on"
        time.sleep(0.001)


def resume(pid: int) -> None:
    """Let it go on."""
    os.kill(pid, signal.SIGCONT)


def _is_still(pid: int) -> bool:
    states = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            states.add(stat.read_text().rpartition(")")[2].split()[0])
    return states <= _STILL
