"""DHCP of both families, advertisements and metadata of tenant networks: each tenant's guests are told their own, hostd or no hostd."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from fabric.model.firewall import RuleGroup
from fabric.model.network import HostRoute
from fabric.model.network_plan import NetworkPlan, PlannedRouter, RouterLeg
from hostd.core.tenant_services import service_namespace
from hostd.network.base import Wiring
from hostd.network.driver import LinuxWires
from tests.conformance.guests import an_id
from tests.conformance.namespaces import inside, ip
from tests.integration.hostd.dhcp_clients import advertisement, declining, discover, say_to_dhcp, solicit
from tests.integration.hostd.tenant_hosts import (
    PATIENCE_S,
    SILENCE_S,
    Fabric,
    Sniffer,
    TenantGuest,
    TenantNetwork,
    a_fabric,
    answering,
    ask_tcp,
    leftovers,
    service_namespaces,
)

MISSING = [name for name in ("ip", "bridge", "nft", "dnsmasq", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

ONE, TWO = TenantNetwork("one", 0x11), TenantNetwork("two", 0x22)
ONE_A, ONE_B = TenantGuest(ONE, 0, 11), TenantGuest(ONE, 0, 12)
TWO_A = TenantGuest(TWO, 0, 11)
GUESTS = (ONE_A, ONE_B, TWO_A)
METADATA, METADATA6 = "169.254.169.254", "fe80::a9fe:a9fe%eth0"


def plan(fabric: Fabric) -> NetworkPlan:
    """The first network is isolated and has a route of its own; at the second's subnets is a router."""
    made = fabric.plan(0, GUESTS)
    one, two = made.networks
    four, six = one.subnets
    isolated = replace(
        four, gateway="", host_routes=(HostRoute(destination="10.9.0.0/16", next_hop="10.0.0.9"),)
    )
    legs = tuple(
        RouterLeg(
            network_id=TWO.id,
            subnet_id=subnet.id,
            address=subnet.gateway,
            prefix_length=int(subnet.cidr.partition("/")[2]),
            mac="fa:16:3e:99:00:01",
        )
        for subnet in two.subnets
    )
    return replace(
        made,
        networks=(replace(one, subnets=(isolated, six)), two),
        routers=(PlannedRouter(id=an_id("router"), vni=0x99, legs=legs),),
    )


@dataclass
class Site:
    fabric: Fabric
    wires: LinuxWires

    def netns(self, guest: TenantGuest) -> str:
        return self.fabric.netns[guest.word]

    def dhcp_pids(self) -> list[str]:
        folder = self.fabric.states[0] / "dhcp-networks"
        return [(folder / network.id / "dnsmasq.pid").read_text() for network in (ONE, TWO)]


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with a_fabric() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(fabric: Fabric) -> AsyncIterator[Site]:
    made = Site(fabric, fabric.wires(0))
    await made.wires.prepare()
    await made.wires.follow(plan(fabric))
    for guest in GUESTS:
        fabric.connect(guest)
        await made.wires.plug(guest.wiring)
        ip("route", "add", METADATA, "via", "10.0.0.2", netns=made.netns(guest))
    yield made
    await made.wires.dismantle()
    await made.wires.close()
    assert leftovers(fabric.hosts[0], fabric.states[0]) == []


def hostname(netns: str, address: str, *, timeout_s: float = PATIENCE_S) -> str:
    """What the metadata service at an address says to a guest about itself; empty where nobody answers."""

    def ask() -> str:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address, 80), timeout=timeout_s) as client,
        ):
            client.sendall(b"GET /latest/meta-data/hostname HTTP/1.1\r\nHost: metadata\r\n\r\n")
            said = b""
            while chunk := client.recv(65536):
                said += chunk
            return said.rpartition(b"\r\n\r\n")[2].decode()
        return ""

    return inside(netns, ask)


async def test_each_guest_gets_its_own_address_by_dhcp(site: Site) -> None:
    for guest in GUESTS:
        offer = await asyncio.to_thread(inside, site.netns(guest), lambda: discover(guest.port.mac))  # noqa: B023 - run at once

        assert offer.address == guest.port.address
        assert offer.options[1] == socket.inet_aton("255.255.255.0")
        assert offer.options[6] == socket.inet_aton("192.0.2.53")
        assert offer.options[12] == guest.word.encode()
        assert struct.unpack(">H", offer.options[26])[0] == 1450


@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "in pieces"])
async def test_nobody_declines_anothers_address(site: Site, in_pieces: bool) -> None:
    """As on the hosts' own network: the neighbour was offered none for ten minutes."""
    message = declining(ONE_B.port.mac, ONE_B.port.address, "10.0.0.2")
    own = declining(ONE_A.port.mac, ONE_B.port.address, "10.0.0.2")
    service = Sniffer(service_namespace(f"/run/netns/{site.fabric.hosts[0]}", ONE.id), "service0")

    def say() -> None:
        say_to_dhcp(ONE_A.port.address, message, in_pieces=in_pieces)
        say_to_dhcp(ONE_A.port.address, own, in_pieces=in_pieces)

    await asyncio.to_thread(inside, site.netns(ONE_A), say)
    heard = [frame[34 + 8 :] for frame in service.taken(lambda frame: frame[36:38] == b"\0\x43")]
    service.close()

    offer = await asyncio.to_thread(inside, site.netns(ONE_B), lambda: discover(ONE_B.port.mac))
    assert offer.address == ONE_B.port.address
    # What is said in one's own name is heard.
    assert message not in heard
    assert in_pieces or own in heard


async def test_the_way_to_metadata_is_told_with_a_router_and_without(site: Site) -> None:
    service = socket.inet_aton("10.0.0.2")
    to_metadata = b"\x20" + socket.inet_aton(METADATA) + service

    isolated = await asyncio.to_thread(inside, site.netns(ONE_A), lambda: discover(ONE_A.port.mac))
    routed = await asyncio.to_thread(inside, site.netns(TWO_A), lambda: discover(TWO_A.port.mac))

    assert 3 not in isolated.options
    assert isolated.options[121] == to_metadata + b"\x10\x0a\x09" + socket.inet_aton("10.0.0.9")
    assert routed.options[3] == socket.inet_aton("10.0.0.1")
    assert routed.options[121] == to_metadata + b"\0" + socket.inet_aton("10.0.0.1")


async def test_each_guest_gets_its_own_address_by_dhcpv6(site: Site) -> None:
    for guest in GUESTS:
        offer = await asyncio.to_thread(inside, site.netns(guest), lambda: solicit(guest.port.mac))  # noqa: B023 - run at once

        assert offer.address == guest.port.further[0].address
        assert offer.options[23] == socket.inet_pton(socket.AF_INET6, "2001:db8::53")


async def test_where_no_router_is_guests_are_sent_to_dhcp_and_told_of_no_way_out(site: Site) -> None:
    said = await asyncio.to_thread(inside, site.netns(ONE_A), lambda: advertisement(timeout_s=PATIENCE_S))

    assert said is not None
    assert said.source == "fe80::a9fe:a9fe"
    assert said.managed
    assert said.lifetime_s == 0
    assert said.mtu == 1450
    assert said.prefixes == {"fd00::/64": False}


async def test_where_a_router_is_it_is_the_one_that_advertises(site: Site) -> None:
    assert await asyncio.to_thread(inside, site.netns(TWO_A), lambda: advertisement(timeout_s=1)) is None


async def test_a_guest_that_nothing_is_allowed_gets_its_addresses_all_the_same(site: Site) -> None:
    """Metadata it does not get: that is an ordinary connection."""
    nothing = site.fabric.plan(0, GUESTS, RuleGroup(id="nothing"))
    await site.wires.follow(replace(plan(site.fabric), filters=nothing.filters))
    netns, port = site.netns(ONE_A), ONE_A.port

    offer = await asyncio.to_thread(inside, netns, lambda: discover(port.mac))
    offer6 = await asyncio.to_thread(inside, netns, lambda: solicit(port.mac))
    said = await asyncio.to_thread(inside, netns, lambda: advertisement(timeout_s=PATIENCE_S))
    assert (offer.address, offer6.address) == (port.address, port.further[0].address)
    assert said is not None
    assert await asyncio.to_thread(hostname, netns, METADATA, timeout_s=SILENCE_S) == ""

    await site.wires.follow(plan(site.fabric))
    assert await asyncio.to_thread(hostname, netns, METADATA) == ONE_A.word


async def test_equal_addresses_of_two_tenants_are_told_of_different_guests(site: Site) -> None:
    assert ONE_A.port.address == TWO_A.port.address
    for guest in GUESTS:
        for address in (METADATA, METADATA6):
            assert await asyncio.to_thread(hostname, site.netns(guest), address) == guest.word


async def test_metadata_speaks_of_a_guest_as_it_is_now(site: Site) -> None:
    wiring = ONE_A.wiring
    renamed = Wiring(guest=replace(wiring.guest, hostname="renamed"), placement_epoch=1)
    await site.wires.tell(renamed)
    assert await asyncio.to_thread(hostname, site.netns(ONE_A), METADATA) == "renamed"

    await site.wires.tell(wiring)
    assert await asyncio.to_thread(hostname, site.netns(ONE_A), METADATA) == ONE_A.word


async def test_what_runs_goes_on_without_hostd_and_the_next_one_finds_it(site: Site) -> None:
    servers = site.dhcp_pids()
    await site.wires.close()
    with answering(site.netns(ONE_B), "neighbour"):
        assert await asyncio.to_thread(ask_tcp, site.netns(ONE_A), ONE_B.port.address) == "neighbour"
    offer = await asyncio.to_thread(inside, site.netns(ONE_A), lambda: discover(ONE_A.port.mac))
    assert offer.address == ONE_A.port.address
    assert await asyncio.to_thread(hostname, site.netns(ONE_A), METADATA, timeout_s=SILENCE_S) == ""

    # Not told anything: it has the plan and the wirings on disk.
    site.wires = site.fabric.wires(0)
    await site.wires.prepare()

    assert site.dhcp_pids() == servers
    for guest in GUESTS:
        assert await asyncio.to_thread(hostname, site.netns(guest), METADATA) == guest.word
    await site.wires.plug(ONE_A.wiring)
    assert site.dhcp_pids() == servers


async def test_a_network_that_nobody_uses_any_more_leaves_nothing(site: Site) -> None:
    """The last test: it takes the guests away."""
    host, state = site.fabric.hosts[0], site.fabric.states[0]
    await site.wires.follow(NetworkPlan())
    # Planned no more, but guests use them: they stay.
    assert len(service_namespaces(host)) == 2

    await site.wires.unplug(TWO_A.wiring.guest.id, 1)
    assert len(service_namespaces(host)) == 1
    await site.wires.unplug(ONE_A.wiring.guest.id, 1)
    await site.wires.unplug(ONE_B.wiring.guest.id, 1)
    assert leftovers(host, state) == []
