"""fabric-scheduler: the objects of one process, put together, run, and ended in good order."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from pathlib import Path

from fabric.clock import SystemClock
from fabric.config.load import load
from fabric.config.settings import SchedulerSettings
from fabric.ids import RandomIds
from fabric.observability.failpoints import failpoints_from
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.scheduler.ports import Ports
from fabric.scheduler.service import SchedulerService
from fabric.scheduler.settings import SPREAD, PlacementSettings
from fabric.scheduler.settings import SchedulerSettings as ServiceSettings
from fabric.server import process
from fabric.server.process import Prepared, listening, store_of, tls_of, until_stopped

HEALTH_S = 1.0
"""How often the health that is shown is made to agree with what is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 2 for settings that are wrong."""
    return process.main("scheduler", "Chooses cells and hosts.", _prepare, arguments)


def _prepare(path: Path | None) -> Prepared:
    settings = load(SchedulerSettings, "scheduler", path=path, environment=os.environ)
    ports = Ports(
        settings=service_settings(settings),
        clock=SystemClock(),
        ids=RandomIds(),
        jitter=random.random,
        failpoints=failpoints_from(os.environ),
    )
    return Prepared(settings.log, lambda: serve(settings, ports))


def service_settings(settings: SchedulerSettings) -> ServiceSettings:
    """What the operator wrote, as the service takes it: `stack` is every weigher turned round."""
    sign = 1.0 if settings.strategy == "spread" else -1.0
    weights = {**SPREAD, "ram": settings.ram_weight, "vcpu": settings.vcpu_weight}
    placement = PlacementSettings(weights={name: sign * weight for name, weight in weights.items()})
    return ServiceSettings(placement=placement, reread_s=settings.relist_s)


async def serve(settings: SchedulerSettings, ports: Ports) -> None:
    """Schedule until a signal asks to stop. Raises Bug when the health port's address is taken."""
    global_store = store_of(settings.global_store, "global", ports.clock)
    cells = {name: store_of(each, name, ports.clock) for name, each in settings.cells.items()}
    service = SchedulerService(global_store, cells, ports)
    # Nothing but health is served here: work comes from the stores.
    server = RpcServer(
        ServerSettings(
            listen=settings.listen,
            tls=tls_of(settings.tls),
            reflection=settings.reflection,
            drain_s=settings.drain_s,
        ),
        (),
        (),
    )
    try:
        # A claim that is cut off is found by whoever looks at its build next: nothing needs to be waited for.
        await until_stopped(service.run(), _show_health(service, server), around=listening(server))
    finally:
        for store in (global_store, *cells.values()):
            await store.close()


async def _show_health(service: SchedulerService, server: RpcServer) -> None:
    """Let health checks see whether servers are being placed."""
    while True:
        await server.serving(service.is_ready)
        await asyncio.sleep(HEALTH_S)
