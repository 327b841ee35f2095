"""The tenant networks of a host: layer 2, packet filter, routers, DHCP and metadata, as the plan and the wired guests want them.

In an order that never leaves a hole: links without guests, filter, then the guests' taps. What is as it should be is not touched: what
this process has done is remembered, and read from the kernel only when it starts, at each audit, and after a failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from fabric.clock import Clock
from fabric.model.instance import Guest
from fabric.model.network_plan import NetworkPlan, PlannedNetwork
from fabric.observability.failpoints import Failpoints
from hostd.core.firewall import link_local
from hostd.core.nftables import removed
from hostd.core.overlay import (
    Overlay,
    TapPort,
    bridge_name,
    kept_of,
    local_networks,
    service_port_name,
    wanted,
)
from hostd.core.overlay_change import BRIDGES_TABLE, change, isolation
from hostd.core.tap_names import TapMark
from hostd.core.tenant_services import (
    Lodger,
    advertises,
    host_prefix,
    service_namespace,
    serving,
    surroundings,
)
from hostd.network.base import Routing
from hostd.network.firewall import Firewall
from hostd.network.netns import Namespace, namespaces, remove_namespace
from hostd.network.overlay import OverlayLinks
from hostd.network.tenant_service import TenantService
from hostd.processes import ProgramFailed

_log = structlog.get_logger(__name__)

ROUTERS: Final = ""
"""What stands for the routers among networks' ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantTap:
    """A guest's port on a tenant network that is wired here."""

    mark: TapMark
    lodger: Lodger
    guest: Guest


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is wanted. `others` are taps that are filtered elsewhere; `used` are networks that a guest here still uses, planned or not.

    `told`: the plan is one that this process was told, so nobody else has been told otherwise since, as far as anybody knows.
    """

    plan: NetworkPlan
    told: bool = False
    taps: tuple[TenantTap, ...] = ()
    others: frozenset[str] = field(default_factory=frozenset)
    used: frozenset[str] = field(default_factory=frozenset)


class TenantNetworks:
    """All of them in one namespace. Methods raise ProgramFailed, OSError or ValueError; one call at a time."""

    def __init__(
        self,
        namespace: Namespace,
        folder: Path,
        clock: Clock,
        failpoints: Failpoints,
        *,
        dhcp_user: str,
        routing: Routing | None,
    ) -> None:
        self._namespace = namespace
        self._folder = folder
        self._clock = clock
        self._failpoints = failpoints
        self._dhcp_user = dhcp_user
        self._routing = routing
        self._links = OverlayLinks(namespace, failpoints)
        self._services: dict[str, TenantService] = {}
        self._have: Overlay | None = None
        self.firewall = Firewall(namespace)

    async def converge(
        self, demand: Demand, *, taps_seen: frozenset[str] | None = None
    ) -> Mapping[str, Exception]:
        """Go there. `taps_seen` are the taps on tenant networks that are there; None where nobody has looked.

        Links and filters are as they must be then. What could not be had beside them is returned: by network what is wrong with its DHCP
        or metadata, under `ROUTERS` what is wrong with a router, under its name a namespace that stays in spite of us. It stands in nobody
        else's way, and is tried again the next time.
        """
        plan = demand.plan
        known, self._have = self._have, None
        if known is None:
            await self.firewall.load_beside(isolation())
            known = await self._links.look()
            for service in self._services.values():
                service.distrust()
        have = known if taps_seen is None else known.seeing_taps(taps_seen)
        planned = {network.id for network in plan.networks}
        local = {network.id for network in local_networks(plan)}
        kept = kept_of(have, demand.used - planned)
        served = {
            network.id: network
            for network in plan.networks
            if network.id in local or network.id in demand.used
        }
        want = wanted(
            plan,
            (TapPort(mark=tap.mark, mtu=tap.lodger.port.mtu) for tap in demand.taps),
            {network_id: self._namespace_of(network_id) for network_id in served},
            kept,
        )
        made = await self._make_services(served)
        have = await self._links.without(have, {service_port_name(network_id) for network_id in made})
        # No tap is made, or touched, before it is filtered.
        first = want.with_taps_of(have)
        linking = change(have, first)
        await self._links.apply(linking)
        await self.firewall.apply(
            plan.filters,
            want.bridges,
            others=demand.others,
            kept=frozenset(want.bridges.values()).difference(linking.made),
        )
        await self._failpoints.reach("hostd.wires.filtered")
        failures: dict[str, Exception] = {}
        if (unrouted := await self._route(plan, planned, told=demand.told)) is not None:
            failures[ROUTERS] = unrouted
        await self._links.apply(change(first, want))
        self._have = want
        failures |= await self._serve_all(plan, served, demand.taps)
        failures |= await self._remove_services({*served, *demand.used})
        return failures

    def tell(self, guest: Guest) -> None:
        """Let metadata speak of a guest as it is now."""
        for service in self._services.values():
            service.tell(guest)

    def distrust(self) -> None:
        """Have everything looked at anew the next time."""
        self._have = None
        if self._routing is not None:
            self._routing.distrust()

    async def close(self) -> None:
        """Stop what only this process serves."""
        for service in self._services.values():
            await service.close()
        if self._routing is not None:
            await self._routing.close()

    async def dismantle(self) -> None:
        """Remove everything of ours."""
        if self._routing is not None:
            await self._routing.dismantle()
        # Links first: those into a namespace go some time after it, and then there is nothing to be sure of.
        there = await self._links.look()
        await self._links.apply(change(there.without(there.taps), Overlay()))
        failures = await self._remove_services(set())
        await self.firewall.dismantle()
        await self._namespace.run("nft", "-f", "-", stdin=removed("inet", BRIDGES_TABLE))
        self._have = None
        for failure in failures.values():
            raise failure

    async def _route(self, plan: NetworkPlan, planned: Iterable[str], *, told: bool) -> Exception | None:
        """Have the routers; what is wrong with one."""
        if self._routing is None:
            return None
        try:
            bridges = {network_id: bridge_name(network_id) for network_id in planned}
            await self._routing.converge(plan, bridges, told=told)
        except (ProgramFailed, OSError, ValueError) as error:
            _log.warning("network.not_routed", words=str(error))
            return error
        await self._failpoints.reach("hostd.wires.routed")
        return None

    # -------------------------------------------------------------- services

    def _namespace_of(self, network_id: str) -> str:
        return service_namespace(self._namespace.identity, network_id)

    def _service(self, network_id: str) -> TenantService:
        if network_id not in self._services:
            self._services[network_id] = TenantService(
                self._namespace_of(network_id),
                self._folder / network_id,
                self._clock,
                dhcp_user=self._dhcp_user,
            )
        return self._services[network_id]

    async def _make_services(self, served: Iterable[str]) -> list[str]:
        """Have their namespaces; gives the networks of which they are new, and have no port yet."""
        made = [network_id for network_id in served if await self._service(network_id).make()]
        if made:
            await self._failpoints.reach("hostd.wires.namespaced")
        return made

    async def _serve_all(
        self, plan: NetworkPlan, served: Mapping[str, PlannedNetwork], taps: Iterable[TenantTap]
    ) -> dict[str, Exception]:
        """Have DHCP and metadata in each network; by network, what is wrong with them."""
        here: dict[str, list[TenantTap]] = {}
        for tap in taps:
            here.setdefault(tap.mark.network_id, []).append(tap)
        failures: dict[str, Exception] = {}
        for network_id, network in served.items():
            try:
                await self._serve(network, here.get(network_id, []), advertise=advertises(plan, network))
            except (ProgramFailed, OSError, ValueError) as error:
                _log.warning("network.not_served", network=network_id, words=str(error))
                failures[network_id] = error
        return failures

    async def _serve(self, network: PlannedNetwork, taps: list[TenantTap], *, advertise: bool) -> None:
        lodgers = [tap.lodger for tap in taps]
        guests = {
            address: tap.guest
            for tap in taps
            for address in (*(it.address for it in tap.lodger.port.addresses), link_local(tap.mark.mac))
        }
        service = self._service(network.id)
        if await service.surround(surroundings(network, lodgers)):
            await self._failpoints.reach("hostd.wires.surrounded")
        if await service.serve(serving(network, lodgers, advertise=advertise), guests):
            await self._failpoints.reach("hostd.wires.served")

    async def _remove_services(self, wanted_ids: set[str]) -> dict[str, Exception]:
        """Of networks that nobody wants: those this process made, and those another one left, by their folder or their namespace.

        Gives what stays in spite of us, and why: by network, or by the namespace's name where that is all there is.
        """
        failures: dict[str, Exception] = {}
        left = self._folders()
        for network_id in sorted((left | self._services.keys()) - wanted_ids):
            with _kept_going(failures, network_id):
                await self._service(network_id).remove()
                del self._services[network_id]
                await self._failpoints.reach("hostd.wires.unserved")
                _log.info("network.services_removed", network=network_id)
        names = {self._namespace_of(network_id) for network_id in wanted_ids | failures.keys()}
        for name in namespaces(host_prefix(self._namespace.identity)):
            if name not in names:
                _log.warning("network.stray_namespace", namespace=name)
                with _kept_going(failures, name):
                    await remove_namespace(name)
        return failures

    def _folders(self) -> set[str]:
        if not self._folder.is_dir():
            return set()
        return {path.name for path in self._folder.iterdir() if path.is_dir()}


@contextmanager
def _kept_going(failures: dict[str, Exception], name: str) -> Iterator[None]:
    """Note what goes wrong with one of several, so that the others have their turn."""
    try:
        yield
    except (ProgramFailed, OSError, ValueError) as error:
        _log.warning("network.not_removed", name=name, words=str(error))
        failures[name] = error
