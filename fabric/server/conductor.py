"""fabric-conductor: the objects of one process, put together, run, and ended in good order."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fabric.clock import SystemClock
from fabric.conductor.service import ConductorService
from fabric.conductor.settings import ConductorSettings as ServiceSettings
from fabric.config.load import load
from fabric.config.settings import ConductorSettings
from fabric.ids import RandomIds
from fabric.rpc import conductor_handlers, stages
from fabric.rpc.blobs import RemoteBlobs
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.server import process
from fabric.server.process import Prepared, listening, store_of, tls_of, until_stopped
from fabric.store.base import Store
from fabric.store.schema import opened


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 2 for settings that are wrong."""
    return process.main("conductor", "The guard of one cell.", _prepare, arguments)


def _prepare(path: Path | None) -> Prepared:
    settings = load(ConductorSettings, "conductor", path=path, environment=os.environ)
    return Prepared(settings.log, lambda: serve(settings))


async def serve(settings: ConductorSettings) -> None:
    """Serve until a signal asks to stop. Raises Bug when the address is taken, WrongState for a store of another schema."""
    clock, ids = SystemClock(), RandomIds()
    store = store_of(settings.store, settings.cell, clock)
    shared = settings.global_store
    networks = None if shared is None else store_of(shared, "global", clock)
    blobs = RemoteBlobs(settings.api_endpoints, tls_of(settings.tls), jitter=random.random)
    service = ConductorService(
        ServiceSettings(
            cell=settings.cell,
            endpoint=settings.advertise or settings.listen,
            lease_s=settings.session_ttl_s,
            silence_s=settings.session_ttl_s,
            permit_s=settings.permit_s,
            upload_bytes_per_s=settings.upload_bytes_per_s,
            resync_s=settings.snapshot_s,
            shelve_offload_s=settings.shelve_offload_s,
            resize_confirm_s=settings.resize_confirm_s,
            sweep_s=settings.sweep_s,
        ),
        store,
        clock=clock,
        ids=ids,
        jitter=random.random,
        blobs=blobs,
        images=blobs,
        global_store=networks,
    )
    server = RpcServer(
        ServerSettings(
            listen=settings.listen,
            tls=tls_of(settings.tls),
            client_certificates=True,
            reflection=settings.reflection,
            drain_s=settings.drain_s,
        ),
        conductor_handlers.bound(service, settings.cell),
        (stages.report(clock, ids.new_id), stages.deadline, stages.authenticate(None), stages.authorize),
    )
    try:
        await until_stopped(_run(service, store), around=_hosts_served(service, server))
    finally:
        await blobs.close()
        await store.close()
        if networks is not None:
            await networks.close()


@asynccontextmanager
async def _hosts_served(service: ConductorService, server: RpcServer) -> AsyncIterator[None]:
    """The port, and at its end first a word to the hosts, so that they are with another conductor before this one is gone."""
    async with listening(server):
        try:
            yield
        finally:
            service.stop()


async def _run(service: ConductorService, store: Store) -> None:
    await opened(store)
    await service.run()
