"""Routers of tenant networks on a real kernel: a namespace for each, brought to what the plan wants.

What this process has made is remembered, so a plan that says nothing new of a router costs nothing; it is read from the kernel when the
process starts and after a failure. Nothing here has to run for packets to be routed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import structlog

from fabric.model.network_plan import NetworkPlan
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from hostd.core.nftables import change, whole
from hostd.core.router_table import stale
from hostd.core.routing import (
    NAMESPACE_SETTINGS,
    TRANSIT,
    Space,
    Uplink,
    router_mark,
    router_namespace,
    router_prefix,
    space,
    uplinks_needed,
)
from hostd.core.routing_change import PROTOCOL, Seen, held_back, parsed, routing_change, seen_of
from hostd.core.tap_names import MARK
from hostd.network import nfnetlink
from hostd.network.netns import Namespace, add_namespace, is_namespace, namespaces, remove_namespace
from hostd.network.speaker import Speaker
from hostd.processes import ProgramFailed

_log = structlog.get_logger(__name__)


class Routers:
    """`Routing` in one host's namespace. `physical` leads from a physical network to the host's interface, or bridge, that is in it."""

    def __init__(
        self,
        namespace: Namespace,
        physical: Mapping[str, str],
        *,
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> None:
        self._namespace = namespace
        self._physical = physical
        self._failpoints = failpoints
        self._made: dict[str, Space] = {}
        self._speakers: dict[str, Speaker] = {}
        self._uplinks: dict[str, Uplink] = {}
        self._swept = False

    async def converge(self, plan: NetworkPlan, bridges: Mapping[str, str], *, told: bool) -> None:
        """As `Routing` has it. One that cannot be made stands in no other's way; the first failure is raised in the end."""
        host = self._namespace.identity
        wanted = {router.id for router in plan.routers}
        failures: list[Exception] = []
        for router_id in sorted(self._made.keys() - wanted):
            gone = self._made.pop(router_id)
            self._swept = False
            await self._remove(gone.namespace)
        uplinks = await self._look_around(uplinks_needed(plan))
        for router in plan.routers:
            try:
                want = space(router, plan, bridges, uplinks, host=host)
                await self._have(want, told=told)
            except (ProgramFailed, OSError, ValueError) as failure:
                _log.warning("router.failed", router=router.id, words=str(failure))
                self._uplinks.clear()
                failures.append(failure)
        if not self._swept:
            await self._sweep(
                router_prefix(host), {router_namespace(host, router_id) for router_id in wanted}
            )
            self._swept = True
        if failures:
            raise failures[0]

    def distrust(self) -> None:
        """Have everything looked at anew the next time."""
        self._made.clear()
        self._uplinks.clear()
        self._swept = False

    async def dismantle(self) -> None:
        """Remove all of this host's routers."""
        await self._sweep(router_prefix(self._namespace.identity), set())
        self._made.clear()
        await self.close()

    async def close(self) -> None:
        """Stop what only this process says; packets go on."""
        for speaker in self._speakers.values():
            speaker.close()
        self._speakers.clear()

    # -------------------------------------------------------------- one router

    async def _have(self, want: Space, *, told: bool) -> None:
        if self._made.get(want.router_id) != want:
            await self._make(want, told=told)
        if want.problem:
            raise ValueError(want.problem)

    async def _make(self, want: Space, *, told: bool) -> None:
        # Until it is done nothing of it is believed.
        made = self._made.pop(want.router_id, None)
        inside = Namespace(want.namespace)
        if await add_namespace(want.namespace):
            made = None
            self._silence(want.namespace)
        if made is None:
            await _batch(inside, "ip", [f'link set dev lo alias "{router_mark(want.router_id)}" up'])
            await inside.set_kernel(dict(NAMESPACE_SETTINGS))
            await self._failpoints.reach("hostd.router.made")
            seen = await _look(inside)
        else:
            seen = seen_of(made)
        if not told:
            want = held_back(want, seen)
        todo = routing_change(seen, want, joins_anew=made is None)
        await _batch(inside, "ip", todo.removing)
        await _batch(self._namespace, "ip", todo.making)
        await _batch(self._namespace, "bridge", todo.pinning)
        await self._failpoints.reach("hostd.router.linked")
        # A floating IP's translation is there before its address, and goes before it.
        scripts = map(whole, want.tables) if made is None else map(change, made.tables, want.tables)
        script = "".join(scripts)
        if script:
            await inside.run("nft", "-f", "-", stdin=script)
        await self._failpoints.reach("hostd.router.filtered")
        await _batch(inside, "ip", todo.settling)
        await _batch(inside, "bridge", todo.bridge)
        await self._failpoints.reach("hostd.router.settled")
        if made is None or made.translations != want.translations:
            cut = await inside.inside(partial(nfnetlink.forget, {0}, partial(stale, now=want.translations)))
            if cut:
                _log.info("router.connections_cut", router=want.router_id, connections=cut)
        await self._failpoints.reach("hostd.router.cut")
        speaker = self._speakers.setdefault(want.namespace, Speaker(inside))
        await speaker.arrived(want.announced - (made.announced if made is not None else frozenset()))
        if made is None or made.advertisements != want.advertisements or made.links != want.links:
            await speaker.advertise(want.advertisements)
        self._made[want.router_id] = want
        _log.info("router.converged", router=want.router_id, floating_ips=len(want.translations.floating))

    async def _remove(self, namespace: str) -> None:
        """Take a router away. Its interfaces first: those of a namespace go some time after it, and are in the way until then."""
        self._silence(namespace)
        if is_namespace(namespace):
            inside = Namespace(namespace)
            names = [link["ifname"] for link in await _read(inside, "ip", "link", "show")]
            await _batch(inside, "ip", [f"link del dev {name}" for name in names if name != "lo"])
        await self._failpoints.reach("hostd.router.unlinked")
        await remove_namespace(namespace)
        _log.info("router.removed", namespace=namespace)

    async def _sweep(self, prefix: str, kept: set[str]) -> None:
        """Remove the routers that another process left, and those of which making was cut short."""
        for name in namespaces(prefix):
            if name in kept:
                continue
            if is_namespace(name) and not await _is_ours(Namespace(name)):
                _log.warning("router.not_ours", namespace=name)
                continue
            await self._remove(name)

    def _silence(self, namespace: str) -> None:
        speaker = self._speakers.pop(namespace, None)
        if speaker is not None:
            speaker.close()

    # -------------------------------------------------------------- the host

    async def _look_around(self, needed: Iterable[str]) -> Mapping[str, Uplink]:
        """The host's interfaces in these physical networks, as far as it has any."""
        for name in needed:
            interface = self._physical.get(name)
            if interface is None or name in self._uplinks:
                continue
            try:
                (link,) = await _read(self._namespace, "ip", "-details", "link", "show", "dev", interface)
            except ProgramFailed as failure:
                _log.warning("router.no_uplink", physical_network=name, words=str(failure))
                continue
            kind = link.get("linkinfo", {}).get("info_kind", "")
            self._uplinks[name] = Uplink(
                interface=interface, is_bridge=kind == "bridge", mtu=int(link["mtu"])
            )
        return dict(self._uplinks)


async def _is_ours(namespace: Namespace) -> bool:
    """Whether it is a router of ours, or what was to become one: then there is nothing in it yet."""
    links = await _read(namespace, "ip", "-details", "link", "show")
    (loopback,) = (link for link in links if link["ifname"] == "lo")
    alias = loopback.get("ifalias", "")
    return alias.startswith(f"{MARK} router=") or (not alias and len(links) == 1)


async def _look(namespace: Namespace) -> Seen:
    links = await _read(namespace, "ip", "-details", "address", "show")
    has_transit = any(link["ifname"] == TRANSIT for link in links)
    words = ("route", "show", "table", "all", "proto", str(PROTOCOL))
    return parsed(
        links=links,
        routes=[
            *await _read(namespace, "ip", "-4", *words),
            *await _read(namespace, "ip", "-6", *words),
        ],
        rules=await _read(namespace, "ip", "-4", "rule", "show"),
        neighbours=await _read(namespace, "ip", "neigh", "show", "nud", "permanent"),
        remotes=await _read(namespace, "bridge", "fdb", "show", "dev", TRANSIT) if has_transit else [],
    )


async def _read(namespace: Namespace, program: str, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await namespace.run(program, "-json", *words) or b"[]")
    return found


async def _batch(namespace: Namespace, program: str, lines: Iterable[str]) -> None:
    script = "".join(f"{line}\n" for line in lines)
    if script:
        await namespace.run(program, "-batch", "-", stdin=script)
