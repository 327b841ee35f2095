"""The bridge and the taps: read from the kernel, changed by ip and bridge in batches.

What is ours carries our mark in its alias. Beyond the filter, a tap is pinned: the bridge learns nothing from it and the host
knows its guest's MAC for good, so an answer to an address can only arrive at the guest that has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from hostd.core.ruleset import METADATA_ADDRESS, Subnet
from hostd.core.tap_names import MARK, TAP_PREFIX, TapMark, parse_alias
from hostd.network.netns import Namespace

_IFALIAS: Final = "ifalias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A tap with our name. `mark` is None where its alias was never written; `in_use` where a hypervisor holds it."""

    name: str
    mark: TapMark | None
    in_use: bool


class Links:
    """The interfaces of one host. Every method raises ProgramFailed."""

    def __init__(self, namespace: Namespace, bridge: str) -> None:
        self._namespace = namespace
        self._bridge = bridge

    async def taps(self) -> dict[str, Tap]:
        """Every tap of ours that the kernel has, by name."""
        links = json.loads(await self._namespace.run("ip", "-json", "link", "show") or b"[]")
        return {
            link["ifname"]: Tap(
                name=link["ifname"],
                mark=parse_alias(link.get(_IFALIAS, "")),
                in_use="LOWER_UP" in link.get("flags", ()),
            )
            for link in links
            if link["ifname"].startswith(TAP_PREFIX)
        }

    async def ensure_bridge(self, subnets: Iterable[Subnet]) -> None:
        """Have the bridge, up, with every subnet's gateway and the metadata address on it, and no other address."""
        wanted = {f"{METADATA_ADDRESS}/32"}
        wanted |= {f"{subnet.gateway}/{subnet.network.prefixlen}" for subnet in subnets}
        bridge = await self._addresses()
        commands = []
        if bridge is None:
            # An address of its own, or it would be that of the lowest tap and change as guests come and go.
            mac = "02:" + blake2b(self._bridge.encode(), digest_size=5).digest().hex(":")
            kind = "type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
            commands += [
                f"link add name {self._bridge} address {mac} {kind}",
                f"link set dev {self._bridge} addrgenmode none",
            ]
        commands.append(f"link set dev {self._bridge} alias {MARK}")
        present = bridge or set()
        commands += [f"address del {each} dev {self._bridge}" for each in sorted(present - wanted)]
        commands += [f"address add {each} dev {self._bridge}" for each in sorted(wanted - present)]
        commands.append(f"link set dev {self._bridge} up")
        await self._ip(commands)

    async def ensure_tap(self, mark: TapMark, mtu: int, *, present: bool) -> None:
        """Have the tap, marked, pinned, in the bridge and up. Its rules must be loaded before."""
        tap = mark.tap
        commands = [] if present else [f"tuntap add dev {tap} mode tap vnet_hdr"]
        commands += [
            f'link set dev {tap} alias "{mark.alias()}"',
            f"link set dev {tap} addrgenmode none mtu {mtu} master {self._bridge}",
            f"link set dev {tap} type bridge_slave learning off flood off",
            f"link set dev {tap} up",
            f"neighbour replace {mark.address} lladdr {mark.mac} dev {self._bridge} nud permanent",
        ]
        await self._ip(commands)
        await self._namespace.run("bridge", "fdb", "replace", mark.mac, "dev", tap, "master", "static")

    async def remove_taps(self, taps: Iterable[Tap]) -> None:
        """Take taps away, and what was pinned for them."""
        commands = []
        for tap in taps:
            if tap.mark is not None:
                # Replaced first: deleting what is not there would end the batch.
                entry = f"{tap.mark.address} dev {self._bridge}"
                commands.append(
                    f"neighbour replace {tap.mark.address} lladdr {tap.mark.mac} dev {self._bridge}"
                )
                commands.append(f"neighbour del {entry}")
            commands.append(f"link del dev {tap.name}")
        await self._ip(commands)

    async def remove_bridge(self) -> None:
        """Take the bridge away, where it is there and ours."""
        if await self._addresses() is not None:
            await self._ip([f"link del dev {self._bridge}"])

    async def _addresses(self) -> set[str] | None:
        """The bridge's IPv4 addresses; None where there is no such bridge. Raises ValueError for one that is not ours."""
        shown = await self._namespace.run("ip", "-json", "-details", "address", "show")
        links: list[dict[str, Any]] = json.loads(shown or b"[]")
        for link in links:
            if link["ifname"] == self._bridge:
                # Unmarked is one that we were making when we died: the mark is set just after.
                if link.get(_IFALIAS, MARK) != MARK:
                    raise ValueError(f"there is an interface {self._bridge} that is not ours")
                return {
                    f"{each['local']}/{each['prefixlen']}"
                    for each in link.get("addr_info", ())
                    if each["family"] == "inet"
                }
        return None

    async def _ip(self, commands: list[str]) -> None:
        if commands:
            await self._namespace.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")
