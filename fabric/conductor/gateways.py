"""Chooses the hosts that routers lead out from, among those of this cell, and chooses again when one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from fabric.conductor import records
from fabric.conductor.core.draft import Draft, ref
from fabric.conductor.core.gateways import Candidate, gateway_of
from fabric.errors import FabricError, Unavailable
from fabric.model.binding import PortBinding, RouterGateway
from fabric.model.host import Host, Session
from fabric.model.network import Network, NetworkPort, Router
from fabric.network.core.picture import HostRef
from fabric.network.follower import NetworkFollower
from fabric.store.base import Store
from fabric.store.keys import ROUTER, ROUTER_GATEWAY, SESSION
from fabric.store.picture import Change, Picture

log = structlog.get_logger()

EVERYTHING_S: Final = 10.0
"""How often every router is looked at, whatever was noticed."""


class Gateways:
    """See the module. Told of changes by whoever keeps the pictures; `run` does the work."""

    def __init__(
        self,
        cell: str,
        global_store: Store,
        follower: NetworkFollower,
        *,
        hosts: Picture[Host],
        sessions: Picture[Session],
        jitter: Callable[[], float],
    ) -> None:
        self._cell = cell
        self._store = global_store
        self._follower = follower
        self._hosts = hosts
        self._sessions = sessions
        self._jitter = jitter
        self._waiting: dict[str, None] = {}
        self._news = asyncio.Event()

    def networks_moved(self, kind: type, changes: Sequence[Change[Any]]) -> None:
        """A router, its gateway, or a port that may be behind one is another."""
        if kind not in {Router, RouterGateway, PortBinding}:
            return
        for change in changes:
            held = change.after or change.before
            match None if held is None else held.value:
                case Router(id=router_id) | RouterGateway(router_id=router_id):
                    self._look_at(router_id)
                case PortBinding() as binding if binding.cell == self._cell:
                    for router_id in sorted(self._behind(binding.port_id)):
                        if self._follower.picture.get(RouterGateway, router_id) is None:
                            self._look_at(router_id)

    def host_moved(self, host: str) -> None:
        """A host's inventory or session is another."""
        for router_id in sorted(self._follower.picture.gateways_on(HostRef(self._cell, host))):
            self._look_at(router_id)
        for router_id in self._orphans():
            self._look_at(router_id)

    def _orphans(self) -> list[str]:
        picture = self._follower.picture
        gateways = picture.of(RouterGateway)
        return [
            each.id
            for each in picture.of(Router).values()
            if each.external_network_id and each.id not in gateways
        ]

    def _behind(self, port_id: str) -> frozenset[str]:
        """The routers that a port is behind."""
        picture = self._follower.picture
        port = picture.get(NetworkPort, port_id)
        subnets = () if port is None else port.fixed_addresses
        return frozenset[str]().union(*(picture.routers_at(each.subnet_id) for each in subnets))

    def _look_at(self, router_id: str) -> None:
        self._waiting[router_id] = None
        self._news.set()

    async def run(self) -> None:
        """Choose for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_looking())
            tasks.create_task(self._keep_choosing())

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(EVERYTHING_S * (0.75 + 0.5 * self._jitter()))
            picture = self._follower.picture
            for each in sorted({*picture.of(Router), *picture.of(RouterGateway)}):
                if self._wanted(each) != picture.get(RouterGateway, each):
                    self._look_at(each)
                # Each weighs every host there is: beats and permits must not wait for all of them together.
                await asyncio.sleep(0)

    async def _keep_choosing(self) -> None:
        while True:
            await self._news.wait()
            router_id = next(iter(self._waiting), None)
            if router_id is None:
                self._news.clear()
                continue
            del self._waiting[router_id]
            try:
                await self._choose(router_id)
            except Unavailable as away:
                log.warning("gateways.store_away", router=router_id, why=away.message)
                self._look_at(router_id)
                await asyncio.sleep(0.2 + 0.8 * self._jitter())
            except FabricError as broken:
                log.error("gateway.broken", router=router_id, why=broken.message)

    def _wanted(self, router_id: str) -> RouterGateway | None:
        """What the pictures say it should be."""
        picture = self._follower.picture
        return self._decide(picture.get(Router, router_id), picture.get(RouterGateway, router_id))

    async def _choose(self, router_id: str) -> None:
        """Write the gateway, if the records read for it say that it is to be another."""
        # Which hosts there are must be known, or every gateway of the cell would look lost.
        if not (self._follower.is_fresh and self._hosts.revision and self._sessions.is_fresh):
            return
        seen = self._follower.picture.get(Router, router_id)
        rows = [ref(ROUTER_GATEWAY, router_id)]
        if seen is not None:
            rows.append(ref(ROUTER, seen.project_id, router_id))
        draft = Draft(await records.read(self._store, rows))
        router = None if seen is None else draft.get(ROUTER, seen.project_id, router_id)
        now = draft.get(ROUTER_GATEWAY, router_id)
        wanted = self._decide(router, now)
        if wanted == now:
            return
        if seen is not None:
            draft.rely_on(ROUTER, seen.project_id, router_id)
        if wanted is None:
            draft.delete(ROUTER_GATEWAY, router_id)
        else:
            draft.put(ROUTER_GATEWAY, router_id, value=wanted)
        if await records.commit(self._store, draft):
            log.info("gateway.chosen", router=router_id, host="" if wanted is None else wanted.host)

    def _decide(self, router: Router | None, now: RouterGateway | None) -> RouterGateway | None:
        picture = self._follower.picture
        network = None if router is None else picture.get(Network, router.external_network_id)
        behind = frozenset[HostRef]() if router is None else self._hosts_behind(router)
        candidates = [
            Candidate(
                host=held.value,
                session=self._session(held.value.name),
                is_behind=HostRef(self._cell, held.value.name) in behind,
            )
            for held in self._hosts.entries.values()
        ]
        return gateway_of(router, network, now, candidates, cell=self._cell)

    def _hosts_behind(self, router: Router) -> frozenset[HostRef]:
        picture = self._follower.picture
        found = (picture.hosts_with(each.network_id) for each in router.interfaces)
        return frozenset[HostRef]().union(*found)

    def _session(self, host: str) -> Session | None:
        held = self._sessions.entries.get(SESSION.at(host))
        return None if held is None else held.value
