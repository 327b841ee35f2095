"""The hosts' own network on one host: a bridge with NAT, DHCP and metadata, for ports with `vni` 0."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fabric.clock import Clock
from fabric.model.instance import Guest
from hostd.core.dhcp import Lease, host_local
from hostd.core.ruleset import Plane, Subnet, ruleset, teardown
from hostd.core.tap_names import BRIDGE, TapMark
from hostd.network.base import Wiring
from hostd.network.dnsmasq import Dnsmasq
from hostd.network.followed import PLAN_PATIENCE_S
from hostd.network.links import Links, Seen
from hostd.network.metadata import MetadataServer
from hostd.network.netns import Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """Where the data plane is and what it may reach.

    `netns` empty is the daemon's own namespace, as on a production host. `guest_cidr` is the host's guest subnet, whose first
    address is the gateway; it may be left empty, as every port says its own. `blocked` are networks guests may not reach.
    `plan_patience_s` is how long a guest with ports on tenant networks waits for a plan that filters them.
    """

    state: Path
    netns: str = ""
    bridge: str = BRIDGE
    guest_cidr: str = ""
    blocked: tuple[str, ...] = field(default=())
    dhcp_user: str = "nobody"
    plan_patience_s: float = PLAN_PATIENCE_S


class HostLocalNetwork:
    """It, in one namespace. `load` loads an nft script. Methods raise ProgramFailed, OSError or ValueError; one call at a time."""

    def __init__(
        self,
        settings: NetworkSettings,
        namespace: Namespace,
        links: Links,
        load: Callable[[str], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._namespace = namespace
        self._links = links
        self._load = load
        self._dnsmasq = Dnsmasq(namespace, settings.state / "dhcp", user=settings.dhcp_user)
        self._metadata = MetadataServer(namespace, settings.bridge, self._guest_at, clock)
        self._bridged: tuple[Subnet, ...] | None = None
        self._pinned: frozenset[TapMark] = frozenset()
        self._forwards = False
        self._guests: dict[str, Guest] = {}

    async def serve(self) -> None:
        """Have metadata served. The bridge must be there."""
        await self._metadata.ensure()

    async def converge(self, seen: Seen, wirings: Mapping[str, Wiring], others: frozenset[str]) -> None:
        """Make everything as the wirings say. One program for each kind of thing. `others` are taps on tenant networks, which pass.

        What this process made is looked at anew in an audit and after a failure only: the bridge, and what is pinned for each tap, which
        the one that made it may not have lived to do.
        """
        subnets = self._subnets(wirings.values())
        _require_apart(subnets, seen)
        wanted = {mark: mtu for wiring in wirings.values() for mark, mtu in _taps(wiring)}
        names = {mark.tap for mark in wanted}
        kept = [
            tap.mark
            for name, tap in seen.taps.items()
            if name not in names and tap.mark is not None and not tap.mark.network_id
        ]
        plane = Plane(
            bridge=self._settings.bridge,
            subnets=subnets,
            taps=(*wanted, *kept),
            blocked=self._settings.blocked,
            others=tuple(sorted(others)),
        )
        await self._load(ruleset(plane))
        if not self._forwards and (self._settings.netns or subnets):
            await self._namespace.set_kernel({"net/ipv4/ip_forward": "1"})
            self._forwards = True
        whole = {tap.mark for tap in seen.taps.values()} & self._pinned
        await self._links.ensure(
            seen,
            subnets if subnets != self._bridged else None,
            [(mark, mtu) for mark, mtu in wanted.items() if mark not in whole],
        )
        if seen.bridge is None:
            # What listened, listened on another bridge of this name, and may not know that it is gone.
            await self._metadata.close()
            await self._dnsmasq.stop()
        self._bridged, self._pinned = subnets, frozenset(wanted)
        leases = (
            Lease(port=port, hostname=wiring.guest.hostname)
            for _, wiring in sorted(wirings.items())
            for port in wiring.guest.ports
            if not port.vni
        )
        await self._dnsmasq.ensure(host_local(self._settings.bridge, subnets, leases))
        self._guests = {
            port.address: wiring.guest
            for wiring in wirings.values()
            for port in wiring.guest.ports
            if not port.vni
        }

    def tell(self, guest: Guest) -> None:
        """Let metadata speak of a guest as it is now."""
        self._guests |= {port.address: guest for port in guest.ports if not port.vni}

    def distrust(self) -> None:
        """Have everything looked at anew the next time."""
        self._bridged = None
        self._pinned = frozenset()
        self._forwards = False

    async def close(self) -> None:
        """Stop what only this process serves."""
        self._dnsmasq.release()
        await self._metadata.close()

    async def dismantle(self) -> None:
        """Remove bridge, rules and DHCP server. The taps must be gone."""
        await self._metadata.close()
        await self._dnsmasq.stop()
        await self._links.remove_bridge()
        await self._namespace.run("nft", "-f", "-", stdin=teardown())
        self._guests = {}
        self.distrust()

    def _subnets(self, wirings: Iterable[Wiring]) -> tuple[Subnet, ...]:
        found = {
            Subnet.of(port.gateway, port.prefix_length)
            for wiring in wirings
            for port in wiring.guest.ports
            if not port.vni
        }
        if self._settings.guest_cidr:
            network = ipaddress.IPv4Network(self._settings.guest_cidr)
            found.add(Subnet.of(str(network.network_address + 1), network.prefixlen))
        return tuple(
            sorted(found, key=lambda subnet: (int(subnet.network.network_address), int(subnet.gateway)))
        )

    def _guest_at(self, address: str) -> Guest | None:
        return self._guests.get(address)


def _require_apart(subnets: Iterable[Subnet], seen: Seen) -> None:
    """Raise ValueError where the host itself is in a subnet for guests: on the bridge that may take the host's own way out, and an address
    of its own may be given to a guest.
    """
    for subnet in subnets:
        for address, interface in sorted(seen.own):
            if ipaddress.IPv4Address(address) in subnet.network:
                raise ValueError(f"{interface} has {address}, which is in {subnet.network}, the guests'")


def _taps(wiring: Wiring) -> Iterable[tuple[TapMark, int]]:
    for port in wiring.guest.ports:
        if not port.vni:
            yield (
                TapMark(
                    instance_id=wiring.guest.id,
                    placement_epoch=wiring.placement_epoch,
                    port_id=port.id,
                    mac=port.mac,
                    address=port.address,
                ),
                port.mtu,
            )
