"""The packet filter of a host, whole, as nftables tables: what each port may send and be sent. Pure.

A frame from a tap meets, in this order: the *door* (is it the port's own MAC, ARP, IPv4 and IPv6 source?), connection tracking,
*egress* (what no guest may be: a DHCP server, a router; then the rules), and in front of another tap *ingress*. The door sees
fragments as they are sent, the other two whole packets, so nothing hides in a second fragment.

Who is there is looked up in three maps from a tap's name to its chain; what a port may do is in the chains of its groups, which all
its members on the host share. A tap that bears our prefix and is in no map may neither send nor receive: first the rules, then the
tap.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from fabric.model.firewall import (
    ICMPV6,
    PROTOCOLS_WITH_PORTS,
    TCP,
    UDP,
    Direction,
    EtherType,
    HostFilters,
    PortFilter,
    RuleGroup,
)
from hostd.core.allowances import Allowance, allowances, merged
from hostd.core.nftables import Chain, Elements, Table
from hostd.core.ruleset import dhcp_of_others
from hostd.core.tap_names import MARK, TAP_PREFIX

TABLE: Final = f"{MARK}-ports"
"""The name of our tables, in the families bridge and inet."""

ESTABLISHED: Final = 0x01000000
INVALID: Final = 0x02000000
"""Packet marks by which `inet` tells `bridge` what connection tracking says, where the latter cannot ask itself. 0 is new."""

DOOR: Final = "prerouting priority -310"
# br_netfilter puts packets together at the prerouting hook's 0, and lets them go at forward's 0.
EGRESS_HOOKS: Final = {"egress-forward": "forward priority 10", "egress-host": "input priority 10"}
INGRESS_HOOKS: Final = {"ingress-forward": "forward priority 20", "ingress-host": "output priority 20"}

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MAC: Final = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
# Words of nft's grammar. Other protocols go by number: their names are in a file that a machine may not have.
_PROTOCOL_WORDS: Final = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
_SUFFIX: Final = {Direction.INGRESS: "in", Direction.EGRESS: "out"}
_UNICAST: Final = "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00"
# A packet whose last header the kernel cannot find has no l4proto, and so matches not even "anything but 255" (reserved, IANA).
_KNOWN_PROTOCOL: Final = "meta l4proto != 255"


class Tracking(Enum):
    """How bridged packets get their connection's state.

    BRIDGE: nf_conntrack_bridge, which tracks in the bridge itself (stock kernels since 5.3). BR_NETFILTER: bridged packets are led
    through the hooks of `inet`, tracked there, and carry the answer back in their mark.
    """

    BRIDGE = "bridge"
    BR_NETFILTER = "br_netfilter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A network's bridge on this host, and the zone its connections are tracked in: equal addresses of two tenants never meet.

    Zone 0 is for a bridge of which the host itself is the router: packets routed and translated come back without a bridge.
    """

    network_id: str
    bridge: str
    zone: int


def assign_zones(known: Mapping[str, int], bridges: Iterable[str]) -> dict[str, int]:
    """A zone for each bridge: the one it has, else the lowest free; connections outlive us, so it may never change. 1-65535.

    Raises ValueError when there are none left.
    """
    wanted = set(bridges)
    zones = {bridge: zone for bridge, zone in known.items() if bridge in wanted}
    # Not one that was another's until now: its connections are still there.
    taken = set(known.values())
    free = (zone for zone in range(1, 0x10000) if zone not in taken)
    for bridge in sorted(wanted - zones.keys()):
        zone = next(free, None)
        if zone is None:
            raise ValueError("no connection tracking zone is left: 65535 networks on one host")
        zones[bridge] = zone
    return zones


def tables(
    filters: HostFilters, segments: Iterable[Segment], tracking: Tracking, others: Iterable[str] = ()
) -> tuple[Table, ...]:
    """Our tables. `others` are taps that are filtered elsewhere (`hostd.core.ruleset`) and pass here.

    Raises ValueError for a name, a MAC or an address that is none: nothing is quoted here.
    """
    listed = sorted(segments, key=lambda segment: segment.bridge)
    for segment in listed:
        _require(_INTERFACE, segment.bridge)
    bridge = _bridge_table(filters, listed, tracking, others)
    return (bridge,) if tracking is Tracking.BRIDGE else (bridge, _inet_table(listed))


# ------------------------------------------------------------------ connection tracking


def zone_map(tracking: Tracking) -> tuple[str, str]:
    """The family and name of the map that has the bridges' zones: who starts anew reads them there."""
    return ("bridge" if tracking is Tracking.BRIDGE else "inet"), "zones"


def _zones(segments: list[Segment]) -> frozenset[str]:
    return frozenset(f'"{segment.bridge}" : {segment.zone}' for segment in segments if segment.zone)


def _inet_table(segments: list[Segment]) -> Table:
    """Here a bridged packet comes in by its bridge. What has fragments put together looks at the zone, so that comes first."""
    zones = _zones(segments)
    bridges = frozenset(f'"{segment.bridge}"' for segment in segments)
    # Every state is there: a packet without an answer would keep a mark that somebody else gave it.
    states = {
        "established": ESTABLISHED,
        "related": ESTABLISHED,
        "invalid": INVALID,
        "new": 0,
        "untracked": 0,
    }
    answers = ", ".join(f"{state} : {mark:#010x}" for state, mark in states.items())
    mark = f"meta mark set ct state map {{ {answers} }}"
    return Table(
        family="inet",
        name=TABLE,
        sets={
            "bridges": Elements("set", "type ifname;", bridges),
            "zones": Elements("map", "typeof iifname : ct zone;", zones),
        },
        chains={
            "zone-bridged": Chain(("ct zone set iifname map @zones",), "prerouting priority -450"),
            "zone-host": Chain(("ct zone set oifname map @zones",), "output priority -450"),
            "state-bridged": Chain((f"iifname @bridges {mark}",), "prerouting priority -150"),
            "state-host": Chain((f"oifname @bridges {mark}",), "output priority -150"),
        },
    )


def _state(tracking: Tracking) -> tuple[str, str]:
    """Matches of what belongs to a connection, and of what cannot belong to any."""
    if tracking is Tracking.BRIDGE:
        return "ct state established,related", "ct state invalid"
    return f"meta mark {ESTABLISHED:#010x}", f"meta mark {INVALID:#010x}"


# Conntrack takes a connection up in the middle if it may (nf_conntrack_tcp_loose). One that was cut would come back with the next
# segment of the guest's, as if the guest had begun it. So a connection begins with SYN or not at all.
_BEGINS_WITH_SYN: Final = "tcp flags & (fin|syn|rst|ack) != syn drop"

# ------------------------------------------------------------------ the bridge's table


def _bridge_table(
    filters: HostFilters, segments: list[Segment], tracking: Tracking, others: Iterable[str]
) -> Table:
    chains = dict(_common(tracking))
    sets: dict[str, Elements] = {}
    door, egress, ingress = set[str](), set[str](), set[str]()
    macs, sources = set[str](), (set[str](), set[str]())
    filled: set[str] = set()
    for members in filters.sets:
        name = _require(_NAME, members.name)
        prefixes = merged(members.members)
        for ether_type in EtherType:
            family = (it for it in prefixes if ipaddress.ip_network(it).version == ether_type.ip_version)
            sets[_members(name, ether_type)] = _addresses(ether_type, family)
    for group in filters.groups:
        for direction in Direction:
            for ether_type in EtherType:
                chain, own = _group(group, direction, ether_type)
                if chain.rules:
                    name = _group_chain(group.id, direction, ether_type)
                    filled.add(name)
                    chains[name] = chain
                    sets |= own
    bare = [port.tap for port in filters.ports if not port.port_security]
    for mapped in (door, egress, ingress):
        mapped |= {f'"{_require(_INTERFACE, tap)}" : accept' for tap in (*bare, *others)}
    for port in filters.ports:
        if not port.port_security:
            continue
        tap = f'"{_require(_INTERFACE, port.tap)}"'
        door.add(f"{tap} : jump door-{port.tap}")
        egress.add(f"{tap} : jump out-{port.tap}")
        ingress.add(f"{tap} : jump in-{port.tap}")
        may_use = _Sources.of(port)
        for mac, families in may_use.by_mac.items():
            macs.add(f"{tap} . {mac}")
            for singles, prefixes in zip(sources, families, strict=True):
                singles.update(f"{tap} . {mac} . {it}" for it in map(_single, prefixes) if it)
        chains[f"door-{port.tap}"] = Chain(tuple(_door(may_use)))
        chains[f"out-{port.tap}"] = Chain(tuple(_egress(port, may_use, filled)))
        chains[f"in-{port.tap}"] = Chain(tuple(_ingress(port, may_use, filled)))
    if tracking is Tracking.BRIDGE:
        sets["zones"] = Elements("map", "typeof meta ibrname : ct zone;", _zones(segments))
        chains["zone-bridged"] = Chain(("ct zone set meta ibrname map @zones",), "prerouting priority -300")
    sets["macs"] = Elements("set", "type ifname . ether_addr;", frozenset(macs))
    for version, singles in zip((4, 6), sources, strict=True):
        kind = f"type ifname . ether_addr . ipv{version}_addr;"
        sets[f"sources{version}"] = Elements("set", kind, frozenset(singles))
    sets["door"] = Elements("map", "type ifname : verdict;", frozenset(door))
    sets["egress"] = Elements("map", "type ifname : verdict;", frozenset(egress))
    sets["ingress"] = Elements("map", "type ifname : verdict;", frozenset(ingress))
    return Table(family="bridge", name=TABLE, chains=chains, sets=sets)


def _common(tracking: Tracking) -> Iterator[tuple[str, Chain]]:
    """The chains that do not depend on who is there."""
    established, invalid = _state(tracking)
    # First what nearly all packets are, in one look-up each: the rest walks the port's chains. Not UDP or ICMP, of which something
    # may not be said even in a connection; and in front of a tap only what is for it.
    yield (
        "door",
        Chain(
            (
                "ether type ip iifname . ether saddr . ip saddr @sources4 accept",
                "ether type ip6 iifname . ether saddr . ip6 saddr @sources6 accept",
                "iifname vmap @door",
                f'iifname "{TAP_PREFIX}*" drop',
            ),
            DOOR,
        ),
    )
    for name, hook in EGRESS_HOOKS.items():
        yield name, Chain((f"{established} meta l4proto {TCP} accept", "iifname vmap @egress"), hook)
    for name, hook in INGRESS_HOOKS.items():
        yield (
            name,
            Chain(
                (
                    f"{established} meta l4proto {TCP} oifname . ether daddr @macs accept",
                    "oifname vmap @ingress",
                    f'oifname "{TAP_PREFIX}*" drop',
                ),
                hook,
            ),
        )
    yield "egress-common", Chain(("ether type arp accept", f"{_KNOWN_PROTOCOL} goto egress-known", "drop"))
    # What no guest may be goes before what belongs to a connection: a client's renewal is one, and its answer may be forged.
    yield (
        "egress-known",
        Chain(
            (
                f"meta l4proto vmap {{ {UDP} : jump egress-udp, {ICMPV6} : jump egress-icmpv6 }}",
                f"{established} accept",
                f"{invalid} drop",
                _BEGINS_WITH_SYN,
            )
        ),
    )
    # Clients look at the port they listen on, not all at the one it came from.
    yield (
        "egress-udp",
        Chain(
            (
                "ether type ip udp sport 67 drop",
                "ether type ip udp dport 68 drop",
                "ether type ip udp sport 68 udp dport 67 accept",
                "ether type ip6 udp sport 547 drop",
                "ether type ip6 udp dport 546 drop",
                "ether type ip6 udp sport 546 udp dport 547 accept",
            )
        ),
    )
    yield (
        "egress-icmpv6",
        Chain(
            (
                "icmpv6 type { nd-router-advert, nd-redirect } drop",
                "icmpv6 type nd-router-solicit accept",
                "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } accept",
            )
        ),
    )
    yield (
        "ingress-common",
        Chain(
            (
                "ether type arp accept",
                "ether type != { ip, ip6 } drop",
                f"{_KNOWN_PROTOCOL} goto ingress-known",
                "drop",
            )
        ),
    )
    yield (
        "ingress-known",
        Chain(
            (
                f"{established} accept",
                f"{invalid} drop",
                f"meta l4proto vmap {{ {UDP} : jump ingress-udp, {ICMPV6} : jump ingress-icmpv6 }}",
                _BEGINS_WITH_SYN,
            )
        ),
    )
    yield (
        "ingress-udp",
        Chain(
            (
                "ether type ip udp sport 67 udp dport 68 accept",
                "ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept",
            )
        ),
    )
    # RFC 4861: from a neighbour is what no router has let through, so its hop limit is still 255.
    yield (
        "ingress-icmpv6",
        Chain(
            (
                "ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
                "ip6 hoplimit 255 ip6 saddr fe80::/10 icmpv6 type nd-router-advert accept",
                "ip6 saddr fe80::/10 icmpv6 type mld-listener-query accept",
            )
        ),
    )


# ------------------------------------------------------------------ one port


@dataclass(frozen=True, slots=True)
class _Sources:
    """What a port may call itself: for each MAC the prefixes of IPv4 and of IPv6, merged. Its own MAC comes first."""

    by_mac: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]

    @classmethod
    def of(cls, port: PortFilter) -> _Sources:
        own = _require(_MAC, port.mac)
        prefixes: dict[str, set[str]] = {own: {str(ipaddress.ip_address(it)) for it in port.addresses}}
        for pair in port.allowed_pairs:
            prefixes.setdefault(_require(_MAC, pair.mac or own), set()).add(pair.prefix)
        found = {}
        for mac, allowed in prefixes.items():
            every = merged({*allowed, link_local(mac)})
            fours = tuple(it for it in every if ipaddress.ip_network(it).version == 4)
            found[mac] = (fours, every[len(fours) :])
        return cls(found)

    @property
    def macs(self) -> str:
        return _listed(self.by_mac)

    @property
    def sixes(self) -> tuple[str, ...]:
        return merged(prefix for _, sixes in self.by_mac.values() for prefix in sixes)


def link_local(mac: str) -> str:
    """The link-local address of a MAC by modified EUI-64 (RFC 4291, appendix A): the only one a port has without being given it."""
    octets = bytes.fromhex(mac.replace(":", ""))
    host = bytes((octets[0] ^ 0x02, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return str(ipaddress.IPv6Address(bytes.fromhex("fe80000000000000") + host))


def _door(sources: _Sources) -> Iterator[str]:
    # First, and by what is in the frame: a VLAN tag hides from everything that asks for the protocol.
    yield "ether type != { ip, ip6, arp } drop"
    for mac, (fours, sixes) in sources.by_mac.items():
        arp = "arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4"
        at = f"ether saddr {mac}"
        if fours:
            yield f"{at} {arp} arp operation {{ request, reply }} arp saddr ether {mac} {_from('arp saddr ip', fours)}accept"
            yield f"{at} ether type ip {_from('ip saddr', fours)}accept"
        yield f"{at} ether type ip6 {_from('ip6 saddr', sixes)}accept"
        # Asking whether an address is free (RFC 5227, RFC 4862) and asking for one, before there is any.
        yield f"{at} {arp} arp operation request arp saddr ether {mac} arp saddr ip 0.0.0.0 accept"
        yield f"{at} ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept"
        yield f"{at} ip6 saddr :: icmpv6 type {{ nd-neighbor-solicit, mld-listener-report, mld2-listener-report }} accept"
    yield "drop"


def _egress(port: PortFilter, sources: _Sources, filled: set[str]) -> Iterator[str]:
    # Of packets that were put together; and before DHCP as a client is let pass, which needs no rule.
    yield f"ether type ip {dhcp_of_others(sources.by_mac)} drop"
    yield "jump egress-common"
    yield from _discovery(sources)
    yield from _jumps(port, Direction.EGRESS, filled)
    yield "drop"


def _discovery(sources: _Sources) -> Iterator[str]:
    """Neighbour discovery about the port's own addresses only (RFC 4861; offsets are from the start of ICMPv6).

    Conntrack does not track it. An advertisement's target is at 8; a first option that gives a link-layer address has its type at
    24 and the address at 26. A solicitation from `::` claims its target for itself (duplicate address detection), others ask.
    """
    macs = _listed(f"0x{mac.replace(':', '')}" for mac in sources.by_mac)
    yield f"icmpv6 type nd-neighbor-advert @th,192,16 0x0201 @th,208,48 != {macs} drop"
    yield f"icmpv6 type nd-neighbor-solicit @th,192,16 0x0101 @th,208,48 != {macs} drop"
    for target in _targets(sources.sixes):
        yield f"icmpv6 type nd-neighbor-advert {target}accept"
        yield f"ip6 saddr :: icmpv6 type nd-neighbor-solicit {target}accept"
    yield "ip6 saddr != :: icmpv6 type nd-neighbor-solicit accept"
    yield "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } drop"


def _targets(prefixes: tuple[str, ...]) -> Iterator[str]:
    """Matches of the target of neighbour discovery, each with a space behind."""
    networks = [ipaddress.IPv6Network(prefix) for prefix in prefixes]
    single = [f"0x{int(it.network_address):032x}" for it in networks if it.prefixlen == 128]
    if single:
        yield f"@th,64,128 {_listed(single)} "
    for it in networks:
        if it.prefixlen == 0:
            yield ""
        elif it.prefixlen < 128:
            yield f"@th,64,128 & 0x{int(it.netmask):032x} == 0x{int(it.network_address):032x} "


def _ingress(port: PortFilter, sources: _Sources, filled: set[str]) -> Iterator[str]:
    # What a bridge floods because it does not know better is not for everybody to read.
    yield f"{_UNICAST} ether daddr != {sources.macs} drop"
    yield "jump ingress-common"
    yield from _jumps(port, Direction.INGRESS, filled)
    yield "drop"


def _jumps(port: PortFilter, direction: Direction, filled: set[str]) -> Iterator[str]:
    for ether_type, word in ((EtherType.IPV4, "ip"), (EtherType.IPV6, "ip6")):
        for group in sorted(set(port.groups)):
            name = _group_chain(group, direction, ether_type)
            if name in filled:
                yield f"ether type {word} jump {name}"


# ------------------------------------------------------------------ one group


def _group_chain(group_id: str, direction: Direction, ether_type: EtherType) -> str:
    return f"group-{_require(_NAME, group_id)}.{_SUFFIX[direction]}{ether_type.ip_version}"


def _members(name: str, ether_type: EtherType) -> str:
    return f"members-{name}.v{ether_type.ip_version}"


def _group(
    group: RuleGroup, direction: Direction, ether_type: EtherType
) -> tuple[Chain, dict[str, Elements]]:
    """The chain of a group's rules of one direction and family, and the sets that only it uses."""
    name = _group_chain(group.id, direction, ether_type)
    rules: list[str] = []
    sets: dict[str, Elements] = {}
    family = "ip" if ether_type is EtherType.IPV4 else "ip6"
    remote = f"{family} {'saddr' if direction is Direction.INGRESS else 'daddr'}"
    for it in allowances(group.rules, direction, ether_type):
        service, words = _service(it, ether_type)
        ports = "all"
        if it.ports is not None:
            ranges = [_range(span.first, span.last) for span in it.ports]
            ports = ranges[0]
            if len(ranges) > 1:
                of = f".{it.remote_set}" if it.remote_set is not None else ""
                own = f"{name}.{service}.ports{of}"
                sets[own] = Elements("set", "type inet_service; flags interval;", frozenset(ranges))
                ports = f"@{own}"
            words.append(f"{service} dport {ports}")
        elif it.service.protocol is not None and it.service.icmp_type is None:
            words.append(f"meta l4proto {it.service.protocol}")
        if it.remote_set is not None:
            words.append(f"{remote} @{_members(_require(_NAME, it.remote_set), ether_type)}")
        elif it.prefixes is not None and len(it.prefixes) > 1:
            own = f"{name}.{service}.{ports}.remotes"
            sets[own] = _addresses(ether_type, it.prefixes)
            words.append(f"{remote} @{own}")
        elif it.prefixes is not None:
            words.append(f"{remote} {it.prefixes[0]}")
        rules.append(" ".join((*words, "accept")))
    return Chain(tuple(rules)), sets


def _service(allowance: Allowance, ether_type: EtherType) -> tuple[str, list[str]]:
    """What the service is called in the name of a set, and the words that match its ICMP type."""
    service = allowance.service
    if service.protocol is None:
        return "any", []
    if service.icmp_type is None:
        return _PROTOCOL_WORDS.get(service.protocol, f"proto-{service.protocol}"), []
    icmp = "icmp" if ether_type is EtherType.IPV4 else "icmpv6"
    words = [f"{icmp} type {service.icmp_type}"]
    if service.icmp_code is None:
        return f"{icmp}-{service.icmp_type}", words
    return f"{icmp}-{service.icmp_type}-{service.icmp_code}", [*words, f"{icmp} code {service.icmp_code}"]


# ------------------------------------------------------------------ words


def _addresses(ether_type: EtherType, prefixes: Iterable[str]) -> Elements:
    kind = "ipv4_addr" if ether_type is EtherType.IPV4 else "ipv6_addr"
    return Elements("set", f"type {kind}; flags interval;", frozenset(prefixes))


def _from(what: str, prefixes: tuple[str, ...]) -> str:
    """The match, with a space behind; nothing where every address is meant, which nft cannot say."""
    if any(ipaddress.ip_network(prefix).prefixlen == 0 for prefix in prefixes):
        return ""
    return f"{what} {_listed(prefixes)} "


def _single(prefix: str) -> str:
    """The address, if it is only one, else nothing."""
    network = ipaddress.ip_network(prefix)
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else ""


def _listed(words: Iterable[str]) -> str:
    listed = list(words)
    return listed[0] if len(listed) == 1 else f"{{ {', '.join(listed)} }}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _require(pattern: re.Pattern[str], text: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(f"{text!r} does not match {pattern.pattern}")
    return text


assert _PROTOCOL_WORDS.keys() == PROTOCOLS_WITH_PORTS
