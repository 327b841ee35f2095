"""`Wires` on Linux: filtered taps in the bridges of the hosts' own network and of tenants', all in one network namespace.

Every change computes the whole wanted state and goes to it in an order that never leaves a hole: record, rules, tap, DHCP. What
runs is found again by the marks on it. A guest's traffic needs nothing of this process once it is wired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from fabric.clock import Clock
from fabric.model.network import Port
from fabric.model.network_plan import NetworkPlan
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from hostd.core.addresses import claims
from hostd.core.faults import FaultCode, fault_text
from hostd.core.plan_checks import require_sayable
from hostd.core.tap_names import TapMark, tap_name
from hostd.core.tenant_services import Lodger
from hostd.driver.base import Interface
from hostd.network.base import NetworkError, Routing, Wiring
from hostd.network.followed import FollowedPlan
from hostd.network.host_local import HostLocalNetwork, NetworkSettings
from hostd.network.links import Links, Tap
from hostd.network.netns import Namespace
from hostd.network.records import PlanRecord, WiringRecords
from hostd.network.tenants import Demand, TenantNetworks, TenantTap
from hostd.processes import ProgramFailed

__all__ = ["LinuxWires", "NetworkSettings"]

_log = structlog.get_logger(__name__)


class LinuxWires:
    """`Wires` on one namespace. Needs root; one process at a time. Without `routing` it has no routers."""

    def __init__(
        self,
        settings: NetworkSettings,
        clock: Clock,
        *,
        routing: Routing | None = None,
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> None:
        self._settings = settings
        self._failpoints = failpoints
        namespace = Namespace(settings.netns)
        self._links = Links(namespace, settings.bridge)
        self._tenants = TenantNetworks(
            namespace,
            settings.state / "dhcp-networks",
            clock,
            failpoints,
            dhcp_user=settings.dhcp_user,
            routing=routing,
        )
        self._host_local = HostLocalNetwork(
            settings, namespace, self._links, self._tenants.firewall.load_beside, clock
        )
        self._records = WiringRecords(settings.state / "wires")
        self._plan_record = PlanRecord(settings.state / "network-plan.json")
        self._wirings: dict[str, Wiring] | None = None
        self._plan: NetworkPlan | None = None
        self._told = False
        """Whether the plan was told to this process, and not only kept by an earlier one."""
        self._followed = FollowedPlan()
        self._taps: Mapping[str, Tap] | None = None
        """What was seen last of taps that are not removed since; None where that is not to be believed."""
        self._changing = asyncio.Lock()

    async def prepare(self) -> None:
        async with self._changing:
            with self._faults("prepare"):
                await self._prepare()

    async def follow(self, plan: NetworkPlan) -> None:
        with _network_faults("follow"):
            # Kept first: were it followed and then forgotten, a restart would go back to another. And not in turn: whoever is next, a guest
            # that waited to be plugged perhaps, goes by it already. So it must be one that can be gone by.
            if plan != self._known_plan():
                require_sayable(plan)
                self._plan_record.write(plan)
                self._plan = plan
            self._told = True
        await self._failpoints.reach("hostd.wires.plan_kept")
        async with self._changing:
            with self._faults("follow"):
                if self._taps is None:
                    _, failures = await self._converge()
                else:
                    newest = self._plan or plan
                    failures = await self._tenants.converge(self._demand(newest, self._taps))
                    self._followed.set(newest)
                await self._failpoints.reach("hostd.wires.followed")
            # What could be had is there, and those who wait for it need not wait longer.
            with _network_faults("follow"):
                _raise_any(failures)

    async def plug(self, wiring: Wiring) -> tuple[Interface, ...]:
        while True:
            await self._followed.until_it_filters(wiring.guest.ports, self._settings.plan_patience_s)
            async with self._changing:
                if not self._followed.filters(wiring.guest.ports):
                    continue
                with self._faults("plug"):
                    await self._plug(wiring)
            return tuple(
                Interface(tap=tap_name(port.id), mac=port.mac, mtu=port.mtu) for port in wiring.guest.ports
            )

    async def unplug(self, instance_id: str, placement_epoch: int) -> None:
        async with self._changing:
            with self._faults("unplug"):
                wirings = self._known()
                taps = (await self._links.look()).taps
                going = [
                    tap
                    for tap in taps.values()
                    if tap.mark is not None
                    and tap.mark.instance_id == instance_id
                    and tap.mark.placement_epoch <= placement_epoch
                ]
                await self._links.remove_taps(going)
                await self._failpoints.reach("hostd.wires.untapped")
                wiring = wirings.get(instance_id)
                if wiring is None or wiring.placement_epoch <= placement_epoch:
                    # Known or not: one that cannot be read is nobody's now.
                    self._records.remove(instance_id)
                    wirings.pop(instance_id, None)
                await self._failpoints.reach("hostd.wires.forgotten")
                if going or wiring is not None:
                    await self._converge()
                await self._failpoints.reach("hostd.wires.unplugged")

    async def tell(self, wiring: Wiring) -> None:
        async with self._changing:
            with _network_faults("tell"):
                wirings = self._known()
                previous = wirings.get(wiring.guest.id)
                if (
                    previous is None
                    or previous == wiring
                    or previous.placement_epoch != wiring.placement_epoch
                    or previous.guest.ports != wiring.guest.ports
                ):
                    return
                self._records.write(wiring)
                wirings[wiring.guest.id] = wiring
                self._host_local.tell(wiring.guest)
                self._tenants.tell(wiring.guest)

    async def plugged(self) -> Mapping[str, int]:
        async with self._changing:
            with _network_faults("plugged"):
                taps = (await self._links.look()).taps
                marks = [tap.mark for tap in taps.values() if tap.mark is not None]
                # A plug that was given up may have come as far as its record, and that holds its addresses.
                held = {wiring.guest.id: wiring.placement_epoch for wiring in self._known().values()}
        for mark in marks:
            held[mark.instance_id] = max(mark.placement_epoch, held.get(mark.instance_id, 0))
        return held

    async def wired(self, instance_id: str) -> frozenset[str]:
        # Not in turn with what is being changed: every step of every guest asks this.
        with _network_faults("wired"):
            wiring = self._known().get(instance_id)
        return frozenset() if wiring is None else frozenset(port.mac for port in wiring.guest.ports)

    async def close(self) -> None:
        await self._host_local.close()
        await self._tenants.close()

    async def dismantle(self) -> None:
        """Remove everything of ours: taps, bridges, rules, namespaces, DHCP servers, records. Not part of `Wires`: for `fabric dev down`.

        Raises NetworkError.
        """
        async with self._changing:
            with self._faults("dismantle"):
                await self._links.remove_taps((await self._links.look()).taps.values())
                await self._host_local.dismantle()
                await self._tenants.dismantle()
                for instance_id in self._known():
                    self._records.remove(instance_id)
                self._plan_record.remove()
                self._wirings = {}
                self._plan = None
                self._followed = FollowedPlan()
                self._distrust()

    # -------------------------------------------------------------- converging

    async def _prepare(self) -> None:
        wirings = self._known()
        taps = (await self._links.look()).taps
        for instance_id, wiring in list(wirings.items()):
            # Taps do not survive a reboot of the host, records do; what has no tap must be plugged before it can start.
            if wiring.guest.ports and not any(tap_name(port.id) in taps for port in wiring.guest.ports):
                self._records.remove(instance_id)
                del wirings[instance_id]
        marked = {tap.mark.instance_id for tap in taps.values() if tap.mark is not None}
        self._records.sweep(wirings.keys() | marked)
        wanted = {mark.tap for wiring in wirings.values() for mark, _ in _ports(wiring)}
        # One that a hypervisor holds stays, filtered by the mark it carries: nothing running is cut for want of a record.
        strays = [tap for name, tap in taps.items() if name not in wanted and not tap.in_use]
        for tap in strays:
            _log.warning("tap.stray", tap=tap.name)
        await self._links.remove_taps(strays)
        self._distrust()
        await self._converge()
        await self._host_local.serve()

    async def _plug(self, wiring: Wiring) -> None:
        wirings = self._known()
        _refuse_conflicts(wirings, wiring)
        if wirings.get(wiring.guest.id) != wiring:
            self._records.write(wiring)
            wirings[wiring.guest.id] = wiring
        await self._failpoints.reach("hostd.wires.recorded")
        taps, failures = await self._converge()
        # What is wrong in other networks is theirs, and told to whoever says what is to be followed.
        _raise_any(
            {
                port.network_id: failures[port.network_id]
                for port in wiring.guest.ports
                if port.network_id in failures
            }
        )
        await self._failpoints.reach("hostd.wires.plugged")
        wanted = {mark.tap for mark, _ in _ports(wiring)}
        # Those of earlier placements of the instance, with ports that it has no more.
        others = [
            tap
            for tap in taps.values()
            if tap.name not in wanted and tap.mark is not None and tap.mark.instance_id == wiring.guest.id
        ]
        await self._links.remove_taps(others)
        if others:
            self._taps = {name: tap for name, tap in taps.items() if tap not in others}

    async def _converge(self) -> tuple[Mapping[str, Tap], Mapping[str, Exception]]:
        """Make everything as the wirings and the plan say; gives the taps that there were, and what is wrong with which tenant network."""
        wirings = self._known()
        plan = self._known_plan()
        self._taps = None
        seen = await self._links.look()
        demand = self._demand(plan, seen.taps)
        tenant = {name for name, tap in seen.taps.items() if tap.mark is not None and tap.mark.network_id}
        passing = frozenset({*tenant, *(tap.mark.tap for tap in demand.taps)})
        await self._host_local.converge(seen, wirings, passing)
        failures: Mapping[str, Exception] = {}
        if plan is not None:
            failures = await self._tenants.converge(
                demand, taps_seen=frozenset(name for name in seen.taps if name in passing)
            )
            self._followed.set(plan)
        self._taps = seen.taps
        return seen.taps, failures

    def _demand(self, plan: NetworkPlan | None, seen: Mapping[str, Tap]) -> Demand:
        wirings = self._known().values()
        taps = tuple(
            TenantTap(mark=mark, lodger=Lodger(port=port, hostname=wiring.guest.hostname), guest=wiring.guest)
            for wiring in wirings
            for mark, port in _ports(wiring)
            if port.vni
        )
        marks = [tap.mark for tap in seen.values() if tap.mark is not None]
        used = {tap.mark.network_id for tap in taps} | {mark.network_id for mark in marks}
        others = {mark.tap for mark in marks if not mark.network_id}
        others |= {tap_name(port.id) for each in wirings for port in each.guest.ports if not port.vni}
        return Demand(
            plan=plan or NetworkPlan(),
            told=self._told,
            taps=taps,
            others=frozenset(others),
            used=frozenset(used - {""}),
        )

    def _known(self) -> dict[str, Wiring]:
        if self._wirings is None:
            self._wirings = {wiring.guest.id: wiring for wiring in self._records.read()}
        return self._wirings

    def _known_plan(self) -> NetworkPlan | None:
        if self._plan is None:
            self._plan = self._plan_record.read()
        return self._plan

    @contextmanager
    def _faults(self, step: str) -> Iterator[None]:
        """As `_network_faults`; after one, or cut short, nothing that was seen before is believed."""
        try:
            with _network_faults(step):
                yield
        except BaseException:
            self._distrust()
            raise

    def _distrust(self) -> None:
        """Have everything looked at anew the next time."""
        self._taps = None
        self._host_local.distrust()
        self._tenants.distrust()


def _ports(wiring: Wiring) -> Iterator[tuple[TapMark, Port]]:
    for port in wiring.guest.ports:
        mark = TapMark(
            instance_id=wiring.guest.id,
            placement_epoch=wiring.placement_epoch,
            port_id=port.id,
            mac=port.mac,
            address="" if port.vni else port.address,
            network_id=port.network_id if port.vni else "",
        )
        yield mark, port


def _raise_any(failures: Mapping[str, Exception]) -> None:
    for failure in failures.values():
        raise failure


def _refuse_conflicts(wirings: Mapping[str, Wiring], wiring: Wiring) -> None:
    previous = wirings.get(wiring.guest.id)
    if previous is not None and previous.placement_epoch > wiring.placement_epoch:
        raise _error("a newer placement is wired here")
    wanted = set(claims(wiring.guest.ports))
    for other in wirings.values():
        if other.guest.id != wiring.guest.id and not wanted.isdisjoint(claims(other.guest.ports)):
            raise _error("another server here has its address")


def _error(detail: str = "") -> NetworkError:
    return NetworkError(FaultCode.NETWORK_FAILED, fault_text(FaultCode.NETWORK_FAILED, detail))


@contextmanager
def _network_faults(step: str) -> Iterator[None]:
    """Turn what goes wrong with programs, sockets and values into NetworkErrors; their words go to the log only."""
    try:
        yield
    except (ProgramFailed, OSError, ValueError) as error:
        _log.warning("network.failed", step=step, words=str(error))
        raise _error() from error
