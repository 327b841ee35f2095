"""A control plane with many hosts that have no hardware, all of it real but the hypervisors.

`fabric dev` would start a process for each host, which at a hundred hosts measures Python's start and memory, not ours. So here the
processes of the control plane and one host daemon run as they ship, and the other hosts' daemons share a process (`fake_hosts`), each
with its own certificate, TLS connection, session and journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fabric.client import Client
from fabric.clock import SystemClock
from fabric.server.dev import bootstrap, files, machine, plan, profile
from fabric.server.dev.plan import Kind, Process
from fabric.server.dev.probes import Probes
from fabric.server.dev.topology import API_PORT, Options, Topology, check, draw_up, ports_needed
from fabric.store.etcd import EtcdStore
from tests.bench.measure import Memory, memory

READY_S: Final = 90.0
CELL: Final = "cell1"

UNLIMITED: Final = {
    # What is measured is the work of creates, not our own brakes on one tenant.
    "FABRIC_API__LIMITS__RATE_PER_S": "1000000",
    "FABRIC_API__LIMITS__BURST": "1000000",
    "FABRIC_API__LIMITS__IN_FLIGHT": "100000",
    "FABRIC_API__QUOTA__INSTANCES": "1000000",
    "FABRIC_API__QUOTA__VCPUS": "1000000",
    "FABRIC_API__QUOTA__RAM_MIB": "1000000000",
}


@dataclass(kw_only=True)
class ControlPlane:
    """What runs: processes by name, and the stores' clients with the operator's certificates."""

    topology: Topology
    stores: Mapping[str, EtcdStore]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def pids(self) -> dict[str, int]:
        """Every process by the name it has in tables."""
        return {name: process.pid for name, process in self.processes.items()}

    @property
    def ca(self) -> Path:
        """Whom clients believe."""
        return self.topology.paths.client / "ca.pem"

    @property
    def endpoint(self) -> str:
        """Where the API listens."""
        return f"127.0.0.1:{self.topology.api_port}"

    def log_in(self) -> str:
        """A token of the system administrator."""
        password = self.topology.paths.admin_password.read_text(encoding="ascii").strip()
        with Client(self.endpoint, self.ca) as nobody:
            return nobody.tokens.issue(user="admin", password=password, project="admin").token

    def core_memory(self) -> dict[str, Memory]:
        """What the four servers hold: one of each."""
        names = ("api", "scheduler", f"conductor-{CELL}", f"hostd-{self.topology.hosts[0].name}")
        return {name: memory(self.processes[name].pid) for name in names}


@contextlib.asynccontextmanager
async def control_plane(
    *, hosts: int, host_processes: int = 1, environment: Mapping[str, str] | None = None
) -> AsyncIterator[ControlPlane]:
    """One cell, everything ready; at the end nothing is left of it. All of its processes are given `environment` beside their own."""
    # Sockets below have short names only.
    state = Path(tempfile.gettempdir()) / f"cf-bench-{os.getpid()}"
    options = Options(state=state, hosts=hosts, hypervisor="fake")
    check(options)
    programs = machine.find_programs(options)
    api_port, ports = machine.free_ports(ports_needed(options), API_PORT)
    topology = draw_up(
        options, ports=ports, api_port=api_port, block=200, capacity=machine.share_out(options)
    )
    state.mkdir(mode=0o711)
    try:
        files.write_all(topology, now_ms=SystemClock().now_ms())
        profile.write(topology)
        async with bootstrap.opened(topology) as stores:
            made = ControlPlane(topology=topology, stores=stores, environment=environment or {})
            await _start(made, plan.processes(topology, programs), host_processes)
            yield made
    finally:
        machine.end(lambda: machine.marked(state), patience_s=10)
        shutil.rmtree(state)


async def _start(made: ControlPlane, processes: Sequence[Process], host_processes: int) -> None:
    topology = made.topology
    daemons = [each for each in processes if each.kind is Kind.HOSTD]
    probes = Probes(topology, made.stores)
    try:
        for kind in (Kind.ETCD, Kind.SERVER):
            several = [each for each in processes if each.kind is kind]
            for each in several:
                _spawn(made, each.name, each.argv)
            await _ready(made, probes, several)
            if kind is Kind.ETCD:
                await bootstrap.record(topology, made.stores, SystemClock())
        _spawn(made, daemons[0].name, daemons[0].argv)
        for number in range(host_processes):
            words = (
                *(sys.executable, "-m", "tests.bench.fake_hosts"),
                *(str(topology.paths.topology), str(number + 1), str(host_processes)),
            )
            _spawn(made, f"fake-hosts-{number + 1}", words)
        await _ready(made, probes, daemons)
    finally:
        await probes.close()


def _spawn(made: ControlPlane, name: str, words: Sequence[str]) -> None:
    state = made.topology.state
    with made.topology.paths.log_of(name).open("ab") as output:
        made.processes[name] = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=Path(__file__).resolve().parents[2],
            env={
                "PATH": f"{sysconfig.get_path('scripts')}:{machine.search_path()}",
                "LANG": "C.UTF-8",
                machine.MARK: str(state),
                **UNLIMITED,
                **made.environment,
            },
            start_new_session=True,
        )


async def _ready(made: ControlPlane, probes: Probes, processes: Sequence[Process]) -> None:
    waiting = list(processes)
    try:
        async with asyncio.timeout(READY_S):
            while waiting:
                answers = await asyncio.gather(*(probes.is_ready(each) for each in waiting))
                waiting = [each for each, ready in zip(waiting, answers, strict=True) if not ready]
                dead = [name for name, process in made.processes.items() if process.poll() is not None]
                if dead:
                    raise RuntimeError(f"{dead[0]} ended:\n{_last_words(made, dead[0])}")
                await asyncio.sleep(0.2)
    except TimeoutError:
        names = ", ".join(each.name for each in waiting[:5])
        logs = "\n".join(_last_words(made, name) for name in made.processes)
        raise RuntimeError(f"not ready after {READY_S:.0f} s: {names}\n{logs}") from None


def _last_words(made: ControlPlane, name: str) -> str:
    text = made.topology.paths.log_of(name).read_text(encoding="utf-8", errors="replace")
    return "\n".join([f"{name}:", *text.splitlines()[-10:]])
