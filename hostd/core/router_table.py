"""What a router's packet filter says on a host: who goes out under which address, and what may come in. Pure.

A table for each family, changed in one transaction, of sets and maps: a floating IP that comes or goes is an element, and no packet meets
half of it. Only IPv4 is translated. Of either family nothing goes outside from an address that is not to be seen there: a port without port
security may send from any. And nothing comes in from outside under an address of the router's own networks: groups go by addresses.

A packet is marked when it comes, before its addresses are changed: bit 0 says that its sender has a floating IP here, and so leaves by the
interface outside of here (routing follows it); bit 1 that it is for a floating IP here and does not come from outside. Such a one is
answered to a neighbour, past this router, unless its source is changed, too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from fabric.model.network_plan import PlannedRouter, RouterOutside
from hostd.core.addresses import address_of, network_of
from hostd.core.connections import Connection
from hostd.core.nftables import Chain, Elements, Table

TABLE: Final = "cellfabric-router"
OUTSIDE: Final = "outside"
"""A router's interface in the external network."""

_FLOATED: Final = 0x1
_HAIRPIN: Final = 0x2
_LINK_LOCAL: Final = "169.254.0.0/16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Translations:
    """What addresses become. `floating` maps a floating IP to the fixed address behind it; `own` are the router's, inside and outside."""

    floating: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    own: frozenset[str] = frozenset()

    @classmethod
    def of(cls, router: PlannedRouter) -> Translations:
        """Those of a router on this host. Raises ValueError."""
        outside = router.outside
        own = {_four(each.address) for each in router.legs if _is_four(each.address)}
        if outside is None:
            return cls(own=frozenset(own))
        return cls(
            floating=MappingProxyType(
                {_four(each.address): _four(each.fixed_address) for each in outside.floating_ips}
            ),
            own=frozenset({*own, *_own(outside)}),
        )


def stale(connections: Iterable[Connection], now: Translations) -> Iterator[Connection]:
    """Those of a router's connections that were translated as nothing is any longer, by the rules of now and whatever was in between."""
    for it in connections:
        if it.original.source.version != 4:
            continue
        source, destination = str(it.original.source), str(it.original.destination)
        behind, shown = str(it.reply.source), str(it.reply.destination)
        if (destination != behind and now.floating.get(destination) != behind) or (
            source != shown and shown not in now.own and now.floating.get(shown) != source
        ):
            yield it


def router_tables(router: PlannedRouter) -> tuple[Table, Table]:
    """The tables of a router on this host. Raises ValueError for an address that is none: nothing is quoted here."""
    return _table4(router), _table6(router)


def _table6(router: PlannedRouter) -> Table:
    inside = {
        network_of(f"{leg.address}/{leg.prefix_length}") for leg in router.legs if not _is_four(leg.address)
    }
    return Table(
        family="ip6",
        name=TABLE,
        sets={
            "inside": Elements(
                "set", "type ipv6_addr; flags interval;", frozenset(str(each) for each in inside)
            ),
        },
        chains={
            "passed": Chain(
                (
                    f'oifname "{OUTSIDE}" ip6 saddr != @inside drop',
                    f'iifname "{OUTSIDE}" ip6 saddr @inside drop',
                ),
                hook="forward priority filter",
            ),
        },
    )


def _table4(router: PlannedRouter) -> Table:
    outside = router.outside
    floating = () if outside is None else outside.floating_ips
    pairs = [(_four(each.address), _four(each.fixed_address)) for each in floating]
    inside = {
        network_of(f"{_four(leg.address)}/{leg.prefix_length}")
        for leg in router.legs
        if _is_four(leg.address)
    }
    own = _own(outside)
    is_gateway = outside is not None and outside.is_gateway
    translates = outside is not None and outside.snat
    networks = frozenset(str(each) for each in inside)
    seen = frozenset((*own, *(public for public, _ in pairs)))
    return Table(
        family="ip",
        name=TABLE,
        sets={
            "inside": Elements("set", "type ipv4_addr; flags interval;", networks),
            # What may be seen outside.
            "shown": Elements(
                "set", "type ipv4_addr; flags interval;", seen if translates else seen | networks
            ),
            "floating": Elements("set", "type ipv4_addr;", frozenset(public for public, _ in pairs)),
            "floated": Elements("set", "type ipv4_addr;", frozenset(fixed for _, fixed in pairs)),
            "floating-in": Elements(
                "map",
                "type ipv4_addr : ipv4_addr;",
                frozenset(f"{public} : {fixed}" for public, fixed in pairs),
            ),
            "floating-out": Elements(
                "map",
                "type ipv4_addr : ipv4_addr;",
                frozenset(f"{fixed} : {public}" for public, fixed in pairs),
            ),
        },
        chains={
            "marked": Chain(tuple(_marked(is_gateway=is_gateway)), hook="prerouting priority raw"),
            "translated-in": Chain(
                ("dnat to ip daddr map @floating-in",), hook="prerouting priority dstnat", kind="nat"
            ),
            "passed": Chain(tuple(_passed(translates=translates)), hook="forward priority filter"),
            "translated-out": Chain(
                tuple(_out(own, translates=translates and is_gateway)),
                hook="postrouting priority srcnat",
                kind="nat",
            ),
            # After everything that could still be translated was.
            "guarded": Chain(
                (
                    f'oifname "{OUTSIDE}" ip saddr != @shown drop',
                    f'oifname "{OUTSIDE}" ip saddr @floated drop',
                ),
                hook="postrouting priority srcnat + 10",
            ),
        },
    )


def _marked(*, is_gateway: bool) -> Iterator[str]:
    """What is translated nowhere here is not tracked: of most such connections this host sees one direction only."""
    yield f"ip saddr @floated meta mark set meta mark or {_FLOATED:#x}"
    yield f'iifname != "{OUTSIDE}" ip daddr @floating meta mark set meta mark or {_HAIRPIN:#x}'
    yield "ip saddr @inside ip daddr @inside fib daddr type != local notrack"
    if not is_gateway:
        yield f'iifname != "{OUTSIDE}" ip saddr != @floated ip daddr != @floating notrack'


def _passed(*, translates: bool) -> Iterator[str]:
    # Of a link, and of no other (RFC 3927, 7).
    yield f"ip daddr {_LINK_LOCAL} drop"
    yield f"ip saddr {_LINK_LOCAL} drop"
    # Groups let members in by their addresses, so nobody outside may have one of them.
    yield f'iifname "{OUTSIDE}" ip saddr @inside drop'
    if translates:
        # Fixed addresses are nobody's business outside, so nobody there may have a route to them.
        yield f'iifname "{OUTSIDE}" ct status dnat accept'
        yield f'iifname "{OUTSIDE}" ct state established,related accept'
        yield f'iifname "{OUTSIDE}" drop'


def _out(own: list[str], *, translates: bool) -> Iterator[str]:
    yield f'oifname "{OUTSIDE}" snat to ip saddr map @floating-out'
    hairpin = f"meta mark and {_HAIRPIN:#x} == {_HAIRPIN:#x}"
    yield f"{hairpin} snat to ip saddr map @floating-out"
    yield f"{hairpin} snat to {own[0]}" if own else f"{hairpin} masquerade"
    if translates and own:
        yield f'oifname "{OUTSIDE}" ip saddr @inside snat to {own[0]}'


def _own(outside: RouterOutside | None) -> list[str]:
    """The router's own addresses outside, as far as they are on this host."""
    if outside is None or not outside.is_gateway:
        return []
    return [_four(each) for each in outside.addresses if _is_four(each)]


def _is_four(address: str) -> bool:
    return address_of(address).version == 4


def _four(address: str) -> str:
    return str(ipaddress.IPv4Address(address))
