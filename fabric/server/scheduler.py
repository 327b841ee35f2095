"""fabric-scheduler: the objects of one process, put together, run, and ended in good order."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from fabric.clock import SystemClock
from fabric.config.load import load
from fabric.config.settings import SchedulerSettings, StoreSettings, TlsSettings
from fabric.errors import FabricError
from fabric.ids import RandomIds
from fabric.observability import logging
from fabric.observability.failpoints import failpoints_from
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.rpc.tls import TlsFiles
from fabric.scheduler.ports import Ports
from fabric.scheduler.service import SchedulerService
from fabric.scheduler.settings import SPREAD, PlacementSettings
from fabric.scheduler.settings import SchedulerSettings as ServiceSettings
from fabric.store.etcd.client import EtcdStore
from fabric.store.etcd.settings import EtcdSettings

log = structlog.get_logger()

HEALTH_S = 1.0
"""How often the health that is shown is made to agree with what is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 2 for settings that are wrong."""
    parser = argparse.ArgumentParser(prog="fabric-scheduler", description="Chooses cells and hosts.")
    parser.add_argument("--config", type=Path, help="the settings, a TOML file")
    try:
        settings = load(
            SchedulerSettings,
            "scheduler",
            path=parser.parse_args(arguments).config,
            environment=os.environ,
        )
        failpoints = failpoints_from(os.environ)
    except FabricError as wrong:
        sys.stderr.write(f"fabric-scheduler: {wrong.message}\n")
        return 2
    # Before gRPC starts its threads: configuring later can deadlock with them.
    logging.configure(process="scheduler", level=settings.log.level, style=settings.log.format)
    ports = Ports(
        settings=service_settings(settings),
        clock=SystemClock(),
        ids=RandomIds(),
        jitter=random.random,
        failpoints=failpoints,
    )
    try:
        asyncio.run(serve(settings, ports))
    except FabricError as failed:
        log.error("scheduler.failed", error=type(failed).__name__, why=failed.message)
        return 1
    return 0


def service_settings(settings: SchedulerSettings) -> ServiceSettings:
    """What the operator wrote, as the service takes it: `stack` is every weigher turned round."""
    sign = 1.0 if settings.strategy == "spread" else -1.0
    weights = {**SPREAD, "ram": settings.ram_weight, "vcpu": settings.vcpu_weight}
    placement = PlacementSettings(weights={name: sign * weight for name, weight in weights.items()})
    return ServiceSettings(placement=placement, reread_s=settings.relist_s)


async def serve(settings: SchedulerSettings, ports: Ports) -> None:
    """Schedule until a signal asks to stop. Raises Bug when the health port's address is taken."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopping.set)
    global_store = _store(settings.global_store, "global", ports)
    cells = {name: _store(each, name, ports) for name, each in settings.cells.items()}
    service = SchedulerService(global_store, cells, ports)
    # Nothing but health is served here: work comes from the stores.
    server = RpcServer(
        ServerSettings(
            listen=settings.listen,
            tls=_tls(settings.tls),
            reflection=settings.reflection,
            drain_s=settings.drain_s,
        ),
        (),
        (),
    )
    try:
        await _until_stopped(service, server, stopping)
    finally:
        for store in (global_store, *cells.values()):
            await store.close()


async def _until_stopped(service: SchedulerService, server: RpcServer, stopping: asyncio.Event) -> None:
    """Run the service with its server around it, until asked to stop or until the service breaks."""
    running = asyncio.create_task(service.run())
    asked = asyncio.create_task(stopping.wait())
    showing: asyncio.Task[None] | None = None
    try:
        await server.start()
        showing = asyncio.create_task(_show_health(service, server))
        await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
        log.info("scheduler.stopping", is_asked=asked.done())
    finally:
        # A claim cut off here is found by whoever looks at its build next: nothing needs to be waited for.
        tasks = [task for task in (running, asked, showing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop()
    if not running.cancelled() and (broken := running.exception()) is not None:
        raise broken


async def _show_health(service: SchedulerService, server: RpcServer) -> None:
    """Let health checks see whether servers are being placed."""
    while True:
        await server.serving(service.is_ready)
        await asyncio.sleep(HEALTH_S)


def _store(settings: StoreSettings, name: str, ports: Ports) -> EtcdStore:
    tls = settings.tls
    made = EtcdSettings(
        endpoints=settings.endpoints,
        ca_path=None if tls is None else tls.ca,
        cert_path=None if tls is None else tls.cert,
        key_path=None if tls is None else tls.key,
        prefix=settings.prefix,
    )
    return EtcdStore(made, name=name, clock=ports.clock)


def _tls(settings: TlsSettings | None) -> TlsFiles | None:
    if settings is None:
        return None
    return TlsFiles(ca_path=settings.ca, cert_path=settings.cert, key_path=settings.key)
