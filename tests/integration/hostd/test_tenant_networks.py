"""Two tenants with the same ranges on two hosts, on a real kernel: each reaches its own across hosts, and neither sees the other."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from fabric.model.firewall import TCP, FilterRule, RuleGroup
from hostd.core.firewall import link_local
from hostd.core.overlay import bridge_name, tunnel_name
from hostd.network.driver import LinuxWires
from tests.conformance.namespaces import inside, ip
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
    ask_udp,
    leftovers,
    pings,
    tunnelled,
)
from tests.integration.network.frames import (
    BROADCAST,
    ICMPV6,
    IPV4,
    IPV6,
    UDP,
    address_bytes,
    arp,
    ethernet,
    icmp,
    mac_bytes,
    packet,
    tagged,
    udp,
)

MISSING = [name for name in ("ip", "bridge", "nft", "dnsmasq", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

ONE, TWO = TenantNetwork("one", 0x11), TenantNetwork("two", 0x22)
ONE_A, ONE_B = TenantGuest(ONE, 0, 11), TenantGuest(ONE, 1, 12)
TWO_A, TWO_B = TenantGuest(TWO, 0, 11), TenantGuest(TWO, 1, 12)
ONE_ALONE, TWO_ALONE = TenantGuest(ONE, 0, 21), TenantGuest(TWO, 1, 22)
GUESTS = (ONE_A, ONE_B, TWO_A, TWO_B, ONE_ALONE, TWO_ALONE)


@dataclass
class Site:
    fabric: Fabric
    wires: tuple[LinuxWires, ...]

    def netns(self, guest: TenantGuest) -> str:
        return self.fabric.netns[guest.word]

    async def ask(
        self, guest: TenantGuest, address: str, *, timeout_s: float = PATIENCE_S
    ) -> tuple[str, str, bool]:
        """What answers at an address by TCP, by UDP and by ICMP."""
        netns = self.netns(guest)
        tcp, udp, icmp = await asyncio.gather(
            asyncio.to_thread(ask_tcp, netns, address, timeout_s=timeout_s),
            asyncio.to_thread(ask_udp, netns, address, timeout_s=timeout_s),
            asyncio.to_thread(pings, netns, address, timeout_s=timeout_s),
        )
        return tcp, udp, icmp


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with a_fabric() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(fabric: Fabric) -> AsyncIterator[Site]:
    made = Site(fabric, tuple(fabric.wires(host) for host in range(2)))
    for number, wires in enumerate(made.wires):
        await wires.prepare()
        await wires.follow(fabric.plan(number, GUESTS))
    for guest in GUESTS:
        fabric.connect(guest)
    for guest in GUESTS:
        await made.wires[guest.host].plug(guest.wiring)
        fabric.settle(guest)
    with contextlib.ExitStack() as stack:
        for guest in GUESTS:
            stack.enter_context(answering(fabric.netns[guest.word], guest.word))
        yield made
    for wires in made.wires:
        await wires.dismantle()
        await wires.close()
    for host, state in zip(fabric.hosts, fabric.states, strict=True):
        assert leftovers(host, state) == []


def addresses(guest: TenantGuest) -> list[str]:
    return [each.address for each in guest.port.addresses]


async def test_each_reaches_its_own_on_the_other_host_by_every_protocol(site: Site) -> None:
    for asker, asked in ((ONE_A, ONE_B), (ONE_B, ONE_A), (TWO_A, TWO_B), (TWO_B, TWO_A)):
        for address in addresses(asked):
            assert await site.ask(asker, address) == (asked.word, asked.word, True)


async def test_each_reaches_its_own_beside_it(site: Site) -> None:
    for address in addresses(ONE_A):
        assert await site.ask(ONE_ALONE, address) == (ONE_A.word, ONE_A.word, True)


async def test_a_neighbour_is_found_under_its_link_local_address(site: Site) -> None:
    there = f"{link_local(ONE_B.port.mac)}%eth0"

    assert await asyncio.to_thread(ask_tcp, site.netns(ONE_A), there) == ONE_B.word


async def test_what_only_the_other_tenant_has_is_nowhere(site: Site) -> None:
    for asker, asked in ((ONE_A, TWO_ALONE), (ONE_B, TWO_ALONE), (TWO_A, ONE_ALONE), (TWO_B, ONE_ALONE)):
        for address in addresses(asked):
            assert await site.ask(asker, address, timeout_s=SILENCE_S) == ("", "", False)


A4, A6, A_LL = "10.0.0.11", "fd00::b", link_local(ONE_A.port.mac)
B4, B6, B_LL = "10.0.0.12", "fd00::c", link_local(ONE_B.port.mac)
MAC, MAC_B, ALONE = ONE_A.port.mac, ONE_B.port.mac, ONE_ALONE.port.mac
NOBODY, ALL6 = "02:99:99:99:99:99", "33:33:00:00:00:01"
WORDS = b"heard-by-whom"


def four(source: str, to: str, mac_to: str, *, mac: str = MAC, ports: tuple[int, int] = (9, 12345)) -> bytes:
    payload = udp(source, to, *ports, WORDS)
    return ethernet(mac, mac_to, IPV4, packet(source, to, UDP, payload, number=1))


def six(source: str, to: str, mac_to: str, kind: int, rest: bytes, *, mac: str = MAC) -> bytes:
    payload = icmp(source, to, kind, 0, rest)
    return ethernet(mac, mac_to, IPV6, packet(source, to, ICMPV6, payload, number=1, hops=255))


def about(kind: int, target: str, mac: str) -> bytes:
    """What neighbour discovery says (135: asks) about an address and a MAC, after the checksum."""
    return bytes(4) + address_bytes(target) + bytes((kind - 134, 1)) + mac_bytes(mac)


async def given(site: Site, frames: dict[str, bytes]) -> tuple[dict[str, set[str]], set[str]]:
    """Which of the frames that the first guest sends each other guest is given, and which are seen on the underlay.

    Behind them goes one to each guest that it must be given: when that is there, nothing is to be waited for.
    """
    ears = {guest: Sniffer(site.netns(guest), "eth0") for guest in GUESTS if guest is not ONE_A}
    under = Sniffer(site.fabric.hosts[1], "under0")
    last = (four(A4, B4, MAC_B, ports=(9, 54321)), four(A4, "10.0.0.21", ALONE, ports=(9, 54321)))

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            for frame in (*frames.values(), *last):
                raw.send(frame)

    await asyncio.to_thread(inside, site.netns(ONE_A), send)
    heard = {guest: ear.taken() for guest, ear in ears.items()}
    inner = [found[1] for found in map(tunnelled, under.taken()) if found is not None]
    for ear in (*ears.values(), under):
        ear.close()
    assert last[0] in heard[ONE_B]
    assert last[1] in heard[ONE_ALONE]
    assert last[0] in inner
    assert [frame for frame in inner if frame[0] & 1] == []
    return (
        {
            guest.word: {what for what, frame in frames.items() if frame in got}
            for guest, got in heard.items()
        },
        {what for what, frame in frames.items() if frame in inner},
    )


async def test_what_a_guest_shouts_is_heard_beside_it_and_nowhere_else(site: Site) -> None:
    """Neither by the other tenant, nor by anybody on another host: no frame to everybody is in any tunnel."""
    shouts = {
        "ARP about nobody": arp(MAC, MAC, A4, "10.0.0.99"),
        "ARP about the other tenant's": arp(MAC, MAC, A4, "10.0.0.22"),
        "a broadcast": four(A4, "10.0.0.255", BROADCAST),
        "a multicast": four(A4, "224.0.0.1", "01:00:5e:00:00:01"),
        "ND about nobody": six(A6, "ff02::1:ff00:99", "33:33:ff:00:00:99", 135, about(135, "fd00::99", MAC)),
    }
    heard, tunnel = await given(site, shouts)
    assert heard.pop(ONE_ALONE.word) == shouts.keys()
    assert not any(heard.values())
    assert tunnel == set()

    aimed = {
        "the other tenant's MAC": four(A4, B4, TWO_B.port.mac),
        "nobody's MAC": four(A4, B4, NOBODY),
        # Answered here: the one who is asked about never hears of it.
        "ARP about a neighbour": arp(MAC, MAC, A4, B4),
        "ND about a neighbour": six(A6, "ff02::1:ff00:c", "33:33:ff:00:00:0c", 135, about(135, B6, MAC)),
    }
    heard, tunnel = await given(site, aimed)
    assert heard.pop(ONE_ALONE.word) <= {"ARP about a neighbour", "ND about a neighbour"}
    assert not any(heard.values())
    assert tunnel == set()


async def test_nothing_forged_passes_the_tap_it_comes_from(site: Site) -> None:
    offer = (67, 68)
    forged = {
        "another's IPv4": four(B4, "10.0.0.21", ALONE),
        "another's IPv4, to another host": four("10.0.0.21", B4, MAC_B),
        "another's MAC": four(A4, "10.0.0.21", ALONE, mac=MAC_B),
        "another's IPv6": six(B6, "fd00::15", ALONE, 128, bytes(4)),
        "ARP for another": arp(MAC, MAC, B4, "10.0.0.21", operation=2, destination=ALONE),
        "ARP for the gateway": arp(MAC, MAC, "10.0.0.1", "10.0.0.21", operation=2, destination=ALONE),
        "ARP for the services": arp(MAC, MAC, "10.0.0.2", "10.0.0.21", operation=2, destination=ALONE),
        "ND for another": six(A_LL, "ff02::1", ALL6, 136, about(136, B6, MAC)),
        "ND for the services": six(A_LL, "ff02::1", ALL6, 136, about(136, "fe80::a9fe:a9fe", MAC)),
        "a router": six(A_LL, "ff02::1", ALL6, 134, bytes(12)),
        "a DHCP server": four(A4, "255.255.255.255", BROADCAST, ports=offer),
        "a DHCP server, to another host": four(A4, B4, MAC_B, ports=offer),
        "a tag": tagged(four(A4, "10.0.0.21", ALONE), 1),
    }

    heard, tunnel = await given(site, forged)

    assert not any(heard.values())
    assert tunnel == set()


async def test_a_full_sized_packet_crosses_in_one_piece(site: Site) -> None:
    """As large as the guests' MTU says, not to be fragmented."""

    def ask() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: IP_PMTUDISC_DO
            client.sendto(b"x" * (1450 - 28), (addresses(ONE_B)[0], 7000))
            return client.recv(100).decode()

    assert await asyncio.to_thread(inside, site.netns(ONE_A), ask) == ONE_B.word


async def test_a_guest_reaches_nothing_of_the_host_it_is_on(site: Site) -> None:
    """Not the tunnel's address, by no MAC, and no answer to who asks for it."""
    netns, host = site.netns(ONE_A), site.fabric.hosts[0]
    bridge = ip("-o", "link", "show", "dev", bridge_name(ONE.id), netns=host)
    mac = bridge.split("link/ether ")[1].split()[0]
    with answering(host, "the host", 7001):
        ip("route", "replace", "192.0.2.0/24", "dev", "eth0", netns=netns)
        assert await asyncio.to_thread(ask_tcp, netns, "192.0.2.1", 7001, timeout_s=SILENCE_S) == ""
        ip("neighbour", "replace", "192.0.2.1", "lladdr", mac, "dev", "eth0", netns=netns)
        assert await asyncio.to_thread(ask_tcp, netns, "192.0.2.1", 7001, timeout_s=SILENCE_S) == ""
        ip("route", "delete", "192.0.2.0/24", netns=netns)
        # It does answer: on the underlay.
        assert await asyncio.to_thread(ask_tcp, site.fabric.hosts[1], "192.0.2.1", 7001) == "the host"


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The programs that are run from now on, by their last three words."""
    ran: list[tuple[str, ...]] = []
    real = asyncio.create_subprocess_exec

    async def counted(*command: str, **options: Any) -> asyncio.subprocess.Process:
        ran.append(command[-3:])
        return await real(*command, **options)

    # What runs programs is one function of the standard library's; there is no seam of ours below it.
    monkeypatch.setattr(asyncio, "create_subprocess_exec", counted)
    return ran


async def test_a_plan_that_says_the_same_runs_no_program(site: Site, programs: list[tuple[str, ...]]) -> None:
    await site.wires[0].follow(site.fabric.plan(0, GUESTS))

    assert programs == []


async def test_a_neighbour_more_or_less_is_a_batch_of_entries(
    site: Site, programs: list[tuple[str, ...]]
) -> None:
    for guests in ((*GUESTS, TenantGuest(ONE, 1, 33)), GUESTS):
        programs.clear()
        await site.wires[0].follow(site.fabric.plan(0, guests))
        assert programs == [("ip", "-batch", "-"), ("bridge", "-batch", "-")]

    assert "10.0.0.33" not in ip("neighbour", "show", netns=site.fabric.hosts[0])


async def test_a_rule_that_changes_is_one_transaction_and_holds_at_once(
    site: Site, programs: list[tuple[str, ...]]
) -> None:
    """Everything but UDP, then everything again. The filter loads whole what it loads first, so that is done before."""
    everything = site.fabric.plan(0, GUESTS)
    group = everything.filters.groups[0]
    narrower = RuleGroup(
        id=group.id,
        rules=frozenset(
            FilterRule(direction=rule.direction, ether_type=rule.ether_type, protocol=TCP)
            for rule in group.rules
        ),
    )
    address = addresses(ONE_A)[0]

    programs.clear()
    await site.wires[0].follow(site.fabric.plan(0, GUESTS, narrower))
    assert programs == [("nft", "-f", "-")]
    assert await asyncio.to_thread(ask_tcp, site.netns(ONE_ALONE), address) == ONE_A.word
    assert await asyncio.to_thread(ask_udp, site.netns(ONE_ALONE), address, timeout_s=SILENCE_S) == ""

    programs.clear()
    await site.wires[0].follow(everything)
    assert programs == [("nft", "-f", "-")]
    assert await site.ask(ONE_ALONE, address) == (ONE_A.word, ONE_A.word, True)


async def test_a_guest_that_moves_is_found_on_its_new_host(site: Site) -> None:
    """The last test: it leaves the guest there."""
    moved = TenantGuest(ONE, 0, 12)
    before = [guest for guest in GUESTS if guest is not ONE_B]
    tunnel = tunnel_name(ONE.id)
    assert moved.port.mac in inside_fdb(site, 0, tunnel)

    await site.wires[1].unplug(ONE_B.wiring.guest.id, 1)
    for host in (0, 1):
        await site.wires[host].follow(site.fabric.plan(host, (*before, moved)))
    site.fabric.netns.pop(moved.word)
    site.fabric.connect(moved)
    await site.wires[0].plug(moved.wiring)

    with answering(site.netns(moved), "moved"):
        assert await site.ask(ONE_A, addresses(moved)[0]) == ("moved", "moved", True)
    assert moved.port.mac not in inside_fdb(site, 0, tunnel)
    assert ONE.vni not in {int(each) for each in vnis(site, 1)}


def inside_fdb(site: Site, host: int, device: str) -> str:
    command = ("bridge", "-n", site.fabric.hosts[host], "fdb", "show", "dev", device)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def vnis(site: Site, host: int) -> list[str]:
    shown = ip("-d", "-o", "link", "show", "type", "vxlan", netns=site.fabric.hosts[host])
    return [line.split("vxlan id ")[1].split()[0] for line in shown.splitlines()]
