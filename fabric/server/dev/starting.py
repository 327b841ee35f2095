"""From options to a supervisor that keeps a whole fabric running."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

from fabric.clock import SystemClock
from fabric.errors import Unavailable, WrongState
from fabric.server.dev import ending, files, folder, machine, network, profile
from fabric.server.dev.control import Command, FabricStatus, ask
from fabric.server.dev.topology import (
    API_PORT,
    Options,
    Paths,
    Topology,
    check,
    draw_up,
    free_block,
    load,
    ports_needed,
    tag_of,
)

PATIENCE_S: Final = 90.0
"""How long a whole start may take on a machine that does something else besides."""
HOPELESS: Final = 3
"""Crashes of a process that was never ready, after which a start is given up."""
_LOOK_S: Final = 0.1
_LAST_WORDS: Final = 25

Say = Callable[[str], None]


def prepare(options: Options, say: Say) -> tuple[Topology, int]:
    """Make the state folder of a new fabric, its files and its networks.

    Returns:
        What was made, and the descriptor that holds the lock on it: whoever inherits that is the fabric's supervisor.

    Raises:
        InvalidRequest: it cannot be built here, or the folder is not a fabric's; the message says what is missing.
        WrongState: a fabric runs there already.
        Bug: the machine refused a network.
    """
    check(options)
    machine.require_root()
    machine.find_programs(options)
    ending.clean_stale(options.state, say)
    folder.make(options.state)
    lock = _lock(options.state)
    api_port, ports = machine.free_ports(ports_needed(options), API_PORT)
    block = free_block(
        tag_of(options.state), machine.routed_networks() if options.hypervisor == "libvirt" else ()
    )
    topology = draw_up(
        options, ports=ports, api_port=api_port, block=block, capacity=machine.share_out(options)
    )
    files.write_all(topology, now_ms=SystemClock().now_ms())
    profile.write(topology)
    network.raise_all(topology)
    return topology, lock


def launch(topology: Topology, lock: int) -> None:
    """Start the supervisor, in a session of its own, with the lock."""
    paths = topology.paths
    with paths.log_of("supervisor").open("ab") as output:
        subprocess.Popen(
            supervisor_command(topology, lock),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, machine.MARK: str(topology.state)},
            start_new_session=True,
            pass_fds=(lock,),
        )
    os.close(lock)


def become_supervisor(topology: Topology, lock: int) -> NoReturn:
    """Be the supervisor, in the foreground."""
    os.set_inheritable(lock, True)
    command = supervisor_command(topology, lock)
    os.execve(command[0], command, {**os.environ, machine.MARK: str(topology.state)})  # noqa: S606 - no shell is meant


def supervisor_command(topology: Topology, lock: int) -> tuple[str, ...]:
    """What a supervisor is started as."""
    return (sys.executable, "-m", "fabric.server.dev.supervisor", str(topology.state), str(lock))


def await_ready(topology: Topology, say: Say) -> FabricStatus:
    """Watch a start, saying what has become ready, until everything has.

    Raises:
        Unavailable: something does not start; the message has its last words.
    """
    paths = topology.paths
    begun_s = time.monotonic()
    ready: set[str] = set()
    while (left_s := PATIENCE_S - (time.monotonic() - begun_s)) > 0:
        status = _asked(paths, left_s)
        for each in status.processes if status is not None else ():
            if each.state == "ready" and each.name not in ready:
                ready.add(each.name)
                say(f"{each.name} is ready after {time.monotonic() - begun_s:.1f} s")
            if each.state == "failed" or (each.name not in ready and each.restarts >= HOPELESS):
                raise Unavailable(
                    f"{each.name} does not start: it {each.last_end}.\n{last_words(paths, each.name)}"
                )
        if status is not None and status.is_ready:
            return status
        # It inherited the lock, and nobody else has it.
        if not ending.is_locked(topology.state):
            raise Unavailable(f"the supervisor ended.\n{last_words(paths, 'supervisor')}")
        time.sleep(_LOOK_S)
    late = sorted({path.stem for path in paths.settings.iterdir()} - ready)
    raise Unavailable(
        f"not ready after {PATIENCE_S:.0f} s: {', '.join(late)}.\n"
        + "\n".join(last_words(paths, name) for name in late)
    )


def running(state: Path) -> tuple[Topology, FabricStatus] | None:
    """The fabric that runs on a state folder; None where none does."""
    paths = Paths(state)
    if not paths.topology.exists():
        return None
    try:
        return load(paths.topology), ask(paths.control, Command(verb="status"))
    except Unavailable:
        return None


def _asked(paths: Paths, timeout_s: float) -> FabricStatus | None:
    try:
        return ask(paths.control, Command(verb="status"), timeout_s=timeout_s)
    except Unavailable:
        return None


def last_words(paths: Paths, process: str) -> str:
    """The end of a process's log."""
    path = paths.log_of(process)
    lines = _tail(path) if path.exists() else iter(())
    return "\n".join((f"The end of {path}:", *lines))


def _tail(path: Path) -> Iterator[str]:
    yield from path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_WORDS:]


def _lock(state: Path) -> int:
    lock = os.open(Paths(state).lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise WrongState(f"a fabric is running or being started on {state}") from None
    return lock
