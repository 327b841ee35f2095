"""hostd: the objects of one host's daemon, put together from its settings, run, and ended in good order."""

from __future__ import annotations

import fabric.observability.lean  # noqa: F401 - before anything below imports structlog

# isort: split
import argparse
import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import structlog

from fabric.clock import Clock, SystemClock
from fabric.config.load import load
from fabric.config.settings import HostdSettings
from fabric.errors import FabricError, InvalidRequest
from fabric.observability import lean, logging
from fabric.observability.failpoints import Failpoints, failpoints_from
from fabric.rpc.tls import TlsFiles, proven
from hostd.commands.journal_sqlite import SqliteJournal
from hostd.driver.registry import MACHINES, Machine, MachineSettings
from hostd.rpc.dialer import GrpcDialer
from hostd.service import HostDaemon
from hostd.settings import HostSettings, Timers

log = structlog.get_logger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_ACCELERATORS: Final = {"auto": "auto", "kvm": "kvm", "tcg": "qemu"}
"""Our words for what executes guests, and libvirt's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; guests run on. Returns the exit code: 2 for settings that are wrong."""
    parser = argparse.ArgumentParser(prog="hostd", description="The daemon on every host of the fabric.")
    parser.add_argument("--config", type=Path, help="the settings, a TOML file")
    try:
        path = parser.parse_args(arguments).config
        settings = load(HostdSettings, "hostd", path=path, environment=os.environ)
        tls, host = _identity(settings)
        failpoints_from(os.environ)
    except FabricError as wrong:
        sys.stderr.write(f"hostd: {wrong.message}\n")
        return 2
    # Before gRPC starts its threads: configuring later can deadlock with them.
    logging.configure(process=f"hostd/{host}", level=settings.log.level, style=settings.log.format)
    try:
        asyncio.run(serve(settings, host, tls))
    except (FabricError, OSError, sqlite3.Error) as failed:
        log.error("hostd.failed", error=type(failed).__name__, why=str(failed))
        return 1
    return 0


def _identity(settings: HostdSettings) -> tuple[TlsFiles, str]:
    """The host's certificate, and the name it proves: a host has no other name. Raises InvalidRequest."""
    if settings.tls is None:
        raise InvalidRequest("a host is known by its certificate: set [tls] ca, cert and key", field="tls")
    files = TlsFiles(ca_path=settings.tls.ca, cert_path=settings.tls.cert, key_path=settings.tls.key)
    try:
        host = proven(files.cert_path.read_bytes()).host
    except (OSError, ValueError) as unread:
        raise InvalidRequest(f"cannot read the certificate {files.cert_path}", field="tls.cert") from unread
    if not host:
        raise InvalidRequest(
            f"{files.cert_path} is not a host's certificate: its URI must be spiffe://…/cell/CELL/host/NAME",
            field="tls.cert",
        )
    return files, host


async def serve(settings: HostdSettings, host: str, tls: TlsFiles) -> None:
    """Run the daemon until a signal asks to stop. Raises sqlite3.OperationalError where another daemon has the journal."""
    clock = SystemClock()
    settings.state_path.mkdir(mode=0o755, parents=True, exist_ok=True)
    failpoints = failpoints_from(os.environ)
    machine = _machine(settings, host, clock, failpoints)
    dialer = GrpcDialer(tls)
    daemon = HostDaemon(
        HostSettings(
            host=host,
            conductors=settings.conductors,
            agent_version=metadata.version("cellfabric"),
            spawn_concurrency=settings.spawns,
            timers=Timers(beat_s=settings.beat_s, audit_s=settings.audit_s),
        ),
        clock=clock,
        journal=SqliteJournal(settings.state_path / "journal.sqlite"),
        driver=machine.driver,
        disks=machine.disks,
        volumes=machine.volumes,
        shared=machine.shared,
        wires=machine.wires,
        dialer=dialer,
        boot_id=_BOOT_ID.read_text(encoding="ascii").strip(),
        jitter=random.random,
        failpoints=failpoints,
    )
    running = asyncio.create_task(daemon.run(), name="hostd")
    giving_back = asyncio.create_task(lean.give_back())
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, running.cancel)
    log.info("hostd.started", host=host, conductors=settings.conductors, driver=settings.driver)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        giving_back.cancel()
        await dialer.close()
        log.info("hostd.stopped")


def _machine(settings: HostdSettings, host: str, clock: Clock, failpoints: Failpoints) -> Machine:
    return MACHINES[settings.driver](
        MachineSettings(
            host=host,
            state=settings.state_path,
            libvirt_uri=settings.libvirt_uri,
            accelerator=_ACCELERATORS[settings.accelerator],
            netns=settings.netns,
            physical=settings.network.physical,
            blocked_cidrs=tuple(map(str, settings.network.blocked_cidrs)),
            shared_volumes=_shared(settings),
        ),
        clock,
        failpoints,
    )


def _shared(settings: HostdSettings) -> dict[str, Path]:
    shared = settings.shared_volumes
    return {} if shared is None else {shared.name: shared.path}
