"""Many host daemons in one process: `python -m tests.bench.fake_hosts TOPOLOGY PART PARTS`, for `control_plane`.

Each is the daemon that ships, with its own certificate, channel, session and SQLite journal; only its machine is pretended. The first
host of the topology is left out: that one runs as a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fabric.clock import SystemClock
from fabric.config.load import load as load_settings
from fabric.config.settings import HostdSettings
from fabric.model.network_plan import NetworkPlan
from fabric.observability import logging
from fabric.rpc.tls import TlsFiles
from fabric.server.dev.topology import HostTopology, Topology, load
from hostd.commands.journal_sqlite import SqliteJournal
from hostd.driver.fake import INSTANT, FakeDriver, FakeMachine
from hostd.images.fake import FakeDisks
from hostd.network.fake import FakeWires
from hostd.rpc.dialer import GrpcDialer
from hostd.service import HostDaemon
from hostd.settings import HostSettings, Timers
from hostd.volumes.fake import FakeVolumes


class TellingWires(FakeWires):
    """Wires that write down, in a file that all hosts share, when they have followed a plan, and how many rules that has."""

    def __init__(self, machine: FakeMachine, path: Path | None) -> None:
        super().__init__(machine)
        self._name = machine.name
        self._path = path

    async def follow(self, plan: NetworkPlan) -> None:
        await super().follow(plan)
        if self._path is not None:
            _write_down(self._path, self._name, sum(len(group.rules) for group in plan.filters.groups))


def _write_down(path: Path, host: str, rules: int) -> None:
    # Appended in one write, which no other host's line gets into.
    with path.open("ab", buffering=0) as file:
        file.write(f"{host} {time.monotonic()} {rules}\n".encode())


async def _serve(topology: Topology, host: HostTopology) -> None:
    settings = load_settings(
        HostdSettings, "hostd", path=topology.paths.settings_of(f"hostd-{host.name}"), environment={}
    )
    assert settings.tls is not None
    settings.state_path.mkdir(parents=True, exist_ok=True)
    followed = os.environ.get("FABRIC_BENCH_FOLLOWED")
    clock = SystemClock()
    # It takes no time: what is measured is everything but the hypervisor.
    machine = FakeMachine(host.name, delays=INSTANT)
    dialer = GrpcDialer(
        TlsFiles(ca_path=settings.tls.ca, cert_path=settings.tls.cert, key_path=settings.tls.key)
    )
    daemon = HostDaemon(
        HostSettings(
            host=host.name,
            conductors=settings.conductors,
            spawn_concurrency=settings.spawns,
            timers=Timers(beat_s=settings.beat_s, audit_s=settings.audit_s),
        ),
        clock=clock,
        journal=SqliteJournal(settings.state_path / "journal.sqlite"),
        driver=FakeDriver(machine),
        disks=FakeDisks(machine),
        volumes=FakeVolumes(machine),
        wires=TellingWires(machine, Path(followed) if followed else None),
        dialer=dialer,
        boot_id=f"boot-{host.name}",
        jitter=random.random,
    )
    try:
        await daemon.run()
    finally:
        await dialer.close()


async def _all(topology: Topology, hosts: Sequence[HostTopology]) -> None:
    serving = asyncio.gather(*(_serve(topology, host) for host in hosts))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main() -> None:
    """Run until SIGTERM."""
    path, part, parts = sys.argv[1:]
    logging.configure(process=f"fake-hosts/{part}", level="warning", style="json")
    topology = load(Path(path))
    asyncio.run(_all(topology, topology.hosts[1:][int(part) - 1 :: int(parts)]))


if __name__ == "__main__":
    main()
