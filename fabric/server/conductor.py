"""fabric-conductor: the objects of one process, put together, run, and ended in good order."""

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
from fabric.conductor.service import ConductorService
from fabric.conductor.settings import ConductorSettings as ServiceSettings
from fabric.config.load import load
from fabric.config.settings import ConductorSettings, StoreSettings, TlsSettings
from fabric.errors import FabricError, Unavailable
from fabric.ids import RandomIds
from fabric.observability import logging
from fabric.rpc import conductor_handlers, stages
from fabric.rpc.blobs import RemoteBlobs
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.rpc.tls import TlsFiles
from fabric.store.etcd.client import EtcdStore
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.schema import open_schema

log = structlog.get_logger()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 2 for settings that are wrong."""
    parser = argparse.ArgumentParser(prog="fabric-conductor", description="The guard of one cell.")
    parser.add_argument("--config", type=Path, help="the settings, a TOML file")
    try:
        settings = load(
            ConductorSettings,
            "conductor",
            path=parser.parse_args(arguments).config,
            environment=os.environ,
        )
    except FabricError as wrong:
        sys.stderr.write(f"fabric-conductor: {wrong.message}\n")
        return 2
    # Before gRPC starts its threads: configuring later can deadlock with them.
    logging.configure(process="conductor", level=settings.log.level, style=settings.log.format)
    try:
        asyncio.run(serve(settings))
    except FabricError as failed:
        log.error("conductor.failed", error=type(failed).__name__, why=failed.message)
        return 1
    return 0


async def serve(settings: ConductorSettings) -> None:
    """Serve until a signal asks to stop. Raises Bug when the address is taken, WrongState for a store of another schema."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopping.set)
    clock, ids = SystemClock(), RandomIds()
    store = EtcdStore(_etcd(settings.store), name=settings.cell, clock=clock)
    blobs = RemoteBlobs(settings.api_endpoints, _tls(settings.tls))
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
            reclaim_s=settings.reclaim_s,
            sweep_s=settings.sweep_s,
        ),
        store,
        clock=clock,
        ids=ids,
        jitter=random.random,
        blobs=blobs,
        images=blobs,
    )
    server = RpcServer(
        ServerSettings(
            listen=settings.listen,
            tls=_tls(settings.tls),
            client_certificates=True,
            reflection=settings.reflection,
            drain_s=settings.drain_s,
        ),
        conductor_handlers.bound(service, settings.cell),
        (stages.report(clock, ids.new_id), stages.deadline, stages.authenticate(None), stages.authorize),
    )
    try:
        await _until_stopped(service, server, store, stopping)
    finally:
        await blobs.close()
        await store.close()


async def _until_stopped(
    service: ConductorService, server: RpcServer, store: EtcdStore, stopping: asyncio.Event
) -> None:
    """Run the service with its server around it, until asked to stop or until the service breaks."""
    running = asyncio.create_task(_run(service, store))
    asked = asyncio.create_task(stopping.wait())
    try:
        await server.start()
        await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
        log.info("conductor.stopping", is_asked=asked.done())
        # First the hosts, each with a word, so that they are with another conductor before this one is gone.
        service.stop()
        await server.stop()
    finally:
        asked.cancel()
        running.cancel()
        await asyncio.gather(running, asked, return_exceptions=True)
    if not running.cancelled() and (broken := running.exception()) is not None:
        raise broken


async def _run(service: ConductorService, store: EtcdStore) -> None:
    await _schema(store)
    await service.run()


async def _schema(store: EtcdStore) -> None:
    """Wait for the store, and check that it is one we can read."""
    while True:
        try:
            await open_schema(store)
        except Unavailable as away:
            log.warning("conductor.store_away", store=store.name, why=away.message)
            await asyncio.sleep(1.0)
        else:
            return


def _etcd(settings: StoreSettings) -> EtcdSettings:
    tls = settings.tls
    return EtcdSettings(
        endpoints=settings.endpoints,
        ca_path=None if tls is None else tls.ca,
        cert_path=None if tls is None else tls.cert,
        key_path=None if tls is None else tls.key,
        prefix=settings.prefix,
    )


def _tls(settings: TlsSettings | None) -> TlsFiles | None:
    if settings is None:
        return None
    return TlsFiles(ca_path=settings.ca, cert_path=settings.cert, key_path=settings.key)
