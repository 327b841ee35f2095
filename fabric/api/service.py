"""fabric-api as one object: every handler, and what keeps them going. It has no state that the stores have not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from fabric.api.blobs import BlobHandlers
from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.consoles import ConsoleHandlers, ConsoleOptions, Consoles
from fabric.api.flavors import FlavorHandlers
from fabric.api.floating_ips import FloatingIpHandlers
from fabric.api.hosts import HostHandlers
from fabric.api.images import ImageHandlers
from fabric.api.instance_events import InstanceEventHandlers
from fabric.api.instance_reads import Conductors
from fabric.api.instances import InstanceHandlers
from fabric.api.keypairs import KeypairHandlers
from fabric.api.network_desk import Desk
from fabric.api.networks import NetworkHandlers
from fabric.api.pages import Pages
from fabric.api.ports import PortHandlers
from fabric.api.projects import ProjectHandlers
from fabric.api.routers import RouterHandlers
from fabric.api.security_groups import SecurityGroupHandlers
from fabric.api.subnets import SubnetHandlers
from fabric.api.tokens import TokenHandlers
from fabric.api.traces import TraceHandlers
from fabric.api.users import UserHandlers
from fabric.api.volumes import VolumeHandlers
from fabric.api.watching import Watching
from fabric.clock import Clock
from fabric.errors import FabricError
from fabric.identity.bootstrap import ensure_administrator
from fabric.identity.directory import Directory
from fabric.identity.login import Login
from fabric.identity.passwords import Passwords
from fabric.identity.tokens import Tokens
from fabric.ids import Ids
from fabric.images.base import Blobs
from fabric.images.core.inspect import ImageLimits
from fabric.images.intake import Intake
from fabric.images.service import keep_swept
from fabric.model.network import Network
from fabric.model.quota import Charge, NetworkLimits
from fabric.network.service import ensure_network
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from fabric.pb.compute.v1 import (
    console_service_pb2,
    flavor_service_pb2,
    host_service_pb2,
    instance_event_service_pb2,
    instance_service_pb2,
    keypair_service_pb2,
)
from fabric.pb.identity.v1 import project_service_pb2, token_service_pb2, user_service_pb2
from fabric.pb.image.v1 import blob_service_pb2, image_service_pb2
from fabric.pb.network.v1 import (
    floating_ip_service_pb2,
    network_service_pb2,
    port_service_pb2,
    router_service_pb2,
    security_group_service_pb2,
    subnet_service_pb2,
    trace_service_pb2,
)
from fabric.pb.volume.v1 import volume_service_pb2
from fabric.quota.ledger import Ledger
from fabric.rpc.call import Bound, bind
from fabric.store.answers import forget_answers
from fabric.store.base import Store
from fabric.store.keys import ANSWERED
from fabric.store.schema import opened

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Administrator:
    """The first system administrator. The password is a secret: it is in no representation of this."""

    user: str
    project: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiOptions:
    """What an operator decides of an API server."""

    default_limit: Charge
    """A new project's quota."""
    network: Network
    """Made when there is no network."""
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    network_limits: NetworkLimits = field(default_factory=NetworkLimits)
    """What every project may have of networks and what belongs to them."""
    administrator: Administrator | None = None
    """Made when there is no user of that name."""
    reclaim_s: float = 0.0
    """Whether deleted servers are kept for a while, to be restored."""
    consoles: ConsoleOptions = field(default_factory=ConsoleOptions)
    sweep_s: float = 600.0
    """How often what has served its time is looked for."""


class ApiService:
    """Every handler of one API server. `run` must be running for lists and creates to be answered."""

    def __init__(
        self,
        global_store: Store,
        cells: Mapping[str, Store],
        *,
        conductors: Conductors,
        blobs: Blobs,
        passwords: Passwords,
        options: ApiOptions,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> None:
        self._store = global_store
        self._cell_stores = dict(cells)
        self._blobs = blobs
        self._passwords = passwords
        self._options = options
        self._clock = clock
        self._ids = ids
        self._catalogue = Catalogue(global_store, clock=clock)
        self._cells = Cells(cells, clock=clock)
        self.ready = asyncio.Event()
        """Set when the global store was reached and holds what a server of ours needs to find there."""
        self.tokens = Tokens(global_store, clock=clock, ids=ids)
        desk = Desk(global_store, limits=options.network_limits, clock=clock, ids=ids, jitter=jitter)
        self.instances = InstanceHandlers(
            catalogue=self._catalogue,
            cells=self._cells,
            ledger=Ledger(global_store, ids=ids, jitter=jitter, failpoints=failpoints),
            desk=desk,
            conductors=conductors,
            pages=Pages(),
            clock=clock,
            ids=ids,
            jitter=jitter,
            failpoints=failpoints,
            reclaim_s=options.reclaim_s,
        )
        self._intake = Intake(global_store, blobs, limits=options.image_limits, clock=clock, jitter=jitter)
        self._images = ImageHandlers(
            global_store, blobs, limits=options.image_limits, clock=clock, ids=ids, jitter=jitter
        )
        self.consoles = Consoles(
            catalogue=self._catalogue,
            cells=self._cells,
            conductors=conductors,
            tokens=self.tokens,
            options=options.consoles,
            clock=clock,
            ids=ids,
        )
        login = Login(Directory(global_store), passwords, self.tokens, clock)
        self._public: tuple[tuple[object, str, object], ...] = (
            (instance_service_pb2, "InstanceService", self.instances),
            (
                instance_event_service_pb2,
                "InstanceEventService",
                InstanceEventHandlers(
                    catalogue=self._catalogue,
                    cells=self._cells,
                    watching=Watching(
                        catalogue=self._catalogue,
                        cells=self._cells,
                        view=self.instances.view,
                        tokens=self.tokens,
                        clock=clock,
                    ),
                ),
            ),
            (console_service_pb2, "ConsoleService", ConsoleHandlers(self.consoles)),
            (
                flavor_service_pb2,
                "FlavorService",
                FlavorHandlers(global_store, clock=clock, ids=ids, jitter=jitter),
            ),
            (
                keypair_service_pb2,
                "KeypairService",
                KeypairHandlers(global_store, clock=clock, ids=ids, jitter=jitter),
            ),
            (host_service_pb2, "HostService", HostHandlers(self._cells, clock=clock, jitter=jitter)),
            (network_service_pb2, "NetworkService", NetworkHandlers(desk)),
            (subnet_service_pb2, "SubnetService", SubnetHandlers(desk)),
            (port_service_pb2, "PortService", PortHandlers(desk)),
            (router_service_pb2, "RouterService", RouterHandlers(desk)),
            (floating_ip_service_pb2, "FloatingIpService", FloatingIpHandlers(desk)),
            (security_group_service_pb2, "SecurityGroupService", SecurityGroupHandlers(desk)),
            (
                trace_service_pb2,
                "TraceService",
                TraceHandlers(desk, servers=self._catalogue, cells=self._cells, conductors=conductors),
            ),
            (image_service_pb2, "ImageService", self._images),
            (
                volume_service_pb2,
                "VolumeService",
                VolumeHandlers(
                    global_store,
                    self._cells,
                    image=self._catalogue.image,
                    clock=clock,
                    ids=ids,
                    jitter=jitter,
                ),
            ),
            (
                project_service_pb2,
                "ProjectService",
                ProjectHandlers(
                    global_store,
                    default_limit=options.default_limit,
                    clock=clock,
                    ids=ids,
                    jitter=jitter,
                ),
            ),
            (
                user_service_pb2,
                "UserService",
                UserHandlers(
                    global_store,
                    passwords=passwords,
                    tokens=self.tokens,
                    clock=clock,
                    ids=ids,
                    jitter=jitter,
                ),
            ),
            (token_service_pb2, "TokenService", TokenHandlers(login, self.tokens)),
        )

    def public(self) -> tuple[Bound, ...]:
        """What people and their programs are served. Raises Bug for a method without a handler or without authz."""
        return tuple(
            bound
            for module, name, handler in self._public
            for bound in bind(module.DESCRIPTOR.services_by_name[name], handler)  # type: ignore[attr-defined]  # generated modules have it
        )

    def internal(self) -> tuple[Bound, ...]:
        """What other servers of the fabric are served."""
        service = blob_service_pb2.DESCRIPTOR.services_by_name["BlobService"]
        return bind(service, BlobHandlers(self._blobs, self._intake))

    async def run(self) -> None:
        """Keep everything going until cancelled.

        Raises:
            ExceptionGroup: of a WrongState, where a store is of a schema that this code does not know; or of an InvalidRequest, where
                what the operator decided cannot be.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._prepare())
            for store in self._cell_stores.values():
                tasks.create_task(opened(store))
            tasks.create_task(self._catalogue.run())
            tasks.create_task(self._cells.run())
            tasks.create_task(self.tokens.run())
            tasks.create_task(self._forget())
            tasks.create_task(self.instances.waiting_images.run())
            tasks.create_task(keep_swept(self._blobs, self._images.used_blobs, every_s=self._options.sweep_s))

    async def _prepare(self) -> None:
        """Make what the first server of a fabric makes; wait for the store as long as it takes."""
        options = self._options
        await opened(self._store)
        await ensure_network(self._store, options.network)
        if options.administrator is not None:
            await ensure_administrator(
                self._store,
                user_name=options.administrator.user,
                project_name=options.administrator.project,
                password=options.administrator.password,
                limit=options.default_limit,
                passwords=self._passwords,
                clock=self._clock,
                ids=self._ids,
            )
        self.ready.set()
        log.info("api.ready", cells=sorted(self._cell_stores))

    async def _forget(self) -> None:
        """Forget answers to request_ids whose time is over (those in cells are their conductors' to forget)."""
        while True:
            await asyncio.sleep(self._options.sweep_s)
            try:
                await forget_answers(self._store, ANSWERED, now_ms=self._clock.now_ms())
            except FabricError as failed:
                log.info("answers.kept", why=failed.message)
