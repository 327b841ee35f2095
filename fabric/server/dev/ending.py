"""Ending a fabric, and looking for what is left of it: processes, namespaces, links, mounts, files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fabric.errors import Bug, Unavailable
from fabric.server.dev import folder, machine, network
from fabric.server.dev.control import Command, ask
from fabric.server.dev.topology import Paths

Say = Callable[[str], None]

PATIENCE_S: Final = 60.0
"""For a supervisor to end everything in order."""
GRACE_S: Final = 10.0
"""For what is found after that, before it is killed."""


def down(state: Path, say: Say) -> bool:
    """End the fabric of a state folder, whatever became of its supervisor; destroy its guests; remove the folder.

    Returns:
        Whether there was anything.

    Raises:
        InvalidRequest: this process may not, or the folder is not a fabric's.
        Bug: something is left all the same; the message lists it.
    """
    folder.require_own(state)
    machine.require_root()
    if not any(left_behind(state)):
        return False
    _ask_supervisor(state, say)
    _sweep(state, say)
    left = list(left_behind(state))
    if left:
        raise Bug("these are left behind:\n  " + "\n  ".join(left))
    return True


def clean_stale(state: Path, say: Say) -> None:
    """Remove what is left of a fabric whose supervisor is gone. One that is running is left alone.

    Raises:
        InvalidRequest: the folder is not a fabric's.
    """
    folder.require_own(state)
    if is_locked(state) or not any(left_behind(state)):
        return
    say(f"removing what is left of an earlier fabric on {state}")
    down(state, say)


def left_behind(state: Path) -> Iterator[str]:
    """Everything there is of a fabric, in words."""
    for pid in sorted(machine.marked(state)):
        yield f"process {pid}: {machine.command_line(pid)}"
    for name in network.namespaces(state):
        for pid in sorted(machine.in_namespace(name)):
            yield f"process {pid} in {name}: {machine.command_line(pid)}"
        yield f"network namespace {name}"
    yield from (f"interface {name}" for name in network.links(state))
    yield from (f"mount {target}" for target in machine.mounts_below(state))
    if state.exists():
        yield f"folder {state}"


def _ask_supervisor(state: Path, say: Say) -> None:
    paths = Paths(state)
    try:
        ask(paths.control, Command(verb="down"))
    except Unavailable:
        if is_locked(state):
            say("the supervisor does not answer; everything is ended without it")
        return
    until_s = time.monotonic() + PATIENCE_S
    while is_locked(state) and time.monotonic() < until_s:
        time.sleep(0.05)


def _sweep(state: Path, say: Say) -> None:
    """End what is still there, in the order in which nothing is started anew: keepers, hosts' daemons, guests."""
    supervisor = _pid(Paths(state).pid)
    if supervisor in machine.marked(state):
        machine.end(lambda: {supervisor} & machine.marked(state), patience_s=GRACE_S)
    machine.end(lambda: machine.marked(state), patience_s=GRACE_S)
    guests = {pid for name in network.namespaces(state) for pid in machine.in_namespace(name)}
    if guests:
        say(f"ending guests and what served them: {len(guests)} processes")
        machine.end(
            lambda: {pid for name in network.namespaces(state) for pid in machine.in_namespace(name)},
            patience_s=GRACE_S,
        )
    network.lower_all(state)
    network.fold_away()
    # What the hosts' libvirtds were mounted on, which only they know; a host's own daemon does it too, but may have been killed.
    subprocess.run((sys.executable, "-m", "hostd.driver.libvirt.mount_points"), check=False)
    # A process that has just ended may still hold a file for a moment; nothing else writes here now.
    for _ in range(3):
        if not state.exists():
            break
        folder.remove(state)


def _pid(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    return 0


def is_locked(state: Path) -> bool:
    """Whether a supervisor, or somebody who is about to start one, holds the folder."""
    try:
        lock = os.open(Paths(state).lock, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)
