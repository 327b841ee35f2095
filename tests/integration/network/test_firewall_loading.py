"""How the packet filter gets into the kernel and stays there: what it replaces, what it leaves alone, what survives a crash."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import pytest

from fabric.model.firewall import Direction, EtherType, FilterRule, HostFilters, PortFilter, RuleGroup
from hostd.core.connections import Connection
from hostd.core.firewall import TABLE, Tracking
from hostd.network import nfnetlink
from hostd.network.firewall import Firewall
from hostd.network.netns import Namespace
from hostd.processes import ProgramFailed
from tests.conformance.namespaces import a_namespace, inside, ip
from tests.integration.network import cases
from tests.integration.network.frames import IPV4, SYN, UDP, Seen, ethernet, fragments, packet, read, tcp, udp
from tests.integration.network.lan import Lan, a_lan

MISSING = [name for name in ("ip", "nft", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

BRIDGES = {cases.NETWORK: "br0"}


def nft(host: str, *words: str, script: str = "") -> str:
    command = ["ip", "netns", "exec", host, "nft", *words]
    return subprocess.run(command, input=script, check=True, capture_output=True, text=True).stdout


def listed(host: str, *, but: str = "") -> dict[str, list[str]]:
    """What is loaded, without handles, and without an order where there is none; `but` is a table to leave out."""
    found: dict[str, list[str]] = {}
    for it in json.loads(nft(host, "-j", "list", "ruleset"))["nftables"]:
        ((kind, said),) = it.items()
        said.pop("handle", None)
        if kind == "metainfo" or but in {said.get("table"), said["name"] if kind == "table" else None}:
            continue
        if "elem" in said:
            said["elem"] = sorted(said["elem"], key=repr)
        where = f"{said['family']} {said.get('table')} {said.get('chain', '')}"
        # Rules have an order in their chain; tables, chains and sets have none.
        found.setdefault(where if kind == "rule" else f"{where} {said['name']}", []).append(json.dumps(said))
    return found


def connections(host: str, zone: int) -> list[Connection]:
    found: list[Connection] = []

    def look(them: Iterable[Connection]) -> Iterator[Connection]:
        found.extend(them)
        return iter(())

    inside(host, partial(nfnetlink.forget, [zone], look))
    return found


@pytest.fixture
def host() -> Iterator[str]:
    with a_namespace("fw-host") as made:
        ip("link", "add", "br0", "type", "bridge", netns=made)
        yield made


async def test_changes_lead_where_loading_it_whole_would(host: str) -> None:
    """A change is a shortcut, and a shortcut may not end elsewhere: many made-up ones, each after the other."""
    chance = random.Random(11)
    firewall = Firewall(Namespace(host))
    filters = cases.filters(chance)
    for _ in range(25):
        await firewall.apply(filters, BRIDGES)
        stepwise = listed(host)
        await Firewall(Namespace(host)).apply(filters, BRIDGES)
        assert stepwise == listed(host)
        # The other one has loaded it whole meanwhile; that is somebody else to the first. Make it its own again.
        await firewall.apply(filters, BRIDGES)
        assert await firewall.intact()
        filters = cases.changed(chance, filters) if chance.random() < 0.8 else cases.filters(chance)


async def test_a_change_is_loaded_as_one(host: str) -> None:
    chance = random.Random(5)
    firewall = Firewall(Namespace(host))
    filters = cases.filters(chance)
    await firewall.apply(filters, BRIDGES)
    before = inside(host, nfnetlink.ruleset_generation)

    await firewall.apply(cases.changed(chance, filters), BRIDGES)

    assert inside(host, nfnetlink.ruleset_generation) == before + 1


async def test_what_is_as_it_should_be_is_not_loaded_again(host: str) -> None:
    firewall = Firewall(Namespace(host))
    filters = cases.filters(random.Random(5))
    await firewall.apply(filters, BRIDGES)
    before = inside(host, nfnetlink.ruleset_generation)

    await firewall.apply(filters, BRIDGES)

    assert inside(host, nfnetlink.ruleset_generation) == before


async def test_what_somebody_else_has_thrown_out_is_noticed_and_comes_back(host: str) -> None:
    """As `systemctl restart nftables` does: Debian's rules begin with `flush ruleset`."""
    firewall = Firewall(Namespace(host))
    filters = cases.filters(random.Random(6))
    await firewall.apply(filters, BRIDGES)
    loaded = listed(host)
    assert await firewall.intact()

    nft(host, "flush", "ruleset")

    assert not await firewall.intact()
    await firewall.apply(filters, BRIDGES)
    assert listed(host) == loaded


async def test_the_tables_of_others_are_left_alone(host: str) -> None:
    others = """
add table inet filter
add chain inet filter input { type filter hook input priority 0; policy accept; }
add rule inet filter input tcp dport 22 accept
add table bridge others
add set bridge others s { type ipv4_addr; elements = { 10.0.0.1 }; }
add table inet cellfabric-ports-of-somebody
"""
    nft(host, "-f", "-", script=others)
    before = listed(host)
    firewall = Firewall(Namespace(host))

    await firewall.apply(cases.filters(random.Random(6)), BRIDGES)
    await firewall.apply(cases.filters(random.Random(7)), BRIDGES)

    assert listed(host, but=TABLE) == before
    await firewall.dismantle()
    assert listed(host) == before


async def test_a_stray_of_ours_goes(host: str) -> None:
    """What an earlier life of ours has left in our tables, or has changed in them."""
    filters = cases.filters(random.Random(6))
    await Firewall(Namespace(host)).apply(filters, BRIDGES)
    loaded = listed(host)
    nft(
        host,
        "-f",
        "-",
        script=f"add chain bridge {TABLE} out-gone\nadd rule bridge {TABLE} out-gone accept\n"
        f'add element bridge {TABLE} egress {{ "gone" : jump out-gone }}\nflush chain bridge {TABLE} door\n',
    )

    await Firewall(Namespace(host)).apply(filters, BRIDGES)

    assert listed(host) == loaded


async def test_a_change_that_is_refused_is_loaded_whole(host: str) -> None:
    """Somebody changed our table so that the change does not fit, between our look and our load."""
    firewall = Firewall(Namespace(host))
    chance = random.Random(6)
    filters = cases.filters(chance)
    await firewall.apply(filters, BRIDGES)
    after = replace(filters, ports=filters.ports[:1])
    nft(host, "flush", "ruleset")
    firewall._generation = inside(host, nfnetlink.ruleset_generation)

    await firewall.apply(after, BRIDGES)

    stepwise = listed(host)
    await Firewall(Namespace(host)).apply(after, BRIDGES)
    assert stepwise == listed(host)


async def test_filters_that_cannot_be_said_change_nothing(host: str) -> None:
    firewall = Firewall(Namespace(host))
    filters = cases.filters(random.Random(6))
    await firewall.apply(filters, BRIDGES)
    loaded = listed(host)
    odd = replace(filters, ports=(replace(filters.ports[0], tap="tap0; flush ruleset"),))

    with pytest.raises(ValueError, match="does not match"):
        await firewall.apply(odd, BRIDGES)
    with pytest.raises(ValueError, match="no bridge"):
        await firewall.apply(filters, {})

    assert listed(host) == loaded


async def test_a_bridge_that_is_not_there_does_no_harm_to_the_next_try(host: str) -> None:
    firewall = Firewall(Namespace(host))
    filters = cases.filters(random.Random(6))

    with contextlib.suppress(ProgramFailed):
        await firewall.apply(filters, {cases.NETWORK: "br9"})
        # Where bridges track connections, nothing has to be asked of them, and a name that is not there yet is only a name.
        assert firewall.tracking is Tracking.BRIDGE
    await firewall.apply(filters, BRIDGES)

    assert await firewall.intact()


async def test_a_bridge_made_anew_is_filtered_like_the_one_before(host: str) -> None:
    firewall = Firewall(Namespace(host))
    filters = cases.filters(random.Random(6))
    await firewall.apply(filters, BRIDGES)
    led = ip("-d", "link", "show", "br0", netns=host).count("nf_call_iptables 1")
    ip("link", "del", "br0", netns=host)
    ip("link", "add", "br0", "type", "bridge", netns=host)

    await firewall.apply(filters, BRIDGES)

    assert ip("-d", "link", "show", "br0", netns=host).count("nf_call_iptables 1") == led


async def test_an_apply_cut_short_anywhere_is_made_good_by_the_next(host: str) -> None:
    """hostd is killed between any two things it does: whoever comes next finds its way from there."""
    chance = random.Random(12)
    filters = cases.filters(chance)
    firewall = Firewall(Namespace(host))
    for delay_ms in range(0, 60, 5):
        filters = cases.changed(chance, filters)
        cut = asyncio.create_task(firewall.apply(filters, BRIDGES))
        await asyncio.sleep(delay_ms / 1000)
        cut.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cut
        if chance.random() < 0.5:
            firewall = Firewall(Namespace(host))
        await firewall.apply(filters, BRIDGES)
        found = listed(host)
        await Firewall(Namespace(host)).apply(filters, BRIDGES)
        assert found == listed(host)


# ------------------------------------------------------------------ networks of the same addresses

HERE, THERE = "10.0.0.11", "10.0.0.12"
HERE_MAC, THERE_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
OPEN = RuleGroup(
    id="open",
    rules=frozenset(FilterRule(direction=direction, ether_type=EtherType.IPV4) for direction in Direction),
)
OUT = RuleGroup(
    id="out", rules=frozenset({FilterRule(direction=Direction.EGRESS, ether_type=EtherType.IPV4)})
)
TWO_BRIDGES = {"red": "br-red", "blue": "br-blue"}


def _pair(network: str, group: RuleGroup) -> tuple[PortFilter, PortFilter]:
    here, there = (
        PortFilter(
            port_id=f"{network}-{name}",
            instance_id=name,
            network_id=network,
            tap=f"{network}-{name}",
            mac=mac,
            addresses=(address,),
            groups=(group.id,),
        )
        for name, mac, address in (("here", HERE_MAC, HERE), ("there", THERE_MAC, THERE))
    )
    return here, there


def _two(red: RuleGroup, blue: RuleGroup) -> HostFilters:
    return HostFilters(ports=(*_pair("red", red), *_pair("blue", blue)), groups=(OPEN, OUT))


@pytest.fixture
def two() -> Iterator[Lan]:
    """Two tenants' networks on one host, with the same addresses and the same MACs."""
    with a_lan() as lan:
        for network, bridge in TWO_BRIDGES.items():
            lan.add_bridge(bridge)
            for name in ("here", "there"):
                lan.add_end(f"{network}-{name}", bridge)
        lan.up(*lan.ends)
        yield lan


def _said(lan: Lan, network: str, sender: str, payload: bytes, protocol: int = 6) -> list[Seen]:
    """What the other end of the network is given of a packet."""
    receiver = "there" if sender == "here" else "here"
    ways = {"here": (HERE_MAC, THERE_MAC, HERE, THERE), "there": (THERE_MAC, HERE_MAC, THERE, HERE)}
    mac, to, source, destination = ways[sender]
    lan.ends[f"{network}-{sender}"].send(
        ethernet(mac, to, IPV4, packet(source, destination, protocol, payload, number=9))
    )
    given = lan.settle()
    assert [tap for tap, frames in given.items() if frames and not tap.startswith(network)] == []
    return [seen for seen in map(read, given[f"{network}-{receiver}"]) if seen is not None]


def _syn() -> bytes:
    return tcp(HERE, THERE, 4000, 22, flags=SYN, seq=1, ack=0)


def _syn_ack() -> bytes:
    return tcp(THERE, HERE, 22, 4000, flags=SYN | 16, seq=1, ack=2)


async def test_a_connection_of_one_tenant_is_none_of_anothers(two: Lan) -> None:
    firewall = Firewall(Namespace(two.host))
    await firewall.apply(_two(OPEN, OUT), TWO_BRIDGES)

    assert _said(two, "red", "here", _syn())
    # The same addresses and ports. In red this is an answer, in blue it is nothing.
    assert _said(two, "blue", "there", _syn_ack()) == []
    assert _said(two, "red", "there", _syn_ack())
    assert _said(two, "blue", "here", _syn()) == []


async def test_cutting_one_tenants_connection_leaves_the_others(two: Lan) -> None:
    firewall = Firewall(Namespace(two.host))
    await firewall.apply(_two(OPEN, OPEN), TWO_BRIDGES)
    for network in TWO_BRIDGES:
        _said(two, network, "here", _syn())
        _said(two, network, "there", _syn_ack())

    await firewall.apply(_two(OPEN, OUT), TWO_BRIDGES)

    answer = tcp(THERE, HERE, 22, 4000, flags=16, seq=2, ack=2, payload=b"words")
    assert _said(two, "red", "there", answer)
    assert _said(two, "blue", "there", answer) == []


async def test_pieces_of_two_tenants_packets_are_not_put_together(two: Lan) -> None:
    """Same addresses, protocol and number. If they shared a queue, one tenant could write into the other's packets."""
    firewall = Firewall(Namespace(two.host))
    await firewall.apply(_two(OPEN, OPEN), TWO_BRIDGES)
    red, blue = (
        fragments(HERE, THERE, UDP, udp(HERE, THERE, 5, 6, word * 200), number=77, size=512)
        for word in (b"red ", b"blue")
    )

    two.ends["red-here"].send(ethernet(HERE_MAC, THERE_MAC, IPV4, red[0]))
    two.ends["blue-here"].send(ethernet(HERE_MAC, THERE_MAC, IPV4, blue[1]))
    assert not any(two.settle().values())
    two.ends["blue-here"].send(ethernet(HERE_MAC, THERE_MAC, IPV4, blue[0]))
    two.ends["red-here"].send(ethernet(HERE_MAC, THERE_MAC, IPV4, red[1]))
    given = two.settle()

    for network, pieces in (("red", red), ("blue", blue)):
        seen = sorted(it.payload for it in map(read, given[f"{network}-there"]) if it is not None)
        assert seen == sorted(piece[20:] for piece in pieces)


async def test_who_gets_an_address_inherits_no_connection(two: Lan) -> None:
    firewall = Firewall(Namespace(two.host))
    filters = _two(OPEN, OPEN)
    await firewall.apply(filters, TWO_BRIDGES)
    _said(two, "red", "here", _syn())
    assert len(connections(two.host, 2)) == 1

    here, *others = filters.ports
    heir = replace(here, port_id="heir")
    await firewall.apply(replace(filters, ports=(heir, *others)), TWO_BRIDGES)

    assert connections(two.host, 2) == []


async def test_zones_survive_a_restart_and_are_never_given_twice(two: Lan) -> None:
    filters = _two(OPEN, OPEN)
    only_red = replace(filters, ports=filters.ports[:2])
    await Firewall(Namespace(two.host)).apply(only_red, {"red": "br-red"})
    _said(two, "red", "here", _syn())

    firewall = Firewall(Namespace(two.host))
    await firewall.apply(filters, TWO_BRIDGES)

    # Blue comes first by name; red has the first zone all the same, and its connection.
    assert _said(two, "red", "there", _syn_ack())
    assert _said(two, "blue", "there", _syn_ack()) == []
