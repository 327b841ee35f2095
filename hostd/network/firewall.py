"""The packet filter of a host, as it is loaded: converges the kernel's tables and connections to `HostFilters`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

import structlog

from fabric.model.firewall import HostFilters
from hostd.core.connections import curtailed, departures, forgotten
from hostd.core.firewall import TABLE, Segment, Tracking, assign_zones, tables, zone_map
from hostd.core.nftables import Table, change, removed, whole
from hostd.network import nfnetlink
from hostd.network.netns import Namespace
from hostd.processes import ProgramFailed

_log = structlog.get_logger(__name__)

_FAMILIES: Final = ("bridge", "inet")
_TRIAL: Final = f"{TABLE}-trial"
# Checked and never loaded: does this kernel know connections, and the bridge's name, in tables of the family bridge?
_TRACKS_IN_BRIDGES: Final = f"""\
add table bridge {_TRIAL}
add chain bridge {_TRIAL} zone {{ type filter hook prerouting priority -300; policy accept; }}
add map bridge {_TRIAL} zones {{ typeof meta ibrname : ct zone; }}
add rule bridge {_TRIAL} zone ct zone set meta ibrname map @zones
add chain bridge {_TRIAL} state {{ type filter hook forward priority 10; policy accept; }}
add rule bridge {_TRIAL} state ct state established accept
"""


class Firewall:
    """The packet filter in one network namespace. Needs root; one process at a time.

    Call `apply` when the bridges are there and before a tap goes up: a tap of ours that no filter knows may neither send nor
    receive. `routed` names bridges of which the host itself is the router. Nothing here has to run for packets to be filtered.
    """

    def __init__(self, namespace: Namespace, *, routed: Iterable[str] = ()) -> None:
        self._namespace = namespace
        self._routed = frozenset(routed)
        self._tracking: Tracking | None = None
        self._zones: dict[str, int] = {}
        self._filters: HostFilters | None = None
        self._tables: tuple[Table, ...] = ()
        self._generation: int | None = None
        self._unchecked: frozenset[str] = frozenset()
        self._departed: frozenset[tuple[str, str]] = frozenset()
        self._fresh: set[int] = set()
        self._led: frozenset[str] = frozenset()
        self._changing = asyncio.Lock()

    @property
    def tracking(self) -> Tracking | None:
        """How this kernel tracks bridged packets; None before the first `apply`."""
        return self._tracking

    async def apply(
        self,
        filters: HostFilters,
        bridges: Mapping[str, str],
        *,
        others: Iterable[str] = (),
        kept: frozenset[str] = frozenset(),
    ) -> None:
        """Make the kernel filter as `filters` say, and have forgotten what they allow no longer. `bridges` is by network id.

        `others` are taps that somebody else filters, and that pass here. `kept` are bridges that nobody made anew since the last call.

        Returns when it is so. Loads only what differs, unless somebody else changed the namespace's nftables since: then all of
        ours anew. Raises ProgramFailed or OSError, after which the next call starts from nothing, and ValueError for filters that
        cannot be said or name a network without a bridge; then nothing has changed.
        """
        async with self._changing:
            missing = {port.network_id for port in filters.ports} - bridges.keys()
            if missing:
                raise ValueError(f"no bridge for the networks {sorted(missing)}")
            if self._tracking is None:
                await self._begin()
            tracking = self._tracking
            assert tracking is not None
            own = [bridge for bridge in bridges.values() if bridge not in self._routed]
            zones = assign_zones(self._zones, own)
            segments = tuple(
                Segment(network_id=network, bridge=bridge, zone=zones.get(bridge, 0))
                for network, bridge in sorted(bridges.items())
            )
            wanted = tables(filters, segments, tracking, others)
            if tracking is Tracking.BR_NETFILTER:
                await self._lead_through_inet(set(bridges.values()) - (kept & self._led))
                self._led = frozenset(bridges.values())
            before, self._filters = self._filters, filters
            if before is None:
                self._unchecked = frozenset(bridges)
            else:
                self._unchecked |= curtailed(before, filters)
                self._departed |= departures(before, filters)
            # Of whoever had a zone before, nothing may be taken for a connection of its new bridge.
            self._fresh |= {zone for bridge, zone in zones.items() if self._zones.get(bridge) != zone}
            try:
                await self._load(wanted)
                self._zones = zones
                await self._forget(filters, segments)
            except BaseException:
                # What is loaded is one or the other, and it is not known which.
                self._generation = None
                raise

    async def intact(self) -> bool:
        """Whether what `apply` loaded last is what is loaded: nobody has changed any table of the namespace since. Raises OSError.

        One question to the kernel, so it may be asked often; when the answer is no, `apply` the same again.
        """
        async with self._changing:
            return self._generation is not None and self._generation == await self._ruleset_generation()

    async def load_beside(self, script: str) -> None:
        """Load a script about tables of ours that are not the filter's, so that it is not taken for somebody else's doing.

        Raises ProgramFailed or OSError.
        """
        async with self._changing:
            seen = await self._ruleset_generation()
            await self._namespace.run("nft", "-f", "-", stdin=script)
            if self._generation == seen and await self._ruleset_generation() == seen + 1:
                self._generation = seen + 1

    async def dismantle(self) -> None:
        """Remove all tables of ours, and none of others. Raises ProgramFailed."""
        async with self._changing:
            await self._namespace.run(
                "nft", "-f", "-", stdin="".join(removed(family, TABLE) for family in _FAMILIES)
            )
            self._filters = None
            self._tables = ()
            self._generation = None

    # -------------------------------------------------------------- what is there

    async def _begin(self) -> None:
        """Find out what the kernel can, what zones the bridges have, and remove what another way of tracking has left."""
        tracking = await self._probe()
        for it in Tracking:
            self._zones |= await self._loaded_zones(it)
        if tracking is Tracking.BRIDGE:
            await self._namespace.run("nft", "-f", "-", stdin=removed("inet", TABLE))
        _log.info("firewall.tracking", by=tracking.value)
        self._tracking = tracking

    async def _probe(self) -> Tracking:
        try:
            await self._namespace.run("nft", "--check", "-f", "-", stdin=_TRACKS_IN_BRIDGES)
        except ProgramFailed:
            # Where it is a module, reading its settings does not load it. Where it is built in there is no module to load.
            with contextlib.suppress(ProgramFailed):
                await self._namespace.run("modprobe", "-q", "br_netfilter")
            if not await self._namespace.inside(nfnetlink.leads_bridges_through_inet):
                raise OSError(
                    "this kernel can track connections neither in bridges (nf_conntrack_bridge) nor through br_netfilter"
                ) from None
            return Tracking.BR_NETFILTER
        return Tracking.BRIDGE

    async def _loaded_zones(self, tracking: Tracking) -> dict[str, int]:
        family, name = zone_map(tracking)
        try:
            listed = await self._namespace.run("nft", "-j", "list", "map", family, TABLE, name)
        except ProgramFailed:
            return {}
        return {
            str(bridge): int(zone)
            for it in json.loads(listed)["nftables"]
            for bridge, zone in it.get("map", {}).get("elem", ())
        }

    async def _ruleset_generation(self) -> int:
        return await self._namespace.inside(nfnetlink.ruleset_generation)

    async def _lead_through_inet(self, bridges: Iterable[str]) -> None:
        """Per bridge, so that the machine's other bridges stay as they are."""
        lines = [
            f"link set dev {bridge} type bridge nf_call_iptables 1 nf_call_ip6tables 1\n"
            for bridge in sorted(set(bridges))
        ]
        if lines:
            await self._namespace.run("ip", "-batch", "-", stdin="".join(lines))

    # -------------------------------------------------------------- changing it

    async def _load(self, wanted: tuple[Table, ...]) -> None:
        """Load what differs. The generation tells whether anybody else was here since, or at the same time."""
        seen = await self._ruleset_generation()
        trusted = self._generation == seen
        script = "".join(map(change, self._tables, wanted)) if trusted else ""
        if trusted and not script:
            return
        self._generation = None
        if not trusted or not await self._changed(script):
            await self._namespace.run("nft", "-f", "-", stdin="".join(map(whole, wanted)))
        self._tables = wanted
        now = await self._ruleset_generation()
        self._generation = now if now == seen + 1 else None

    async def _changed(self, script: str) -> bool:
        """Load a change. False when the kernel refused it, and so did nothing: then the whole is right all the same."""
        try:
            await self._namespace.run("nft", "-f", "-", stdin=script)
        except ProgramFailed as error:
            _log.warning("firewall.change_refused", words=str(error))
            return False
        return True

    async def _forget(self, filters: HostFilters, segments: tuple[Segment, ...]) -> None:
        """After the rules are loaded, or the next packet would make the connection anew."""
        zones = {segment.zone for segment in segments if segment.network_id in self._unchecked}
        choose = partial(forgotten, filters=filters, segments=segments, departed=self._departed)
        cut = 0
        if self._fresh:
            cut += await self._namespace.inside(partial(nfnetlink.forget, self._fresh, iter))
        if zones - self._fresh:
            cut += await self._namespace.inside(partial(nfnetlink.forget, zones - self._fresh, choose))
        if cut:
            _log.info("firewall.forgotten", connections=cut)
        self._fresh = set()
        self._unchecked = frozenset()
        self._departed = frozenset()
