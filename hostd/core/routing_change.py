"""How a router gets from what it is to what it must be: the lines of each program, in an order that leaves no hole. Pure.

What the kernel says and what was made are the same kind of value, `Seen`; so a router that another process made is changed as one's own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from hostd.core.router_table import OUTSIDE
from hostd.core.routing import MAIN_TABLE, RULES, TRANSIT, Link, Route, Space

PROTOCOL: Final = 77
"""What our routes say made them; no routing daemon has this number (rtnetlink(7))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A router as it is. `links` maps a name to its mark and MTU; `rules` are
    preferences; the rest is as in `Space`. Of another's nothing is in here.
    """

    links: Mapping[str, tuple[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    addresses: frozenset[tuple[str, str]] = frozenset()
    routes: frozenset[Route] = frozenset()
    neighbours: frozenset[tuple[str, str, str]] = frozenset()
    remotes: frozenset[tuple[str, str, str]] = frozenset()
    rules: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Lines in the order in which they are for. `bridge` ones are for `bridge -batch`, the others for `ip -batch`.

    `removing`, `settling`: in the router's namespace, before and after its packet filter was loaded; `making`, `pinning`: in the host's.
    """

    removing: tuple[str, ...] = ()
    making: tuple[str, ...] = ()
    pinning: tuple[str, ...] = ()
    settling: tuple[str, ...] = ()
    bridge: tuple[str, ...] = ()


def seen_of(space: Space) -> Seen:
    """A router that is as it must be."""
    return Seen(
        links={link.name: (link.mark, link.mtu) for link in space.links},
        addresses=space.addresses,
        routes=space.routes,
        neighbours=space.neighbours,
        remotes=space.remotes,
        rules=frozenset(RULES),
    )


def held_back(want: Space, seen: Seen) -> Space:
    """What must be, but for external addresses that are not there yet: nobody has said that they are still this host's."""
    kept = {name for name, (mark, _) in seen.links.items() if mark in {link.mark for link in want.links}}
    there = frozenset(each for each in seen.addresses if each[0] in kept)
    return replace(
        want,
        addresses=frozenset(each for each in want.addresses if each[0] != OUTSIDE or each in there),
        announced=frozenset(),
    )


def routing_change(seen: Seen, want: Space, *, joins_anew: bool) -> Change:
    """From what is to what must be.

    `joins_anew`: the other ends of all links are put to where they belong, whatever they were: nobody knows of them.
    """
    wanted = {link.name: link for link in want.links}
    gone = {name for name, (mark, _) in seen.links.items() if name not in wanted or wanted[name].mark != mark}
    new = {name for name in wanted if name not in seen.links or name in gone}
    moved = new | {name for name, link in wanted.items() if joins_anew or link.mtu != _mtu(seen, name)}
    return Change(
        removing=tuple(f"link del dev {name}" for name in sorted(gone)),
        making=tuple(line for link in want.links for line in _made(link, new, moved)),
        pinning=tuple(link.pin for link in want.links if link.pin and link.name in moved),
        settling=tuple(_settled(_without(seen, gone), want, moved)),
        bridge=tuple(_remotes(_without(seen, gone), want)),
    )


def _mtu(seen: Seen, name: str) -> int:
    return seen.links[name][1] if name in seen.links else 0


def _made(link: Link, new: set[str], moved: set[str]) -> Iterable[str]:
    if link.name in new:
        yield link.make
    if link.name in moved:
        yield from link.join


def _without(seen: Seen, gone: set[str]) -> Seen:
    """What the kernel leaves when it has removed these interfaces."""
    return Seen(
        addresses=frozenset(each for each in seen.addresses if each[0] not in gone),
        routes=frozenset(each for each in seen.routes if each.device not in gone),
        neighbours=frozenset(each for each in seen.neighbours if each[0] not in gone),
        remotes=frozenset(each for each in seen.remotes if each[0] not in gone),
        rules=seen.rules,
    )


def _settled(seen: Seen, want: Space, moved: set[str]) -> Iterable[str]:
    for link in want.links:
        if link.name in moved:
            yield f'link set dev {link.name} alias "{link.mark}"'
            mode = "eui64" if link.has_link_local else "none"
            yield f"link set dev {link.name} addrgenmode {mode} mtu {link.mtu}"
            # By itself: in one line with it the interface would be up before it is told which addresses to make.
            yield f"link set dev {link.name} up"
    # First those that come: with the last address of an interface the kernel forgets every route by it.
    yield from (f"address add {it} dev {at} nodad" for at, it in sorted(want.addresses - seen.addresses))
    yield from (f"address del {it} dev {at}" for at, it in sorted(seen.addresses - want.addresses))
    yield from (f"rule add pref {it} {RULES[it]}" for it in sorted(RULES.keys() - seen.rules))
    held = {(at, address) for at, address, _ in want.neighbours}
    for at, address, _ in sorted(seen.neighbours - want.neighbours):
        if (at, address) not in held:
            yield f"neighbour del {address} dev {at}"
    for at, address, mac in sorted(want.neighbours - seen.neighbours):
        yield f"neighbour replace {address} lladdr {mac} dev {at} nud permanent"
    yield from _routes(seen, want)


def _routes(seen: Seen, want: Space) -> Iterable[str]:
    there = seen.routes - _forgotten(seen, want)
    wanted = {_place(route) for route in want.routes}
    for route in sorted(there - want.routes):
        # One that goes elsewhere now is replaced, so that there is no moment without.
        if _place(route) not in wanted:
            yield f"route del {_text(route)}"
    # What is beside the router comes before what is beyond that.
    for route in sorted(want.routes - there, key=lambda route: (route.via != "", route)):
        yield f"route replace {_text(route)}"


def _forgotten(seen: Seen, want: Space) -> frozenset[Route]:
    """The IPv4 routes that go with the last IPv4 address of their interface."""
    had = {at for at, address in seen.addresses if ":" not in address}
    has = {at for at, address in want.addresses if ":" not in address}
    return frozenset(
        route for route in seen.routes if route.device in had - has and ":" not in route.destination
    )


def _place(route: Route) -> tuple[int, str]:
    return route.table, route.destination


def _text(route: Route) -> str:
    # The next hop may be in no range that the router has an address of.
    hop = f"via {route.via} " if route.via else ""
    onlink = "onlink " if route.via else ""
    return f"{route.destination} {hop}dev {route.device} {onlink}table {route.table} protocol {PROTOCOL}"


def _remotes(seen: Seen, want: Space) -> Iterable[str]:
    held = {(at, mac) for at, mac, _ in want.remotes}
    for at, mac, address in sorted(seen.remotes - want.remotes):
        if (at, mac) not in held:
            yield f"fdb del {mac} dev {at} dst {address} self"
    for at, mac, address in sorted(want.remotes - seen.remotes):
        yield f"fdb replace {mac} dev {at} dst {address} self permanent"


# ------------------------------------------------------------------ what the kernel says


def parsed(
    *,
    links: list[dict[str, Any]],
    routes: Iterable[dict[str, Any]],
    rules: list[dict[str, Any]],
    neighbours: list[dict[str, Any]],
    remotes: list[dict[str, Any]],
) -> Seen:
    """What is there, from what `ip -json` and `bridge -json` say in the router's namespace: addresses with -details, routes of `PROTOCOL`.

    Raises KeyError or ValueError for what they never say.
    """
    ours = [link for link in links if link["ifname"] != "lo"]
    names = {link["ifname"] for link in ours}
    return Seen(
        links={link["ifname"]: (link.get("ifalias", ""), int(link["mtu"])) for link in ours},
        addresses=frozenset(
            (link["ifname"], f"{each['local']}/{each['prefixlen']}")
            for link in ours
            for each in link.get("addr_info", ())
            if each.get("scope") != "link"
        ),
        routes=frozenset(_route(each) for each in routes if each.get("dev") in names),
        neighbours=frozenset(
            (TRANSIT, each["dst"], each["lladdr"])
            for each in neighbours
            if each.get("dev", TRANSIT) == TRANSIT and "PERMANENT" in each.get("state", ())
        ),
        remotes=frozenset((TRANSIT, each["mac"], each["dst"]) for each in remotes if "dst" in each),
        rules=frozenset(int(each["priority"]) for each in rules if int(each["priority"]) in RULES),
    )


def _route(said: dict[str, Any]) -> Route:
    word, via = said["dst"], str(said.get("gateway", ""))
    if word == "default":
        word = "::/0" if ":" in via else "0.0.0.0/0"
    table = said.get("table", "main")
    return Route(
        table=MAIN_TABLE if table == "main" else int(table),
        destination=str(ipaddress.ip_network(word)),
        via=via,
        device=said["dev"],
    )
