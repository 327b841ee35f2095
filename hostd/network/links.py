"""The bridge and the taps: read from the kernel, changed by ip and bridge in batches.

What is ours carries our mark in its alias. Beyond the filter, a tap is pinned: the bridge learns nothing from it and the host
knows its guest's MAC for good, so an answer to an address can only arrive at the guest that has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from fabric.model.network import METADATA_ADDRESS
from hostd.core.ruleset import Subnet
from hostd.core.tap_names import MARK, TAP_PREFIX, TapMark, parse_alias
from hostd.network.netns import Namespace

_IFALIAS: Final = "ifalias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A tap with our name. `mark` is None where its alias was never written; `in_use` where a hypervisor holds it."""

    name: str
    mark: TapMark | None
    in_use: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """An interface with the bridge's name. `addresses` are its IPv4 ones, with their prefix lengths."""

    ours: bool
    addresses: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the kernel has: every tap of ours, by name, the bridge, None where there is none, and the host's own IPv4 addresses, each with
    its interface.
    """

    taps: Mapping[str, Tap]
    bridge: Bridge | None
    own: frozenset[tuple[str, str]] = frozenset()


class Links:
    """The interfaces of one host. Every method raises ProgramFailed; where the bridge's name is somebody else's, ValueError."""

    def __init__(self, namespace: Namespace, bridge: str) -> None:
        self._namespace = namespace
        self._bridge = bridge

    async def look(self) -> Seen:
        """Read all that is decided on, at once (with -details: without, `address` says no aliases)."""
        links: list[dict[str, Any]] = json.loads(
            await self._namespace.run("ip", "-json", "-details", "address", "show") or b"[]"
        )
        taps = {
            link["ifname"]: Tap(
                name=link["ifname"],
                mark=parse_alias(link.get(_IFALIAS, "")),
                in_use="LOWER_UP" in link.get("flags", ()),
            )
            for link in links
            if link["ifname"].startswith(TAP_PREFIX)
        }
        bridge = next((link for link in links if link["ifname"] == self._bridge), None)
        own = {
            (address.partition("/")[0], link["ifname"])
            for link in links
            if link["ifname"] != self._bridge
            for address in _addresses(link)
        }
        return Seen(taps=taps, bridge=None if bridge is None else _bridge(bridge), own=frozenset(own))

    async def ensure(
        self, seen: Seen, subnets: Iterable[Subnet] | None, taps: Iterable[tuple[TapMark, int]]
    ) -> None:
        """Have the bridge, up, and these taps (with their MTUs), marked, pinned, in it and up. Their rules must be loaded before.

        The bridge gets every subnet's gateway and the metadata address, and no other; with None for `subnets` it is left as it is.
        """
        taps = tuple(taps)
        commands = [] if subnets is None else self._bridge_commands(seen.bridge, subnets)
        for mark, mtu in taps:
            commands += self._tap_commands(mark, mtu, present=mark.tap in seen.taps)
        await self._ip(commands)
        pins = [f"fdb replace {mark.mac} dev {mark.tap} master static" for mark, _ in taps]
        if pins:
            await self._namespace.run("bridge", "-batch", "-", stdin="\n".join(pins) + "\n")

    async def remove_taps(self, taps: Iterable[Tap]) -> None:
        """Take taps away, and what was pinned for them."""
        commands = []
        for tap in taps:
            if tap.mark is not None and tap.mark.address:
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
        if self._ours((await self.look()).bridge) is not None:
            await self._ip([f"link del dev {self._bridge}"])

    def _bridge_commands(self, bridge: Bridge | None, subnets: Iterable[Subnet]) -> list[str]:
        wanted = {f"{METADATA_ADDRESS}/32"}
        wanted |= {f"{subnet.gateway}/{subnet.network.prefixlen}" for subnet in subnets}
        commands = []
        if self._ours(bridge) is None:
            # An address of its own, or it would be that of the lowest tap and change as guests come and go.
            mac = "02:" + blake2b(self._bridge.encode(), digest_size=5).digest().hex(":")
            kind = "type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
            commands += [
                f"link add name {self._bridge} address {mac} {kind}",
                f"link set dev {self._bridge} addrgenmode none",
            ]
        present = bridge.addresses if bridge is not None else frozenset()
        commands.append(f"link set dev {self._bridge} alias {MARK}")
        commands += [f"address del {each} dev {self._bridge}" for each in sorted(present - wanted)]
        commands += [f"address add {each} dev {self._bridge}" for each in sorted(wanted - present)]
        commands.append(f"link set dev {self._bridge} up")
        return commands

    def _tap_commands(self, mark: TapMark, mtu: int, *, present: bool) -> list[str]:
        tap = mark.tap
        return [
            *([] if present else [f"tuntap add dev {tap} mode tap vnet_hdr"]),
            f'link set dev {tap} alias "{mark.alias()}"',
            f"link set dev {tap} addrgenmode none mtu {mtu} master {self._bridge}",
            f"link set dev {tap} type bridge_slave learning off flood off",
            f"link set dev {tap} up",
            f"neighbour replace {mark.address} lladdr {mark.mac} dev {self._bridge} nud permanent",
        ]

    def _ours(self, bridge: Bridge | None) -> Bridge | None:
        if bridge is not None and not bridge.ours:
            raise ValueError(f"there is an interface {self._bridge} that is not ours")
        return bridge

    async def _ip(self, commands: list[str]) -> None:
        if commands:
            await self._namespace.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")


def _bridge(link: Mapping[str, Any]) -> Bridge:
    # Unmarked is one that we were making when we died: the mark is set just after.
    return Bridge(
        ours=link.get(_IFALIAS, MARK) == MARK,
        addresses=frozenset(_addresses(link)),
    )


def _addresses(link: Mapping[str, Any]) -> Iterator[str]:
    """An interface's IPv4 addresses, with their prefix lengths."""
    for each in link.get("addr_info", ()):
        if each["family"] == "inet":
            yield f"{each['local']}/{each['prefixlen']}"
