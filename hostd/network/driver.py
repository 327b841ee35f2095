"""`Wires` on Linux: one bridge, filtered taps, NAT, DHCP and metadata, all in one network namespace.

Every change computes the whole wanted state and goes to it in an order that never leaves a hole: record, rules, tap, DHCP. What
runs is found again by the marks on it. A guest's traffic needs nothing of this process once it is wired.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from fabric.clock import Clock
from fabric.model.instance import Guest
from fabric.model.network import Port
from fabric.model.network_plan import NetworkPlan
from hostd.core.dhcp import Lease
from hostd.core.faults import FaultCode, fault_text
from hostd.core.ruleset import Plane, Subnet, ruleset, teardown
from hostd.core.tap_names import BRIDGE, TapMark, tap_name
from hostd.driver.base import Interface
from hostd.network.base import NetworkError, Routing, Wiring
from hostd.network.dnsmasq import Dnsmasq
from hostd.network.followed import PLAN_PATIENCE_S, FollowedPlan
from hostd.network.links import Links, Tap
from hostd.network.metadata import MetadataServer
from hostd.network.netns import Namespace
from hostd.network.records import WiringRecords
from hostd.processes import ProgramFailed

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """Where the data plane is and what it may reach.

    `netns` empty is the daemon's own namespace, as on a production host. `guest_cidr` is the host's guest subnet, whose first
    address is the gateway; it may be left empty, as every port says its own. `blocked` are networks guests may not reach.
    """

    state: Path
    netns: str = ""
    bridge: str = BRIDGE
    guest_cidr: str = ""
    blocked: tuple[str, ...] = field(default=())
    dhcp_user: str = "nobody"
    plan_patience_s: float = PLAN_PATIENCE_S


class LinuxWires:
    """`Wires` on one namespace. Needs root; one process at a time."""

    def __init__(self, settings: NetworkSettings, clock: Clock, *, routing: Routing | None = None) -> None:
        self._settings = settings
        self._routing = routing
        self._namespace = Namespace(settings.netns)
        self._links = Links(self._namespace, settings.bridge)
        self._records = WiringRecords(settings.state / "wires")
        self._dnsmasq = Dnsmasq(
            self._namespace, settings.bridge, settings.state / "dhcp", user=settings.dhcp_user
        )
        self._metadata = MetadataServer(self._namespace, settings.bridge, self._guest_at, clock)
        self._wirings: dict[str, Wiring] | None = None
        self._bridged: tuple[Subnet, ...] | None = None
        self._pinned: frozenset[TapMark] = frozenset()
        self._forwards = False
        self._guests: dict[str, Guest] = {}
        self._followed = FollowedPlan()
        self._changing = asyncio.Lock()

    async def prepare(self) -> None:
        async with self._changing:
            with _network_faults("prepare"):
                await self._prepare()

    async def follow(self, plan: NetworkPlan) -> None:
        async with self._changing:
            with self._faults("follow"):
                self._followed.set(plan)

    async def plug(self, wiring: Wiring) -> tuple[Interface, ...]:
        await self._followed.until_it_filters(wiring.guest.ports, self._settings.plan_patience_s)
        async with self._changing:
            with self._faults("plug"):
                wirings = self._known()
                self._refuse_conflicts(wirings, wiring)
                previous = wirings.get(wiring.guest.id)
                if previous != wiring:
                    self._records.write(wiring)
                    wirings[wiring.guest.id] = wiring
                taps = await self._converge()
                await self._remove_other_taps(taps.values(), wiring)
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
                wiring = wirings.get(instance_id)
                if wiring is not None and wiring.placement_epoch <= placement_epoch:
                    self._records.remove(instance_id)
                    del wirings[instance_id]
                if going or wiring is not None:
                    await self._converge()

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
                self._guests |= {port.address: wiring.guest for port in wiring.guest.ports}

    async def plugged(self) -> Mapping[str, int]:
        async with self._changing:
            with _network_faults("plugged"):
                taps = (await self._links.look()).taps
                marks = [tap.mark for tap in taps.values() if tap.mark is not None]
        return {mark.instance_id: mark.placement_epoch for mark in marks}

    async def wired(self, instance_id: str) -> frozenset[str]:
        # Not in turn with what is being changed: every step of every guest asks this.
        with _network_faults("wired"):
            wiring = self._known().get(instance_id)
        return frozenset() if wiring is None else frozenset(port.mac for port in wiring.guest.ports)

    async def close(self) -> None:
        self._dnsmasq.release()
        await self._metadata.close()

    async def dismantle(self) -> None:
        """Remove everything of ours: taps, bridge, rules, DHCP server, records. Not part of `Wires`: for `fabric dev down`.

        Raises NetworkError.
        """
        async with self._changing:
            with _network_faults("dismantle"):
                await self._metadata.close()
                await self._dnsmasq.stop()
                await self._links.remove_taps((await self._links.look()).taps.values())
                await self._links.remove_bridge()
                await self._namespace.run("nft", "-f", "-", stdin=teardown())
                for instance_id in self._known():
                    self._records.remove(instance_id)
                self._wirings = {}
                self._guests = {}
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
        wanted = {mark.tap for wiring in wirings.values() for mark, _ in _ports(wiring)}
        # One that a hypervisor holds stays, filtered by the mark it carries: nothing running is cut for want of a record.
        strays = [tap for name, tap in taps.items() if name not in wanted and not tap.in_use]
        for tap in strays:
            _log.warning("tap.stray", tap=tap.name)
        await self._links.remove_taps(strays)
        self._distrust()
        await self._converge()
        await self._metadata.ensure()

    async def _converge(self) -> Mapping[str, Tap]:
        """Make everything as the wirings say; gives the taps that there were. One program for each kind of thing.

        What this process made is looked at anew in `prepare` and after a failure only: the bridge, and what is pinned for each tap, which
        the one that made it may not have lived to do.
        """
        wirings = self._known()
        subnets = self._subnets(wirings)
        seen = await self._links.look()
        wanted = {mark: port.mtu for wiring in wirings.values() for mark, port in _ports(wiring)}
        names = {mark.tap for mark in wanted}
        kept = [tap.mark for name, tap in seen.taps.items() if name not in names and tap.mark is not None]
        plane = Plane(
            bridge=self._settings.bridge,
            subnets=subnets,
            taps=(*wanted, *kept),
            blocked=self._settings.blocked,
        )
        await self._namespace.run("nft", "-f", "-", stdin=ruleset(plane))
        if not self._forwards and (self._settings.netns or subnets):
            await self._namespace.set_kernel({"net/ipv4/ip_forward": "1"})
            self._forwards = True
        whole = {tap.mark for tap in seen.taps.values()} & self._pinned
        await self._links.ensure(
            seen,
            subnets if subnets != self._bridged else None,
            [(mark, mtu) for mark, mtu in wanted.items() if mark not in whole],
        )
        self._bridged, self._pinned = subnets, frozenset(wanted)
        await self._dnsmasq.ensure(
            subnets,
            (
                Lease(port=port, hostname=wiring.guest.hostname)
                for _, wiring in sorted(wirings.items())
                for port in wiring.guest.ports
            ),
        )
        self._guests = {
            port.address: wiring.guest for wiring in wirings.values() for port in wiring.guest.ports
        }
        return seen.taps

    async def _remove_other_taps(self, taps: Iterable[Tap], wiring: Wiring) -> None:
        """Of `taps`, those of earlier placements of the instance, with ports that it has no more."""
        wanted = {mark.tap for mark, _ in _ports(wiring)}
        await self._links.remove_taps(
            [
                tap
                for tap in taps
                if tap.name not in wanted and tap.mark is not None and tap.mark.instance_id == wiring.guest.id
            ]
        )

    def _known(self) -> dict[str, Wiring]:
        if self._wirings is None:
            self._wirings = {wiring.guest.id: wiring for wiring in self._records.read()}
        return self._wirings

    def _subnets(self, wirings: Mapping[str, Wiring]) -> tuple[Subnet, ...]:
        found = {
            Subnet.of(port.gateway, port.prefix_length)
            for wiring in wirings.values()
            for port in wiring.guest.ports
        }
        if self._settings.guest_cidr:
            network = ipaddress.IPv4Network(self._settings.guest_cidr)
            found.add(Subnet.of(str(network.network_address + 1), network.prefixlen))
        return tuple(
            sorted(found, key=lambda subnet: (int(subnet.network.network_address), int(subnet.gateway)))
        )

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
        self._bridged = None
        self._pinned = frozenset()
        self._forwards = False

    def _guest_at(self, address: str) -> Guest | None:
        return self._guests.get(address)

    @staticmethod
    def _refuse_conflicts(wirings: Mapping[str, Wiring], wiring: Wiring) -> None:
        previous = wirings.get(wiring.guest.id)
        if previous is not None and previous.placement_epoch > wiring.placement_epoch:
            raise _error("a newer placement is wired here")
        wanted = {port.address for port in wiring.guest.ports} | {port.mac for port in wiring.guest.ports}
        for other in wirings.values():
            if other.guest.id != wiring.guest.id and any(
                {port.address, port.mac} & wanted for port in other.guest.ports
            ):
                raise _error("another server here has its address")


def _ports(wiring: Wiring) -> Iterator[tuple[TapMark, Port]]:
    for port in wiring.guest.ports:
        mark = TapMark(
            instance_id=wiring.guest.id,
            placement_epoch=wiring.placement_epoch,
            port_id=port.id,
            mac=port.mac,
            address=port.address,
        )
        yield mark, port


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
