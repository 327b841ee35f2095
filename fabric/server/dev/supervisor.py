"""The process that keeps the others running: `python -m fabric.server.dev.supervisor STATE LOCK`.

It starts each process when what that one needs is ready, starts it again when it ends unasked, and ends all of them on SIGTERM. It is
the subreaper of everything below: what a killed process leaves behind becomes its child and is reaped. It knows nothing that is not in
the state folder, and it may be killed itself: its children live on, and whoever ends the fabric finds them by their mark.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import structlog

from fabric.clock import Clock, SystemClock
from fabric.deadlines import within
from fabric.errors import FabricError, InvalidRequest, WrongState
from fabric.observability.logging import configure
from fabric.server.dev import bootstrap, control, outside
from fabric.server.dev.machine import MARK, find_programs, search_path
from fabric.server.dev.plan import ENDING, Process, processes
from fabric.server.dev.probes import Probes
from fabric.server.dev.topology import Options, Paths, Topology, load
from fabric.store.etcd import EtcdStore

log = structlog.get_logger()

PROBE_S: Final = 0.1
PAUSE_S: Final = (0.1, 5.0)
"""Before a process that crashed is started again: doubled each time, and from the beginning after a while of peace."""
PEACE_S: Final = 20.0
CRASHES: Final = 12
"""In a row, and it is given up."""

MEMORY: Final = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "65536",
}
"""For glibc's malloc (mallopt(3)): gRPC's threads would each keep an arena, and what a transfer of an image took, for ever."""

_PR_SET_CHILD_SUBREAPER: Final = 36


class Child:
    """One process and what became of it. Its `keep` is the only one that starts it."""

    def __init__(self, process: Process, paths: Paths, clock: Clock) -> None:
        self.process = process
        self.state: control.State = "waiting"
        self.pid = 0
        self.restarts = 0
        self.was_ready = asyncio.Event()
        """It has been ready once: others may start. Set again by nobody."""
        self.settled = asyncio.Event()
        """It is ready, or it is stopped or given up: whoever asked for that may go on."""
        self._paths = paths
        self._clock = clock
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._ended = asyncio.Event()
        self._ended.set()
        self._parked = asyncio.Event()
        self._parked.set()
        self._begun_s = 0.0
        self._crashes = 0
        self._last_end = ""
        self._environment: Mapping[str, str] = {}

    @property
    def status(self) -> control.ProcessStatus:
        return control.ProcessStatus(
            name=self.process.name,
            state=self.state,
            pid=self.pid,
            uptime_s=round(self._clock.boot_s() - self._begun_s, 1) if self.pid else 0.0,
            restarts=self.restarts,
            last_end=self._last_end,
        )

    async def keep(self, probes: Probes) -> None:
        """Have it run for as long as it is wanted, for ever."""
        while True:
            self._parked.set()
            await self._wanted.wait()
            self._parked.clear()
            if not self._spawn():
                continue
            await self._run(probes)
            self.pid = 0
            if not self._wanted.is_set():
                continue
            self.settled.clear()
            log.warning("process.ended", name=self.process.name, how=self._last_end)
            await self._pause()

    async def _run(self, probes: Probes) -> None:
        """From a spawned process to an ended one."""
        while not self._ended.is_set():
            if await probes.is_ready(self.process):
                self.state = "ready"
                log.info("process.ready", name=self.process.name, after_s=self.status.uptime_s)
                self.was_ready.set()
                self.settled.set()
                break
            with contextlib.suppress(TimeoutError):
                async with within(PROBE_S):
                    await self._ended.wait()
        await self._ended.wait()

    async def _pause(self) -> None:
        self._crashes = 1 if self._clock.boot_s() - self._begun_s > PEACE_S else self._crashes + 1
        if self._crashes > CRASHES:
            self._wanted.clear()
            self.state = "failed"
            self.settled.set()
            log.error("process.failed", name=self.process.name, crashes=self._crashes)
            return
        self.restarts += 1
        self.state = "restarting"
        await asyncio.sleep(min(PAUSE_S[0] * 2.0 ** (self._crashes - 1), PAUSE_S[1]))

    def _spawn(self) -> bool:
        environment = {
            "PATH": search_path(),
            "HOME": os.environ.get("HOME", "/root"),
            "LANG": "C.UTF-8",
            **MEMORY,
            MARK: str(self._paths.state),
            **self._environment,
        }
        self._environment = {}
        try:
            with self._paths.log_of(self.process.name).open("ab") as output:
                process = subprocess.Popen(
                    self.process.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as refused:
            self._last_end = f"cannot be started: {refused}"
            self._wanted.clear()
            self.state = "failed"
            self.settled.set()
            return False
        self.pid = process.pid
        # All children are reaped in one place; Popen must not look for this one.
        process.returncode = 0
        self._ended.clear()
        self._begun_s = self._clock.boot_s()
        self.state = "starting"
        return True

    def reaped(self, status: int) -> None:
        """Its process has ended, with this wait status."""
        code = os.waitstatus_to_exitcode(status)
        self._last_end = f"ended with {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        self._ended.set()

    def start(self, environment: Mapping[str, str]) -> None:
        """Want it. Its crashes are forgiven."""
        self._crashes = 0
        self._environment = environment
        if not self._wanted.is_set():
            self.settled.clear()
            self.state = "waiting"
            self._wanted.set()

    async def stop(self, first: int = signal.SIGTERM) -> None:
        """Have it end, and stay so. `first` is the signal that asks; SIGKILL follows where it does not help."""
        self._wanted.clear()
        for number in (first, signal.SIGKILL):
            if not self.runs:
                break
            self.kill(number)
            with contextlib.suppress(TimeoutError):
                async with within(self.process.stop_s):
                    await self._ended.wait()
        await self._parked.wait()
        self.state = "stopped"
        self.settled.set()

    def kill(self, number: int) -> None:
        """Send a signal; one that is stopped is let go on for it, unless that is what was asked."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            if number == signal.SIGTERM:
                os.kill(self.pid, signal.SIGCONT)

    async def until_settled(self) -> None:
        await self.settled.wait()

    @property
    def runs(self) -> bool:
        return not self._ended.is_set()


class Supervisor:
    """All processes of one fabric."""

    def __init__(self, topology: Topology, plan: Iterable[Process], clock: Clock) -> None:
        self._topology = topology
        self._clock = clock
        self._children = {each.name: Child(each, topology.paths, clock) for each in plan}
        self._recorded = asyncio.Event()
        self._led_out = asyncio.Event()
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM, SIGINT or `down`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._done.set)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        server = await asyncio.start_unix_server(self._converse, self._topology.paths.control)
        self._topology.paths.control.chmod(0o600)
        async with bootstrap.opened(self._topology) as stores:
            probes = Probes(self._topology, stores)
            tasks = [
                asyncio.create_task(self._keep(child, probes), name=name)
                for name, child in self._children.items()
            ]
            tasks.append(asyncio.create_task(self._record(stores), name="records"))
            tasks.append(asyncio.create_task(self._lead_out(), name="outside"))
            log.info("supervisor.started", processes=len(self._children))
            await self._done.wait()
            log.info("supervisor.ending")
            for kind in ENDING:
                await asyncio.gather(
                    *(each.stop() for each in self._children.values() if each.process.kind is kind)
                )
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await probes.close()
        server.close()

    async def _keep(self, child: Child, probes: Probes) -> None:
        for name in child.process.after:
            await self._children[name].was_ready.wait()
        if child.process.needs_records:
            await self._recorded.wait()
        await child.keep(probes)

    async def _record(self, stores: Mapping[str, EtcdStore]) -> None:
        for store in self._topology.stores:
            for member in store.members:
                await self._children[member.name].was_ready.wait()
        while not self._recorded.is_set():
            try:
                await bootstrap.record(self._topology, stores, self._clock)
                self._recorded.set()
            except FabricError as error:
                log.warning("records.not_written", reason=error.message)
                await asyncio.sleep(PAUSE_S[0])

    async def _lead_out(self) -> None:
        """Have the external network made, when there is an API to ask for it."""
        await self._children["api"].was_ready.wait()
        while not self._led_out.is_set():
            try:
                # A client of its own, as anybody's: it waits, so it does that in a thread.
                await asyncio.to_thread(outside.ensure, self._topology)
                self._led_out.set()
            except FabricError as error:
                log.warning("outside.not_made", reason=error.message)
                await asyncio.sleep(PROBE_S)

    def _reap(self) -> None:
        """Collect every child that has ended: our own, and those we were left."""
        by_pid = {each.pid: each for each in self._children.values() if each.runs}
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid in by_pid:
                    by_pid[pid].reaped(status)

    # ---------------------------------------------------------------- the control socket

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            try:
                answer = control.said(await self._obey(control.answer_to(await reader.readline())))
            except FabricError as refused:
                answer = control.said(refused)
            writer.write(answer)
            await writer.drain()
            writer.close()

    async def _obey(self, command: control.Command) -> control.FabricStatus:
        if command.verb == "down":
            self._done.set()
        elif command.verb != "status":
            await self._act(command, self._named(command.process))
        return control.FabricStatus(
            supervisor_pid=os.getpid(),
            processes=tuple(each.status for each in self._children.values()),
            has_outside=self._led_out.is_set(),
        )

    async def _act(self, command: control.Command, child: Child) -> None:
        if command.verb == "kill":
            if not child.runs:
                raise WrongState(f"{child.process.name} does not run: {child.status.last_end or child.state}")
            child.kill(command.signal)
            return
        if command.verb in {"stop", "restart"}:
            await child.stop(command.signal)
        if command.verb in {"start", "restart"}:
            child.start(command.environment)
            await child.until_settled()

    def _named(self, name: str) -> Child:
        if name not in self._children:
            raise InvalidRequest(
                f"there is no process {name!r}; there are {', '.join(self._children)}", field="process"
            )
        return self._children[name]


def main(arguments: list[str]) -> int:
    """Supervise the fabric in a state folder. The second argument is the descriptor that holds the folder's lock.

    It is inherited from whoever prepared the folder, so that there is no moment without a holder; it stays open until the end.
    """
    state, lock = Path(arguments[0]), int(arguments[1])
    os.set_inheritable(lock, False)
    topology = load(Paths(state).topology)
    paths = topology.paths
    configure(process="supervisor")
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot become a subreaper")
    programs = find_programs(Options(state=topology.state, hypervisor=topology.hypervisor))
    paths.pid.write_text(f"{os.getpid()}\n", encoding="ascii")
    try:
        asyncio.run(Supervisor(topology, processes(topology, programs), SystemClock()).run())
    finally:
        paths.control.unlink(missing_ok=True)
        paths.pid.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
