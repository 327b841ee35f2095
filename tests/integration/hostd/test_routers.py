"""Routers on a real kernel: two hosts, two tenants' routers, and a world outside. Host 1 is where both lead out."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from hostd.core.overlay import bridge_name
from hostd.network.driver import LinuxWires
from hostd.network.netns import Namespace
from hostd.network.routers import Routers
from tests.conformance.namespaces import a_namespace, inside, ip
from tests.integration.hostd.router_hosts import (
    GATEWAY,
    WORLD,
    ARouter,
    Conversation,
    RoutedFabric,
    RoutedGuest,
    RoutedNetwork,
    a_routed_fabric,
    ask,
    greeting,
    router_leftovers,
)
from tests.integration.hostd.tenant_hosts import PATIENCE_S, Sniffer, pings, tunnelled

MISSING = [name for name in ("ip", "bridge", "nft", "dnsmasq", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

LAN, DMZ = RoutedNetwork("lan", 0x31, 1), RoutedNetwork("dmz", 0x32, 2)
OTHERS = RoutedNetwork("others", 0x33, 1)
ALICE, ANNA, BOB = RoutedGuest(LAN, 0, 11), RoutedGuest(LAN, 0, 12), RoutedGuest(LAN, 1, 13)
DAVE, STRANGER = RoutedGuest(DMZ, 1, 14), RoutedGuest(OTHERS, 0, 11)
GUESTS = (ALICE, ANNA, BOB, DAVE, STRANGER)
OURS = ARouter("ours", 0x41, (LAN, DMZ), gateway=1, address="203.0.113.10")
THEIRS = ARouter("theirs", 0x42, (OTHERS,), gateway=1, address="203.0.113.20")
FLOATING, SPARE = "203.0.113.50", "203.0.113.51"


@dataclass
class Site:
    """What runs, and the plan that is followed: `follow` after a change of it."""

    routed: RoutedFabric
    wires: list[LinuxWires]
    routers: list[Routers]

    async def follow(self, *hosts: int) -> None:
        for host in hosts or (0, 1):
            await self.wires[host].follow(self.routed.plan(host))

    async def start_again(self) -> None:
        """Other processes on both hosts."""
        for host in (0, 1):
            await self.wires[host].close()
            await self.routers[host].close()
            self.wires[host], self.routers[host] = self.routed.wires(host)
            await self.wires[host].prepare()

    def netns(self, guest: RoutedGuest) -> str:
        return self.routed.netns(guest)


@pytest.fixture(scope="module")
def routed() -> Iterator[RoutedFabric]:
    with a_routed_fabric(GUESTS, (OURS, THEIRS)) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(routed: RoutedFabric) -> AsyncIterator[Site]:
    pairs = [routed.wires(host) for host in (0, 1)]
    made = Site(routed, [wires for wires, _ in pairs], [routers for _, routers in pairs])
    for wires in made.wires:
        await wires.prepare()
    await made.follow()
    for guest in GUESTS:
        routed.connect(guest)
        await made.wires[guest.host].plug(guest.wiring)
    yield made
    for host, netns in enumerate(routed.fabric.hosts):
        await made.wires[host].dismantle()
        await made.wires[host].close()
        assert router_leftovers(netns) == []


@pytest_asyncio.fixture(loop_scope="module")
async def site(whole: Site) -> AsyncIterator[Site]:
    """With one floating IP, which is Alice's."""
    whole.routed.floating = {FLOATING: ALICE}
    await whole.follow()
    yield whole


async def asked(netns: str, address: str, *, timeout_s: float = PATIENCE_S) -> str:
    return await asyncio.to_thread(ask, netns, address, timeout_s=timeout_s)


# ------------------------------------------------------------------ inside


@pytest.mark.parametrize("six", [False, True], ids=["v4", "v6"])
async def test_guests_of_two_networks_on_two_hosts_reach_each_other(site: Site, six: bool) -> None:
    alice, dave = (ALICE.address6, DAVE.address6) if six else (ALICE.address, DAVE.address)

    with greeting(site.netns(DAVE), "dave"), greeting(site.netns(ALICE), "alice"):
        assert await asked(site.netns(ALICE), dave) == f"dave {alice}"
        assert await asked(site.netns(DAVE), alice) == f"alice {dave}"


async def test_what_goes_to_another_network_is_routed_where_it_is_sent(site: Site) -> None:
    underlay = Sniffer(site.routed.fabric.hosts[0], "under0")

    with greeting(site.netns(DAVE), "dave"):
        await asked(site.netns(ALICE), DAVE.address)
    seen = {tunnel[0] for frame in underlay.taken() if (tunnel := tunnelled(frame))}
    underlay.close()

    # There by Dave's network, and back by Alice's: each was routed before it was sent.
    assert seen == {LAN.vni, DMZ.vni}


async def test_the_gateway_answers_and_nothing_is_served_there(site: Site) -> None:
    for gateway in ("10.1.0.1", "fd01::1", "10.2.0.1"):
        assert await asyncio.to_thread(pings, site.netns(ALICE), gateway)


async def test_an_ipv6_guest_is_told_of_the_router_and_of_nothing_else(site: Site) -> None:
    # A guest asks within a second of its link's coming up, and again after four (RFC 4861, 6.3.7).
    end_s = time.monotonic() + PATIENCE_S
    while "proto ra" not in (routes := ip("-6", "route", "show", "default", netns=site.netns(BOB))):
        assert time.monotonic() < end_s, f"nobody told it of a router: {routes!r}"
        await asyncio.sleep(0.05)

    assert routes.count("default") == 1
    # The address is DHCP's to give.
    addresses = ip("-6", "-o", "address", "show", "scope", "global", netns=site.netns(BOB))
    assert [line.split()[3] for line in addresses.splitlines()] == [f"{BOB.address6}/64"]


async def test_another_tenants_router_leads_nowhere_of_ours(site: Site) -> None:
    with greeting(site.netns(DAVE), "dave"):
        assert await asked(site.netns(STRANGER), DAVE.address, timeout_s=0.3) == ""


# ------------------------------------------------------------------ outside


@pytest.mark.parametrize("guest", [ANNA, BOB, DAVE], ids=lambda guest: guest.word)
async def test_who_has_no_floating_ip_goes_out_at_the_gateway_under_the_routers_address(
    site: Site, guest: RoutedGuest
) -> None:
    first = Sniffer(site.routed.fabric.hosts[0], "out0")

    with greeting(site.routed.world, "world"):
        assert await asked(site.netns(guest), WORLD) == f"world {OURS.address}"
        assert await asked(site.netns(guest), GATEWAY) == f"world {OURS.address}"
    passed = first.taken(_is_tcp)
    first.close()

    assert passed == []


async def test_a_floating_ip_leads_in_and_out_at_its_own_host(site: Site) -> None:
    gateway = Sniffer(site.routed.fabric.hosts[1], "out0")
    here = Sniffer(site.routed.fabric.hosts[0], "out0")
    underlay = Sniffer(site.routed.fabric.hosts[0], "under0")

    with greeting(site.routed.world, "world"), greeting(site.netns(ALICE), "alice"):
        assert await asked(site.routed.world, FLOATING) == f"alice {GATEWAY}"
        assert await asked(site.netns(ALICE), WORLD) == f"world {FLOATING}"
    seen, passed = here.taken(_is_tcp), gateway.taken(_is_tcp)
    tunnels = [frame for frame in underlay.taken() if tunnelled(frame)]
    for each in (gateway, here, underlay):
        each.close()

    assert seen
    assert passed == []
    assert tunnels == []


def _is_tcp(frame: bytes) -> bool:
    return frame[12:14] == b"\x08\x00" and frame[23] == 6


async def test_nobody_outside_reaches_a_fixed_address(site: Site) -> None:
    world = site.routed.world
    ip("route", "replace", "10.1.0.0/24", "via", OURS.address, netns=world)

    with greeting(site.netns(BOB), "bob"):
        assert await asked(world, BOB.address, timeout_s=0.3) == ""
    ip("route", "del", "10.1.0.0/24", netns=world)


async def test_nothing_leaves_from_an_address_that_is_not_to_be_seen_outside(site: Site) -> None:
    """From a port that nothing filters: what is not the network's stays here, whoever lets it be sent."""
    host = site.routed.fabric.hosts[1]
    sources = ("10.1.0.99", "198.51.100.99", "203.0.113.1", "fd01::99", "2001:db8::99")
    with a_namespace("x") as anybody:
        ip("link", "add", "any0", "type", "veth", "peer", "name", "eth0", "netns", anybody, netns=host)
        ip("link", "set", "any0", "master", bridge_name(LAN.id), "up", netns=host)
        ip("link", "set", "eth0", "up", netns=anybody)
        for source in sources:
            ip(
                "address",
                "add",
                f"{source}/{128 if ':' in source else 32}",
                "dev",
                "eth0",
                "nodad",
                netns=anybody,
            )
        four, six = LAN.legs
        for leg, default in ((four, "0.0.0.0/0"), (six, "::/0")):
            ip("neighbour", "add", leg.address, "lladdr", leg.mac, "dev", "eth0", netns=anybody)
            ip("route", "replace", default, "via", leg.address, "dev", "eth0", "onlink", netns=anybody)
        outside = Sniffer(host, "out0")

        def send() -> None:
            for number, source in enumerate(sources):
                six = ":" in source
                family = socket.AF_INET6 if six else socket.AF_INET
                with socket.socket(family, socket.SOCK_DGRAM) as wire:
                    wire.bind((source, 0))
                    wire.sendto(f"from {number}".encode(), ("2001:db8:1::7" if six else WORLD, 9))

        # The world is known to be there, so that nothing waits to be asked for.
        router = next(name for name in router_leftovers(host) if ".cfr-" in name and _is_of(name, OURS))
        mac = json.loads(ip("-j", "link", "show", "segment", netns=site.routed.world))[0]["address"]
        ip("neighbour", "replace", "2001:db8:1::7", "lladdr", mac, "dev", "outside", netns=router)
        ip("route", "add", "2001:db8:1::/64", "dev", "outside", netns=router)
        inside(anybody, send)
        seen = {frame[-1:] for frame in outside.taken(lambda frame: b"from " in frame)}
        outside.close()
        ip("route", "del", "2001:db8:1::/64", "dev", "outside", netns=router)
        ip("neighbour", "del", "2001:db8:1::7", "dev", "outside", netns=router)

    assert seen == {b"0", b"3"}


async def test_nobody_outside_passes_for_a_neighbour(site: Site) -> None:
    """By a floating IP, and over IPv6 by the address itself, the world reached a port under the address of another one of its network."""
    world = site.routed.world
    outside = OURS.planned(ALICE.host, site.routed.floating).outside
    assert outside is not None
    sources = {"198.51.100.8": FLOATING, BOB.address: FLOATING}
    sources |= {"2001:db8:1::7": ALICE.address6, BOB.address6: ALICE.address6}
    for address in (FLOATING, ALICE.address6):
        ip("neighbour", "replace", address, "lladdr", outside.mac, "dev", "segment", netns=world)
    ip("route", "replace", f"{ALICE.address6}/128", "dev", "segment", netns=world)
    for source in sources:
        ip("address", "add", _alone(source), "dev", "segment", "nodad", netns=world)
    arrived = Sniffer(site.netns(ALICE), "eth0")

    def send() -> None:
        for number, (source, destination) in enumerate(sources.items()):
            family = socket.AF_INET6 if ":" in source else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as wire:
                wire.bind((source, 0))
                wire.sendto(f"from {number}".encode(), (destination, 9))

    inside(world, send)
    seen = {frame[-1:] for frame in arrived.taken(lambda frame: frame[-6:-1] == b"from ")}
    arrived.close()
    for source in sources:
        ip("address", "del", _alone(source), "dev", "segment", netns=world)
    ip("route", "del", f"{ALICE.address6}/128", "dev", "segment", netns=world)
    for address in (FLOATING, ALICE.address6):
        ip("neighbour", "del", address, "dev", "segment", netns=world)

    assert seen == {b"0", b"2"}


def _alone(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def _is_of(namespace: str, router: ARouter) -> bool:
    return router.id in ip("link", "show", "lo", netns=namespace)


@pytest.mark.parametrize("guest", [ALICE, ANNA, BOB, DAVE, STRANGER], ids=lambda guest: guest.word)
async def test_a_floating_ip_is_the_same_from_everywhere(site: Site, guest: RoutedGuest) -> None:
    with greeting(site.netns(ALICE), "alice"):
        told = await asked(site.netns(guest), FLOATING)

    assert told.startswith("alice ")
    # Never under an address that only others' networks know.
    if guest is STRANGER:
        assert told == f"alice {THEIRS.address}"
    if guest is ALICE:
        assert told == f"alice {FLOATING}"


async def test_a_floating_ip_goes_to_a_port_on_another_host_at_once(site: Site) -> None:
    with greeting(site.netns(ALICE), "alice"), greeting(site.netns(DAVE), "dave"):
        before = await asked(site.routed.world, FLOATING)
        site.routed.floating = {FLOATING: DAVE}
        await site.follow()
        # Whoever is not told that the address has moved finds out by himself, after five seconds at the least.
        after = await asked(site.routed.world, FLOATING, timeout_s=4.0)
        with greeting(site.routed.world, "world"):
            of_dave, of_alice = await asked(site.netns(DAVE), WORLD), await asked(site.netns(ALICE), WORLD)

    assert (before, after) == (f"alice {GATEWAY}", f"dave {GATEWAY}")
    assert (of_dave, of_alice) == (f"world {FLOATING}", f"world {OURS.address}")


async def test_a_floating_ip_that_goes_takes_its_connections_along_and_no_others(site: Site) -> None:
    site.routed.floating = {FLOATING: ALICE, SPARE: ANNA}
    await site.follow()
    with greeting(site.netns(ALICE), "alice"), greeting(site.netns(ANNA), "anna"):
        goes, stays = Conversation(site.routed.world, FLOATING), Conversation(site.routed.world, SPARE)
        assert goes.goes_on()
        site.routed.floating = {SPARE: ANNA}
        await site.follow()

        assert stays.goes_on()
        assert not goes.goes_on(timeout_s=0.5)
        assert await asked(site.routed.world, FLOATING, timeout_s=0.3) == ""
        goes.close()
        stays.close()


async def test_a_floating_ip_that_leads_to_another_port_of_the_host_cuts_whom_it_led_to(site: Site) -> None:
    with greeting(site.netns(ALICE), "alice"), greeting(site.netns(ANNA), "anna"):
        was = Conversation(site.routed.world, FLOATING)
        site.routed.floating = {FLOATING: ANNA}
        await site.follow()

        assert not was.goes_on(timeout_s=0.5)
        assert await asked(site.routed.world, FLOATING) == f"anna {GATEWAY}"
        was.close()


# ------------------------------------------------------------------ changes


async def test_another_process_that_takes_over_interrupts_nothing_and_makes_nothing_anew(site: Site) -> None:
    before = {host: everything_of(host) for host in site.routed.fabric.hosts}
    with greeting(site.netns(ALICE), "alice"), greeting(site.routed.world, "world"):
        comes, leaves = Conversation(site.routed.world, FLOATING), Conversation(site.netns(BOB), WORLD)
        await site.start_again()
        # What is there stays, whether or not anybody says that it may.
        assert comes.goes_on()
        assert leaves.goes_on()
        await site.follow()

        assert comes.goes_on()
        assert leaves.goes_on()
        comes.close()
        leaves.close()
    assert {host: everything_of(host) for host in site.routed.fabric.hosts} == before


def everything_of(host: str) -> dict[str, list[str]]:
    """The interfaces of a host's routers by namespace, each with its number, which another one would not have; addresses and routes."""
    return {
        name: [
            line
            for words in (("-o", "link"), ("-o", "address"), ("route", "show", "table", "all"), ("rule",))
            for line in ip(*words, netns=name).splitlines()
            if "valid_lft" not in line or "inet" in line
        ]
        for name in router_leftovers(host)
        if ".cfr-" in name
    }


async def test_the_same_plan_again_changes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[object] = []
    # What is run in a router's namespace is what this is about: nothing may be.
    monkeypatch.setattr("hostd.network.netns.run", lambda *words, **_: ran.append(words))

    for host, routers in enumerate(site.routers):
        plan = site.routed.plan(host)
        await routers.converge(
            plan, {network.id: bridge_name(network.id) for network in plan.networks}, told=True
        )

    assert ran == []


async def test_the_gateway_moves_to_another_host(site: Site) -> None:
    moved = ARouter(OURS.word, OURS.vni, OURS.networks, gateway=0, address=OURS.address)
    site.routed.routers = (moved, THEIRS)
    await site.follow()
    try:
        with greeting(site.routed.world, "world"), greeting(site.netns(ALICE), "alice"):
            assert await asked(site.netns(DAVE), WORLD) == f"world {OURS.address}"
            assert await asked(site.netns(ANNA), WORLD) == f"world {OURS.address}"
            assert await asked(site.netns(BOB), FLOATING) == f"alice {OURS.address}"
    finally:
        site.routed.routers = (OURS, THEIRS)
        await site.follow()


async def test_a_router_that_goes_leaves_nothing_and_the_other_goes_on(site: Site) -> None:
    with greeting(site.routed.world, "world"):
        talk = Conversation(site.netns(STRANGER), WORLD)
        site.routed.routers = (THEIRS,)
        site.routed.floating = {}
        await site.follow()
        left = [router_leftovers(host) for host in site.routed.fabric.hosts]
        went_on = talk.goes_on()
        talk.close()
        site.routed.routers = (OURS, THEIRS)
        await site.follow()

        assert went_on
        # One namespace with two legs, and at the second host, whose uplink is a bridge, an end in that.
        assert [len(each) for each in left] == [3, 4]
        assert await asked(site.netns(ANNA), WORLD) == f"world {OURS.address}"


async def test_a_namespace_that_is_not_ours_is_left_alone(site: Site) -> None:
    host = site.routed.fabric.hosts[0]
    name = f"{host}.cfr-strangers"
    ip("netns", "add", name)
    try:
        ip("link", "set", "lo", "alias", "of somebody else", netns=name)
        await site.start_again()
        await site.follow()

        assert name in router_leftovers(host)
    finally:
        ip("netns", "del", name)


async def test_what_leads_nowhere_is_said_and_stands_in_no_others_way(site: Site) -> None:
    routers, netns = site.routers[0], site.routed.fabric.hosts[0]
    site.routers[0] = Routers(Namespace(netns), {})
    plan = site.routed.plan(0)
    bridges = {network.id: bridge_name(network.id) for network in plan.networks}
    await routers.close()
    try:
        with pytest.raises(ValueError, match="external"):
            await site.routers[0].converge(plan, bridges, told=True)
        with greeting(site.netns(DAVE), "dave"), greeting(site.routed.world, "world"):
            assert await asked(site.netns(ALICE), DAVE.address) == f"dave {ALICE.address}"
            # Its floating IP is nowhere; it goes out as who has none.
            assert await asked(site.netns(ALICE), WORLD) == f"world {OURS.address}"
    finally:
        await site.routers[0].close()
        site.routers[0] = routers
        routers.distrust()
        await site.start_again()


async def test_a_machine_that_starts_again_routes_and_takes_no_address_outside_unasked(site: Site) -> None:
    """The conductor may be away; and what was here may be elsewhere by now."""
    for host, netns in enumerate(site.routed.fabric.hosts):
        await site.wires[host].close()
        for name in router_leftovers(netns):
            if ".cfr-" in name:
                ip("netns", "del", name)
    await site.start_again()

    with greeting(site.netns(ALICE), "alice"), greeting(site.routed.world, "world"):
        with greeting(site.netns(DAVE), "dave", 7200):
            assert await asyncio.to_thread(reached, site.netns(ALICE), DAVE.address, 7200)
        # Who remembers where it was would go on finding it there, as long as it is nowhere else.
        ip("neighbour", "flush", "dev", "segment", netns=site.routed.world)
        assert await asked(site.routed.world, FLOATING, timeout_s=0.3) == ""
        await site.follow()
        assert await asked(site.routed.world, FLOATING) == f"alice {GATEWAY}"
        assert await asked(site.netns(BOB), WORLD) == f"world {OURS.address}"


def reached(netns: str, address: str, port: int) -> bool:
    talk = Conversation(netns, address, port)
    if talk.greeted:
        talk.close()
    return talk.greeted != ""
