"""What the packet filter costs: one flow with it and without it on the same bridge in turns, and how soon rules are in force."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fabric.model.firewall import (
    AddressSet,
    Direction,
    EtherType,
    FilterRule,
    HostFilters,
    PortFilter,
    PortRange,
    RuleGroup,
)
from hostd.network.firewall import Firewall
from hostd.network.netns import Namespace
from tests.bench.measure import Row, median
from tests.conformance.namespaces import a_namespace, inside, ip

_BENCH = "firewall"
_TURNS = 31
_FLOW_S = 0.3
"""Many short turns: what else the machine does falls on both alike."""
_RULES = 1000
_CHANGES = 15
_PORTS = 50
"""Ports in the group, as on a well filled host."""
_NETWORK = {"net": "br0"}
_OUT = FilterRule(direction=Direction.EGRESS, ether_type=EtherType.IPV4)


@dataclass(frozen=True)
class _Site:
    host: str
    guests: tuple[str, str]


@contextlib.contextmanager
def _site() -> Iterator[_Site]:
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(a_namespace("bench-fw"))
        ip("link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0", netns=host)
        ip("link", "set", "br0", "up", netns=host)
        guests = []
        for number in (1, 2):
            guest = stack.enter_context(a_namespace(f"bench-g{number}"))
            ip(
                "link",
                "add",
                f"tap{number}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                guest,
                netns=host,
            )
            ip("link", "set", f"tap{number}", "master", "br0", "up", netns=host)
            ip("link", "set", "eth0", "address", f"52:54:00:00:00:0{number}", "up", netns=guest)
            ip("addr", "add", f"10.0.0.{number}/24", "dev", "eth0", netns=guest)
            guests.append(guest)
        yield _Site(host, (guests[0], guests[1]))


def run() -> list[Row]:
    """Needs root. Leaves nothing behind."""
    with _site() as site:
        rows = [*asyncio.run(_flows(site))]
        rows += asyncio.run(_loading(site))
    return rows


# ------------------------------------------------------------------ throughput


async def _flows(site: _Site) -> list[Row]:
    firewall = Firewall(Namespace(site.host))
    rule = FilterRule(
        direction=Direction.INGRESS,
        ether_type=EtherType.IPV4,
        protocol=6,
        ports=PortRange(first=5001, last=5001),
    )
    group = RuleGroup(id="web", rules=frozenset({_OUT, rule}))
    filters = HostFilters(ports=(_port(1, "web"), _port(2, "web")), groups=(group,))
    rows = []
    for what, segments in (("one flow", 65535), ("one flow in packets of 1500 bytes", 1)):
        for guest in site.guests:
            ip("link", "set", "eth0", "gso_max_segs", str(segments), netns=guest)
        filtered, bare = [], []
        for _ in range(_TURNS + 1):
            await firewall.apply(filters, _NETWORK)
            _lead_through_inet(site, on=True)
            filtered.append(await asyncio.to_thread(_throughput, site))
            await firewall.dismantle()
            _lead_through_inet(site, on=False)
            bare.append(await asyncio.to_thread(_throughput, site))
        # The first ones warm up.
        with_it, without = list(zip(*filtered[1:], strict=True)), list(zip(*bare[1:], strict=True))
        ratios, by_cpu = (
            [one / other for one, other in zip(with_it[unit], without[unit], strict=True)] for unit in (0, 1)
        )
        rows += [
            median(_BENCH, f"{what}: filtered ÷ bare bridge", ratios, "", goal="0.9"),
            median(_BENCH, f"{what}: the same per processor time", by_cpu, ""),
            median(_BENCH, f"{what}: filtered", with_it[0], "Gbit/s"),
        ]
    return rows


def _lead_through_inet(site: _Site, *, on: bool) -> None:
    """What `Firewall` does once for a bridge, undone and done again; without it the bare bridge is bare."""
    word = "1" if on else "0"
    where = ("link", "set", "br0", "type", "bridge")
    ip(*where, "nf_call_iptables", word, "nf_call_ip6tables", word, netns=site.host)
    inside(site.host, lambda: _set_kernel(word))


def _set_kernel(word: str) -> None:
    for family in ("iptables", "ip6tables", "arptables"):
        with open(f"/proc/sys/net/bridge/bridge-nf-call-{family}", "w", encoding="ascii") as setting:  # noqa: PTH123 - of this thread's namespace
            setting.write("0" if family == "arptables" else word)


def _throughput(site: _Site) -> tuple[float, float]:
    """Gbit/s of one established connection from the first guest to the second, and Gbit per second of processor time."""
    listening = inside(site.guests[1], lambda: socket.create_server(("10.0.0.2", 5001)))
    with listening:
        sender = inside(site.guests[0], lambda: socket.create_connection(("10.0.0.2", 5001), timeout=10))
        receiver, _ = listening.accept()
    received = [0]

    def drain() -> None:
        buffer = bytearray(1 << 20)
        while count := receiver.recv_into(buffer):
            received[0] += count

    with sender, receiver:
        thread = threading.Thread(target=drain)
        thread.start()
        data = bytes(1 << 20)
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        while time.monotonic() - began_s < _FLOW_S:
            sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)
        thread.join()
        took_s = time.monotonic() - began_s
        took_cpu_s = time.process_time() - began_cpu_s
    gbit = received[0] * 8 / 1e9
    return gbit / took_s, gbit / took_cpu_s


# ------------------------------------------------------------------ loading


async def _loading(site: _Site) -> list[Row]:
    rows = []
    for what, rule in (
        ("1,000 prefixes of one service", _prefix_rule),
        ("1,000 services, each of one prefix", _mixed_rule),
    ):
        rows += await _group(site, what, rule)
    rows.append(await _members(site))
    return rows


async def _group(site: _Site, what: str, rule: Callable[[int], FilterRule]) -> list[Row]:
    ones: list[float] = []
    rules = frozenset(rule(number) for number in range(_RULES))
    filters = _filters(rules, frozenset())
    wholes = [await _timed(Firewall(Namespace(site.host)), filters) for _ in range(_CHANGES)]
    firewall = Firewall(Namespace(site.host))
    await firewall.apply(filters, _NETWORK)
    for number in range(_CHANGES):
        less = _filters(rules - {rule(number * 7)}, frozenset())
        ones += [await _timed(firewall, less), await _timed(firewall, filters)]
    note = f"of a group that {_PORTS} ports are in"
    return [
        median(_BENCH, f"{what}: everything, from nothing", wholes, "ms", note=note),
        median(_BENCH, f"{what}: one rule less or more", ones, "ms", goal="1000", note=note),
    ]


async def _members(site: _Site) -> Row:
    rule = FilterRule(direction=Direction.INGRESS, ether_type=EtherType.IPV4, remote_set="members")
    members = frozenset(f"10.{number >> 8}.{number & 255}.1" for number in range(_RULES))
    firewall = Firewall(Namespace(site.host))
    full, less = _filters(frozenset({rule}), members), _filters(frozenset({rule}), members - {"10.0.7.1"})
    await firewall.apply(full, _NETWORK)
    took = [await _timed(firewall, it) for _ in range(_CHANGES) for it in (less, full)]
    await firewall.dismantle()
    return median(_BENCH, "a remote group of 1,000 members: one less or more", took, "ms", goal="1000")


async def _timed(firewall: Firewall, filters: HostFilters) -> float:
    """Milliseconds until it is in force, with what was to be cut cut."""
    began_s = time.perf_counter()
    await firewall.apply(filters, _NETWORK)
    return (time.perf_counter() - began_s) * 1000


def _filters(rules: frozenset[FilterRule], members: frozenset[str]) -> HostFilters:
    ports = tuple(_port(number, "big") for number in range(1, _PORTS + 1))
    group = RuleGroup(id="big", rules=rules | {_OUT})
    return HostFilters(ports=ports, groups=(group,), sets=(AddressSet(name="members", members=members),))


def _port(number: int, group: str) -> PortFilter:
    return PortFilter(
        port_id=f"port-{number}",
        instance_id=f"instance-{number}",
        network_id="net",
        tap=f"tap{number}",
        mac=f"52:54:00:00:00:{number:02x}",
        addresses=(f"10.0.0.{number}",),
        groups=(group,),
    )


def _prefix_rule(number: int) -> FilterRule:
    return replace(_mixed_rule(number), ports=PortRange(first=443, last=443))


def _mixed_rule(number: int) -> FilterRule:
    return FilterRule(
        direction=Direction.INGRESS,
        ether_type=EtherType.IPV4,
        protocol=6,
        ports=PortRange(first=1000 + 3 * number, last=1001 + 3 * number),
        remote_prefix=f"172.{16 + (number >> 8)}.{number & 255}.0/25",
    )
