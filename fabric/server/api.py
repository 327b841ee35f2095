"""fabric-api: the objects of one process, put together, run, and ended in good order."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.api.conductors import RemoteConductors
from fabric.api.consoles import ConsoleOptions
from fabric.api.service import Administrator, ApiOptions, ApiService
from fabric.clock import Clock, SystemClock
from fabric.config.load import load
from fabric.config.settings import ApiSettings, BootstrapSettings
from fabric.errors import InvalidRequest
from fabric.identity.passwords import Passwords
from fabric.ids import Ids, RandomIds
from fabric.images.blobs import FileBlobs
from fabric.images.core.inspect import ImageLimits
from fabric.model.quota import Charge, NetworkLimits
from fabric.network.core.host_local import default_network
from fabric.observability.audit import Book
from fabric.observability.failpoints import Failpoints, failpoints_from
from fabric.rpc import stages
from fabric.rpc.call import Stage
from fabric.rpc.limits import Limits, LimitSettings
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.server import process
from fabric.server.audit_file import AuditFile
from fabric.server.process import Prepared, store_of, tls_of, until_stopped
from fabric.workers import Threads

if TYPE_CHECKING:
    from fabric.server.web_console import ConsoleDoor

HASHERS = 2
"""Threads that hash passwords: each takes 19 MiB and a tenth of a second, so a flood of logins leaves the rest alone."""

HASHES_WAITING = 16
FILERS = 4
FILES_WAITING = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 2 for settings that are wrong."""
    return process.main("api", "The front door of the fabric.", _prepare, arguments)


def _prepare(path: Path | None) -> Prepared:
    settings = load(ApiSettings, "api", path=path, environment=os.environ)
    options, failpoints = options_of(settings), failpoints_from(os.environ)
    return Prepared(settings.log, lambda: serve(settings, options, failpoints))


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
        reclaim_s=settings.reclaim_s,
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
    """Two ports, people's and the fabric's own, and the browsers' door where there is one."""

    public: RpcServer
    internal: RpcServer
    door: ConsoleDoor | None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """While they are. Calls are welcome when the service is ready, not when a port is open: see `serving`."""
        servers = (self.public, self.internal)
        try:
            for server in servers:
                await server.start(serving=False)
            if self.door is not None:
                await self.door.start()
            yield
        finally:
            doors = [] if self.door is None else [self.door.stop()]
            await asyncio.gather(*(server.stop() for server in servers), *doors)

    async def serving(self) -> None:
        for server in (self.public, self.internal):
            await server.serving(True)


async def serve(settings: ApiSettings, options: ApiOptions, failpoints: Failpoints) -> None:
    """Serve until a signal asks to stop. Raises Bug when an address is taken, WrongState for a store of another schema."""
    clock, ids = SystemClock(), RandomIds()
    hashers = Threads("hash", threads=HASHERS, queue=HASHES_WAITING)
    filers = Threads("file", threads=FILERS, queue=FILES_WAITING)
    audit = AuditFile(settings.audit_path)
    global_store = store_of(settings.global_store, "global", clock)
    cells = {name: store_of(each, name, clock) for name, each in settings.cells.items()}
    conductors = RemoteConductors(tls_of(settings.internal_tls))
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
        await until_stopped(
            service.run(), audit.run(filers), _show_health(service, ports), around=ports.opened()
        )
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
                tls=tls_of(settings.tls),
                reflection=settings.reflection,
                drain_s=settings.drain_s,
            ),
            service.public(),
            public_stages(service, book, limits, clock, ids),
        ),
        internal=RpcServer(
            ServerSettings(
                listen=settings.internal_listen,
                tls=tls_of(settings.internal_tls),
                client_certificates=settings.internal_tls is not None,
                drain_s=settings.drain_s,
            ),
            service.internal(),
            internal_stages(book, clock, ids),
        ),
    )


def public_stages(
    service: ApiService, book: Book, limits: LimitSettings, clock: Clock, ids: Ids
) -> tuple[Stage, ...]:
    """What happens around every call of people and their programs."""
    return (
        stages.report(clock, ids.new_id),
        stages.audit(book),
        stages.deadline,
        stages.welcome(service.ready.is_set),
        stages.authenticate(service.tokens, stages.Doubts(Limits(limits), clock)),
        stages.authorize,
        stages.limit(Limits(limits), clock),
    )


def internal_stages(book: Book, clock: Clock, ids: Ids) -> tuple[Stage, ...]:
    """What happens around every call of other servers of the fabric: an image can be had before the service is ready."""
    return (
        stages.report(clock, ids.new_id),
        stages.audit(book),
        stages.deadline,
        stages.authenticate(None),
        stages.authorize,
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
            tls=tls_of(console.tls or settings.tls),
            origins=console.origins,
            novnc=console.novnc_path,
            most=console.most,
        ),
        service.consoles,
        clock,
    )


async def _show_health(service: ApiService, ports: _Ports) -> None:
    """Let health checks see when the service is ready. From then on it answers, if only that a store is away."""
    await service.ready.wait()
    await ports.serving()
