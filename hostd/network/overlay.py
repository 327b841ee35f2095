"""Layer 2 of tenant networks in a namespace: read from the kernel as an `Overlay`, changed by ip and bridge in batches."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from fabric.observability.failpoints import Failpoints
from hostd.core.overlay import (
    BRIDGE_PREFIX,
    SERVICE_PREFIX,
    TUNNEL_PREFIX,
    Bridge,
    Link,
    Overlay,
    ServicePort,
    TapPort,
    Tunnel,
    network_of,
)
from hostd.core.overlay_change import Change, bridge_settings
from hostd.core.ruleset import TUNNEL_PORT
from hostd.core.tap_names import TAP_PREFIX, parse_alias
from hostd.network.netns import Namespace
from hostd.processes import ProgramFailed

_KINDS: Final = {BRIDGE_PREFIX: "bridge", TUNNEL_PREFIX: "vxlan", SERVICE_PREFIX: "veth"}
_NAME_LENGTH: Final = 15


class OverlayLinks:
    """The links, forwarding entries and answers of one host's tenant networks. Methods raise ProgramFailed."""

    def __init__(self, namespace: Namespace, failpoints: Failpoints) -> None:
        self._namespace = namespace
        self._failpoints = failpoints

    async def look(self) -> Overlay:
        """Read what is there. Settings of links are not looked at: whoever compares finds that they differ, and writes them again.

        Raises ValueError where a name of ours is somebody else's.
        """
        ip, fdb, neighbours = await asyncio.gather(
            self._read("ip", "-json", "-details", "link", "show"),
            self._read("bridge", "-json", "fdb", "show"),
            self._read("ip", "-json", "neighbour", "show", "nud", "permanent"),
        )
        links = dict(_links(ip))
        pins, remotes = {}, {}
        for entry in fdb:
            port, mac = entry.get("ifname", ""), entry["mac"]
            if entry.get("state") != "static" or port not in links:
                continue
            if "master" in entry:
                pins[entry["master"], mac] = port
            elif "dst" in entry:
                remotes[port, mac] = entry["dst"]
        answers = {
            (entry["dev"], entry["dst"]): entry["lladdr"]
            for entry in neighbours
            if isinstance(links.get(entry.get("dev", "")), Bridge) and "lladdr" in entry
        }
        return Overlay(links=links, pins=pins, remotes=remotes, answers=answers)

    async def apply(self, change: Change) -> None:
        """Carry a change out. Raises OSError too."""
        if change.ip_made:
            await self._batch("ip", change.ip_made)
            await self._failpoints.reach("hostd.wires.bridged")
        if change.made:
            await self._namespace.set_kernel(bridge_settings(change.made))
        if change.ip:
            await self._batch("ip", change.ip)
            await self._failpoints.reach("hostd.wires.linked")
        if change.bridge:
            await self._batch("bridge", change.bridge)
            await self._failpoints.reach("hostd.wires.pinned")

    async def without(self, have: Overlay, ports: set[str]) -> Overlay:
        """What is left without these ports, which lead to namespaces that are being taken away, or were."""
        for port in sorted(ports & have.links.keys()):
            # The kernel may be about to do so itself.
            with contextlib.suppress(ProgramFailed):
                await self._namespace.run("ip", "link", "delete", "dev", port)
        return have.without(frozenset(ports))

    async def _read(self, *command: str) -> list[dict[str, Any]]:
        read: list[dict[str, Any]] = json.loads(await self._namespace.run(*command) or b"[]")
        return read

    async def _batch(self, program: str, lines: Iterable[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        await self._namespace.run(program, "-batch", "-", stdin=text)


def _links(read: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Link]]:
    for each in read:
        name = each.get("ifname", "")
        prefix = name[: len(BRIDGE_PREFIX)]
        if len(name) != _NAME_LENGTH or prefix not in {*_KINDS, TAP_PREFIX}:
            continue
        alias = each.get("ifalias", "")
        if prefix == TAP_PREFIX:
            mark = parse_alias(alias)
            if mark is None or mark.network_id:
                yield name, TapPort(mark=mark, mtu=0)
            continue
        info = each.get("linkinfo", {})
        network_id = network_of(alias)
        # Unmarked is one that we were making when we died: the mark is set just after.
        if info.get("info_kind") != _KINDS[prefix] or (alias and network_id is None):
            raise ValueError(f"there is an interface {name} that is not ours")
        yield name, _link(name, network_id or "", info.get("info_data", {}))


def _link(name: str, network_id: str, data: dict[str, Any]) -> Link:
    if name.startswith(BRIDGE_PREFIX):
        return Bridge(name=name, network_id=network_id, mtu=0)
    if name.startswith(SERVICE_PREFIX):
        return ServicePort(name=name, network_id=network_id, mtu=0, namespace="")
    is_ours = data.get("port") == TUNNEL_PORT and data.get("learning") is not True
    return Tunnel(
        name=name,
        network_id=network_id,
        mtu=0,
        # What cannot be changed is not as we make it: then it is of no VNI that anybody wants, and made anew.
        vni=int(data.get("id", 0)) if is_ours else 0,
        local=data.get("local", data.get("local6", "")),
    )
