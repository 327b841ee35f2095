"""fabric-api: the objects of one process, put together, run, and ended in good order."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from fabric.api.conductors import RemoteConductors
from fabric.api.consoles import ConsoleOptions
from fabric.api.service import Administrator, ApiOptions, ApiService
from fabric.clock import SystemClock
from fabric.config.load import load
from fabric.config.settings import ApiSettings, BootstrapSettings, StoreSettings, TlsSettings
from fabric.errors import FabricError, InvalidRequest
from fabric.identity.passwords import Passwords
from fabric.ids import RandomIds
from fabric.images.blobs import FileBlobs
from fabric.images.core.inspect import ImageLimits
from fabric.model.quota import Charge, NetworkLimits
from fabric.network.core.host_local import default_network
from fabric.observability import logging
from fabric.observability.audit import Book
from fabric.observability.failpoints import Failpoints, failpoints_from
from fabric.rpc import stages
from fabric.rpc.limits import Limits, LimitSettings
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.rpc.tls import TlsFiles
from fabric.server.audit_file import AuditFile
from fabric.store.etcd.client import EtcdStore
from fabric.store.etcd.settings import EtcdSettings
from fabric.workers import Threads

if TYPE_CHECKING:
    from fabric.server.web_console import ConsoleDoor

log = structlog.get_logger()

HASHERS = 2
"""Threads that hash passwords: each takes 19 MiB and a tenth of a second, so a flood of logins leaves the rest alone."""

HASHES_WAITING = 16
FILERS = 4
FILES_WAITING = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 2 for settings that are wrong."""
    parser = argparse.ArgumentParser(prog="fabric-api", description="The front door of the fabric.")
    parser.add_argument("--config", type=Path, help="the settings, a TOML file")
    try:
        settings = load(ApiSettings, "api", path=parser.parse_args(arguments).config, environment=os.environ)
        options = options_of(settings)
        failpoints = failpoints_from(os.environ)
    except FabricError as wrong:
        sys.stderr.write(f"fabric-api: {wrong.message}\n")
        return 2
    # Before gRPC starts its threads: configuring later can deadlock with them.
    logging.configure(process="api", level=settings.log.level, style=settings.log.format)
    try:
        asyncio.run(serve(settings, options, failpoints))
    except FabricError as failed:
        log.error("api.failed", error=type(failed).__name__, why=failed.message)
        return 1
    return 0


def options_of(settings: ApiSettings) -> ApiOptions:
    """What the operator wrote, as the service takes it. Raises InvalidRequest, naming the setting."""
    network, quota, images = settings.network, settings.quota, settings.images
    networks = settings.network_quota
    return ApiOptions(
        default_limit=Charge(
            instances=quota.instances,
            vcpus=quota.vcpus,
            ram_mib=quota.ram_mib,
            volumes=quota.volumes,
            volume_gib=quota.volume_gib,
        ),
        network=default_network(
            network_id=RandomIds().new_id(),
            name=network.name,
            mtu=network.mtu,
            dns_servers=network.dns_servers,
            now_ms=SystemClock().now_ms(),
        ),
        network_limits=NetworkLimits(
            networks=networks.networks,
            subnets=networks.subnets,
            ports=networks.ports,
            routers=networks.routers,
            floating_ips=networks.floating_ips,
            security_groups=networks.security_groups,
        ),
        image_limits=ImageLimits(max_bytes=images.max_bytes, max_virtual_bytes=images.max_virtual_bytes),
        administrator=None if settings.bootstrap is None else _administrator(settings.bootstrap),
        consoles=ConsoleOptions(
            idle_s=settings.console.idle_s,
            longest_s=settings.console.longest_s,
            url=_console_url(settings),
        ),
        soft_delete=settings.soft_delete,
        sweep_s=images.sweep_s,
    )


def _administrator(settings: BootstrapSettings) -> Administrator:
    try:
        password = settings.password_path.read_text().strip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise InvalidRequest(
            f"bootstrap.password_path: {settings.password_path} cannot be read",
            field="bootstrap.password_path",
        ) from None
    return Administrator(user=settings.user, project=settings.project, password=password)


@dataclass(frozen=True, slots=True)
class _Ports:
    """Two ports: people's, and the fabric's own."""

    public: RpcServer
    internal: RpcServer
    door: ConsoleDoor | None

    async def start(self) -> None:
        for server in (self.public, self.internal):
            # Calls are welcome when the service is ready, not when the port is open.
            await server.start(serving=False)
        if self.door is not None:
            await self.door.start()

    async def serving(self) -> None:
        for server in (self.public, self.internal):
            await server.serving(True)

    async def stop(self) -> None:
        doors = [] if self.door is None else [self.door.stop()]
        await asyncio.gather(self.public.stop(), self.internal.stop(), *doors)


async def serve(settings: ApiSettings, options: ApiOptions, failpoints: Failpoints) -> None:
    """Serve until a signal asks to stop. Raises Bug when an address is taken, WrongState for a store of another schema."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopping.set)
    clock, ids = SystemClock(), RandomIds()
    hashers = Threads("hash", threads=HASHERS, queue=HASHES_WAITING)
    filers = Threads("file", threads=FILERS, queue=FILES_WAITING)
    audit = AuditFile(settings.audit_path)
    global_store = _store(settings.global_store, "global", clock)
    cells = {name: _store(each, name, clock) for name, each in settings.cells.items()}
    conductors = RemoteConductors(_tls(settings.internal_tls))
    try:
        service = ApiService(
            global_store,
            cells,
            conductors=conductors,
            blobs=FileBlobs(
                settings.blob_path,
                workers=filers,
                clock=clock,
                ids=ids,
                total_bytes=settings.images.total_bytes,
                uploads=settings.images.uploads,
            ),
            passwords=Passwords(hashers),
            options=options,
            clock=clock,
            ids=ids,
            jitter=random.random,
            failpoints=failpoints,
        )
        ports = _ports(settings, service, Book(audit, clock, digest=audit.digest), clock, ids)
        await _until_stopped(service, ports, audit, filers, stopping)
    finally:
        await conductors.close()
        for store in (global_store, *cells.values()):
            await store.close()
        audit.close()
        hashers.close()
        filers.close()


def _ports(
    settings: ApiSettings, service: ApiService, book: Book, clock: SystemClock, ids: RandomIds
) -> _Ports:
    limits = LimitSettings(
        rate_per_s=settings.limits.rate_per_s,
        burst=settings.limits.burst,
        in_flight=settings.limits.in_flight,
    )
    return _Ports(
        door=_door(settings, service, clock),
        public=RpcServer(
            ServerSettings(
                listen=settings.listen,
                tls=_tls(settings.tls),
                reflection=settings.reflection,
                drain_s=settings.drain_s,
            ),
            service.public(),
            (
                stages.report(clock, ids.new_id),
                stages.audit(book),
                stages.deadline,
                stages.authenticate(service.tokens),
                stages.authorize,
                stages.limit(Limits(limits), clock),
            ),
        ),
        internal=RpcServer(
            ServerSettings(
                listen=settings.internal_listen,
                tls=_tls(settings.internal_tls),
                client_certificates=settings.internal_tls is not None,
                drain_s=settings.drain_s,
            ),
            service.internal(),
            (
                stages.report(clock, ids.new_id),
                stages.audit(book),
                stages.deadline,
                stages.authenticate(None),
                stages.authorize,
            ),
        ),
    )


def _console_url(settings: ApiSettings) -> str:
    """Where browsers find consoles; empty where they do not."""
    console = settings.console
    scheme = "http" if console.tls is None and settings.tls is None else "https"
    return (console.url or f"{scheme}://{console.listen}") if console.listen else ""


def _door(settings: ApiSettings, service: ApiService, clock: SystemClock) -> ConsoleDoor | None:
    console = settings.console
    if not console.listen:
        return None
    # Imported where it is wanted: a fabric without browsers does without its memory.
    from fabric.server.web_console import ConsoleDoor, DoorSettings

    return ConsoleDoor(
        DoorSettings(
            listen=console.listen,
            url=_console_url(settings),
            tls=_tls(console.tls or settings.tls),
            origins=console.origins,
            novnc=console.novnc_path,
            most=console.most,
        ),
        service.consoles,
        clock,
    )


async def _until_stopped(
    service: ApiService, ports: _Ports, audit: AuditFile, filers: Threads, stopping: asyncio.Event
) -> None:
    """Run the service with its ports around it, until asked to stop or until the service breaks."""
    running = asyncio.create_task(service.run())
    asked = asyncio.create_task(stopping.wait())
    others: list[asyncio.Task[None]] = [asyncio.create_task(audit.run(filers))]
    try:
        await ports.start()
        others.append(asyncio.create_task(_show_health(service, ports)))
        await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
        log.info("api.stopping", is_asked=asked.done())
    finally:
        # First the calls under way, while everything they need still runs.
        await ports.stop()
        tasks = (running, asked, *others)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not running.cancelled() and (broken := running.exception()) is not None:
        raise _first(broken)


async def _show_health(service: ApiService, ports: _Ports) -> None:
    """Let health checks see when the service is ready. From then on it answers, if only that a store is away."""
    await service.ready.wait()
    await ports.serving()


def _first(error: BaseException) -> BaseException:
    """What broke a group of tasks, without the group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _store(settings: StoreSettings, name: str, clock: SystemClock) -> EtcdStore:
    tls = settings.tls
    made = EtcdSettings(
        endpoints=settings.endpoints,
        ca_path=None if tls is None else tls.ca,
        cert_path=None if tls is None else tls.cert,
        key_path=None if tls is None else tls.key,
        prefix=settings.prefix,
    )
    return EtcdStore(made, name=name, clock=clock)


def _tls(settings: TlsSettings | None) -> TlsFiles | None:
    if settings is None:
        return None
    return TlsFiles(ca_path=settings.ca, cert_path=settings.cert, key_path=settings.key)
