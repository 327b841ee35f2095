"""The data plane on a real kernel: two guests (namespaces on the far ends of veths that bear the taps' names) and the world outside.

Each spoof is sent as raw Ethernet by a hostile guest and looked for at its neighbour; beside each test of what must not pass stands
one of what must, so that silence proves something.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fabric.clock import SystemClock
from fabric.model.network import Port
from hostd.core.faults import FaultCode
from hostd.core.tap_names import tap_name
from hostd.network.base import NetworkError, Wiring
from hostd.network.driver import LinuxWires, NetworkSettings
from tests.conformance.guests import a_guest, a_port
from tests.conformance.namespaces import a_namespace, inside, ip
from tests.integration.hostd.dhcp_clients import declining, discover, say_to_dhcp

MISSING = [name for name in ("ip", "bridge", "nft", "dnsmasq", "nsenter") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]

GATEWAY = "10.77.0.1"
OUTSIDE = "198.51.100.1"
UPLINK = "198.51.100.2"
NO_ADDRESS = "0.0.0.0"  # noqa: S104 - in namespaces that reach nobody
MARK = b"spoof-or-not"
PATIENCE_S = 15.0
SILENCE_S = 0.4


@dataclass(frozen=True)
class Site:
    """A host's namespace, two guests in it, and a world that knows the way to the host."""

    host: str
    outside: str
    guests: tuple[str, str]
    ports: tuple[Port, Port]
    state: Path

    def connect_guests(self, *, only: int | None = None) -> None:
        """Stand the namespaces in for guests: before they are plugged, as a tap that is there already."""
        for number, (guest, port) in enumerate(zip(self.guests, self.ports, strict=True)):
            if only not in {None, number}:
                continue
            tap = tap_name(port.id)
            ip("link", "add", tap, "type", "veth", "peer", "name", "eth0", "netns", guest, netns=self.host)
            ip("link", "set", "eth0", "address", port.mac, "up", netns=guest)
            ip("address", "add", f"{port.address}/24", "dev", "eth0", netns=guest)
            ip("route", "add", "default", "via", GATEWAY, netns=guest)

    def wires(self) -> LinuxWires:
        return LinuxWires(
            NetworkSettings(
                state=self.state, netns=self.host, guest_cidr="10.77.0.0/24", blocked=("203.0.113.0/24",)
            ),
            SystemClock(),
        )

    def wiring(self, number: int) -> Wiring:
        guest = a_guest(
            f"guest-{number}",
            hostname=f"guest-{number}",
            ports=(self.ports[number],),
            user_data=f"#!/bin/sh\necho {number}\n".encode(),
            public_keys={"key": f"ssh-ed25519 AAAA{number} somebody"},
        )
        return Wiring(guest=guest, placement_epoch=1)


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder that everybody may search. Below pytest's own, every pytest that starts on the machine takes that away again."""
    folder = Path(tempfile.mkdtemp(prefix="cf-wires-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def site(state: Path) -> Iterator[Site]:
    ports = (a_port(1), a_port(2))
    with contextlib.ExitStack() as stack:
        host, outside, *guests = (
            stack.enter_context(a_namespace(word)) for word in ("host", "out", "g1", "g2")
        )
        ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", outside, netns=host)
        ip("address", "add", f"{UPLINK}/24", "dev", "up0", netns=host)
        ip("link", "set", "up0", "up", netns=host)
        ip("address", "add", f"{OUTSIDE}/24", "dev", "eth0", netns=outside)
        ip("link", "set", "eth0", "up", netns=outside)
        ip("route", "add", "10.77.0.0/24", "via", UPLINK, netns=outside)
        yield Site(host, outside, (guests[0], guests[1]), ports, state)


@pytest.fixture
async def wires(site: Site) -> AsyncIterator[LinuxWires]:
    made = site.wires()
    await made.prepare()
    site.connect_guests()
    for number in (0, 1):
        await made.plug(site.wiring(number))
    yield made
    await made.dismantle()
    await made.close()


# ------------------------------------------------------------------ frames


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(to: str, source: str, kind: int, payload: bytes) -> bytes:
    return mac(to) + mac(source) + struct.pack(">H", kind) + payload


def ipv4(source: str, to: str, payload: bytes, protocol: int = 17) -> bytes:
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        1,
        0,
        64,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(to),
    )
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[12:] + payload


def udp(source: int, to: int, payload: bytes = MARK) -> bytes:
    return struct.pack(">HHHH", source, to, 8 + len(payload), 0) + payload


def arp(operation: int, sender_mac: str, sender: str, target: str) -> bytes:
    head = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation)
    return head + mac(sender_mac) + socket.inet_aton(sender) + b"\0" * 6 + socket.inet_aton(target) + MARK


def seen_by_neighbour(site: Site, frame: bytes, *, within_s: float) -> bool:
    """Whether the second guest sees a frame that the first one sends."""
    found = threading.Event()
    ready = threading.Event()

    def sniff() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as listener:
            listener.bind(("eth0", 0))
            listener.settimeout(within_s)
            ready.set()
            until = time.monotonic() + within_s
            with contextlib.suppress(TimeoutError):
                while time.monotonic() < until:
                    if MARK in listener.recv(4096):
                        found.set()
                        return

    def send() -> None:
        ready.wait(PATIENCE_S)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("eth0", 0))
            sender.send(frame)

    watcher = threading.Thread(target=inside, args=(site.guests[1], sniff))
    watcher.start()
    inside(site.guests[0], send)
    watcher.join()
    return found.is_set()


ALL = "ff:ff:ff:ff:ff:ff"
ME, OTHER = a_port(1), a_port(2)
STRANGER = "fa:16:3e:00:00:99"

HONEST = {
    "its own IPv4": ethernet(OTHER.mac, ME.mac, 0x0800, ipv4(ME.address, OTHER.address, udp(1000, 2000))),
    "its own ARP": ethernet(ALL, ME.mac, 0x0806, arp(1, ME.mac, ME.address, OTHER.address)),
    "an ARP probe": ethernet(ALL, ME.mac, 0x0806, arp(1, ME.mac, NO_ADDRESS, ME.address)),
}
FORGED = {
    "another's IPv4 source": ethernet(
        OTHER.mac, ME.mac, 0x0800, ipv4("10.77.0.77", OTHER.address, udp(1000, 2000))
    ),
    "the gateway's IPv4 source": ethernet(
        OTHER.mac, ME.mac, 0x0800, ipv4(GATEWAY, OTHER.address, udp(1000, 2000))
    ),
    "another's MAC": ethernet(OTHER.mac, STRANGER, 0x0800, ipv4(ME.address, OTHER.address, udp(1000, 2000))),
    "ARP for the gateway": ethernet(ALL, ME.mac, 0x0806, arp(2, ME.mac, GATEWAY, OTHER.address)),
    "ARP with another's MAC inside": ethernet(
        ALL, ME.mac, 0x0806, arp(2, STRANGER, ME.address, OTHER.address)
    ),
    "a DHCP server's offer": ethernet(ALL, ME.mac, 0x0800, ipv4(ME.address, "255.255.255.255", udp(67, 68))),
    "a router advertisement": ethernet(
        "33:33:00:00:00:01", ME.mac, 0x86DD, b"\x60\0\0\0\0\x0c\x3a\xff" + b"\xfe\x80" + b"\0" * 30 + MARK
    ),
    "a frame in a VLAN": ethernet(
        ALL, ME.mac, 0x8100, b"\0\x01\x08\0" + ipv4("10.77.0.77", OTHER.address, udp(1000, 2000))
    ),
    "a protocol nobody needs": ethernet(ALL, ME.mac, 0x88CC, MARK),
}


def nft(site: Site, script: str) -> str:
    """Run an nft script on the host."""
    command = ("ip", "netns", "exec", site.host, "nft", "-f", "-")
    return subprocess.run(command, input=script, text=True, capture_output=True, check=True).stdout


@pytest.mark.usefixtures("wires")
async def test_only_what_is_a_guests_own_passes_its_tap(site: Site) -> None:
    passed = {
        name
        for frames, within_s in ((HONEST, PATIENCE_S), (FORGED, SILENCE_S))
        for name, frame in frames.items()
        if await asyncio.to_thread(seen_by_neighbour, site, frame, within_s=within_s)
    }

    assert passed == HONEST.keys()


async def test_a_tap_that_no_rule_knows_may_send_nothing(site: Site, wires: LinuxWires) -> None:
    """Rules come before the tap and go after it; against any other order, silence is the default."""
    frame = HONEST["its own IPv4"]
    tap, unknown = tap_name(site.ports[0].id), tap_name("a port that nobody plugged")
    assert await asyncio.to_thread(seen_by_neighbour, site, frame, within_s=PATIENCE_S)

    rename(site, tap, unknown)
    assert not await asyncio.to_thread(seen_by_neighbour, site, frame, within_s=SILENCE_S)
    await wires.prepare()
    assert not await asyncio.to_thread(seen_by_neighbour, site, frame, within_s=SILENCE_S)


def rename(site: Site, before: str, after: str) -> None:
    """Give an interface of the host another name; it stays in its bridge."""
    ip("link", "set", before, "down", netns=site.host)
    ip("link", "set", before, "name", after, netns=site.host)
    ip("link", "set", after, "up", netns=site.host)


# ------------------------------------------------------------- conversations


def reach(netns: str, address: str, port: int, *, timeout_s: float = PATIENCE_S) -> str:
    """Connect from a namespace; what the other side says first, empty where there is no way."""

    def connect() -> str:
        try:
            with socket.create_connection((address, port), timeout=timeout_s) as client:
                return client.recv(100).decode()
        except OSError:
            return ""

    return inside(netns, connect)


@contextlib.contextmanager
def greeter(netns: str, port: int) -> Iterator[None]:
    """A server on every address of a namespace that tells each client where it came from."""

    def make() -> socket.socket:
        return socket.create_server((NO_ADDRESS, port))

    listening = inside(netns, make)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, (address, _) = listening.accept()
                with client:
                    client.sendall(address.encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@pytest.mark.usefixtures("wires")
async def test_a_guest_reaches_the_world_under_the_hosts_address(site: Site) -> None:
    with greeter(site.outside, 7000):
        assert await asyncio.to_thread(reach, site.guests[0], OUTSIDE, 7000) == UPLINK


@pytest.mark.usefixtures("wires")
async def test_the_world_reaches_a_guest_under_its_own_address(site: Site) -> None:
    with greeter(site.guests[0], 7000):
        assert await asyncio.to_thread(reach, site.outside, site.ports[0].address, 7000) == OUTSIDE


@pytest.mark.usefixtures("wires")
async def test_a_guest_reaches_nothing_of_the_host(site: Site) -> None:
    with greeter(site.host, 7000), greeter(site.host, 53):
        for address in (GATEWAY, UPLINK, "169.254.169.254"):
            for port in (7000, 53):
                assert await asyncio.to_thread(reach, site.guests[0], address, port, timeout_s=0.3) == ""
        # The server does answer: to the outside.
        assert await asyncio.to_thread(reach, site.outside, UPLINK, 7000) == OUTSIDE


@pytest.mark.usefixtures("wires")
async def test_a_guest_reaches_no_blocked_network(site: Site) -> None:
    ip("address", "add", "203.0.113.1/32", "dev", "lo", netns=site.outside)
    ip("route", "add", "203.0.113.0/24", "via", OUTSIDE, netns=site.host)
    with greeter(site.outside, 7000):
        assert await asyncio.to_thread(reach, site.guests[0], "203.0.113.1", 7000, timeout_s=0.3) == ""
        assert await asyncio.to_thread(reach, site.guests[0], OUTSIDE, 7000) == UPLINK


def ask(netns: str, request: str, timeout_s: float = PATIENCE_S) -> tuple[int, str]:
    """An HTTP exchange with the metadata service, byte for byte; status 0 where nobody answers."""

    def talk() -> tuple[int, str]:
        try:
            with socket.create_connection(("169.254.169.254", 80), timeout=timeout_s) as client:
                client.sendall(request.encode())
                received = b""
                while chunk := client.recv(65536):
                    received += chunk
        except OSError:
            return 0, ""
        head, _, body = received.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, body.decode()

    return inside(netns, talk)


def get(path: str, *headers: str, method: str = "GET") -> str:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: 169.254.169.254", *headers, "", ""))


@pytest.mark.usefixtures("wires")
async def test_each_guest_is_told_about_itself(site: Site) -> None:
    for number, netns in enumerate(site.guests):
        status, body = await asyncio.to_thread(ask, netns, get("/latest/meta-data/hostname"))
        assert (status, body) == (200, f"guest-{number}")
        status, body = await asyncio.to_thread(ask, netns, get("/openstack/latest/user_data"))
        assert (status, body) == (200, f"#!/bin/sh\necho {number}\n")
        status, body = await asyncio.to_thread(ask, netns, get("/openstack/latest/meta_data.json"))
        assert status == 200
        assert f'"uuid": "{site.wiring(number).guest.id}"' in body


@pytest.mark.usefixtures("wires")
async def test_no_header_makes_a_guest_another(site: Site) -> None:
    for header in ("X-Forwarded-For: 10.77.0.3", "Forwarded: for=10.77.0.3", "Via: 1.1 proxy"):
        status, body = await asyncio.to_thread(ask, site.guests[0], get("/latest/meta-data/hostname", header))
        assert (status, body) == (403, "")
    status, body = await asyncio.to_thread(
        ask, site.guests[0], get("/latest/meta-data/hostname", "X-Instance-ID: guest-1")
    )
    assert (status, body) == (200, "guest-0")


@pytest.mark.usefixtures("wires")
async def test_malformed_and_oversized_requests_get_nothing(site: Site) -> None:
    for request, expected in (
        ("nonsense\r\n\r\n", 400),
        (get("/openstack/../../etc/passwd"), 404),
        (get("/latest/meta-data/hostname", method="DELETE"), 405),
        (get("/", f"X-Long: {'x' * 10_000}"), 0),
    ):
        assert (await asyncio.to_thread(ask, site.guests[0], request))[0] == expected


@pytest.mark.usefixtures("wires")
async def test_a_stranger_is_told_nothing(site: Site) -> None:
    """Not from outside, and not from an address that no guest has."""
    assert await asyncio.to_thread(ask, site.outside, get("/"), 2.0) == (0, "")
    ip("route", "add", "169.254.169.254", "via", UPLINK, netns=site.outside)
    assert await asyncio.to_thread(ask, site.outside, get("/"), 2.0) == (0, "")


@pytest.mark.usefixtures("wires")
async def test_a_guest_that_has_no_address_yet_gets_its_own_by_dhcp(site: Site) -> None:
    offer = await asyncio.to_thread(inside, site.guests[1], lambda: discover(site.ports[1].mac))

    assert offer.address == site.ports[1].address
    assert offer.options[1] == socket.inet_aton("255.255.255.0")
    assert offer.options[3] == socket.inet_aton(GATEWAY)
    assert offer.options[6] == socket.inet_aton("192.0.2.53")
    assert struct.unpack(">H", offer.options[26])[0] == 1500
    gateway = socket.inet_aton(GATEWAY)
    assert offer.options[121] == b"\x20" + socket.inet_aton("169.254.169.254") + gateway + b"\0" + gateway
    assert offer.options[12] == b"guest-1"


@pytest.mark.usefixtures("wires")
@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "in pieces"])
async def test_nobody_declines_anothers_address(site: Site, in_pieces: bool) -> None:
    """A guest said in a neighbour's name that its address was in use, and the neighbour was offered none for ten minutes. Whose it is, DHCP
    says in the message and not by the frame.
    """
    message = declining(site.ports[1].mac, site.ports[1].address, GATEWAY)
    await asyncio.to_thread(inside, site.guests[1], lambda: discover(site.ports[1].mac))

    await asyncio.to_thread(
        inside, site.guests[0], lambda: say_to_dhcp(site.ports[0].address, message, in_pieces=in_pieces)
    )

    offer = await asyncio.to_thread(inside, site.guests[1], lambda: discover(site.ports[1].mac))
    assert offer.address == site.ports[1].address


# ------------------------------------------------------------------- faults


def dhcp_pid(site: Site) -> int:
    return int((site.state / "dhcp" / "dnsmasq.pid").read_text())


@pytest.mark.usefixtures("wires")
async def test_a_dead_dhcp_server_is_started_again(site: Site) -> None:
    first = dhcp_pid(site)
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(10):
        while dhcp_pid(site) == first:
            await asyncio.sleep(0.05)

    offer = await asyncio.to_thread(inside, site.guests[0], lambda: discover(site.ports[0].mac))
    assert offer.address == site.ports[0].address


@pytest.mark.usefixtures("wires")
async def test_an_address_that_a_guest_of_before_holds_is_its_next_ones(site: Site) -> None:
    """A server deleted and another made on its address: the old lease stood in the way for a day, and the new guest had no network."""
    before = dhcp_pid(site)
    os.kill(before, signal.SIGKILL)
    held = f"{int(time.time()) + 86400} fa:16:3e:00:00:99 {site.ports[1].address} before *\n"
    (site.state / "dhcp" / "dnsmasq.leases").write_text(held)

    async with asyncio.timeout(10):
        while dhcp_pid(site) == before:
            await asyncio.sleep(0.05)
    offer = await asyncio.to_thread(inside, site.guests[1], lambda: discover(site.ports[1].mac))

    assert offer.address == site.ports[1].address


async def test_a_bridge_that_somebody_took_away_is_made_and_served_anew(
    site: Site, wires: LinuxWires
) -> None:
    """Who manages the machine's network may flush what it does not know. What served the bridge before hears nothing of the new one."""
    ip("link", "del", "cellfabric0", netns=site.host)

    await wires.prepare()

    offer = await asyncio.to_thread(inside, site.guests[0], lambda: discover(site.ports[0].mac))
    assert offer.address == site.ports[0].address
    assert await asyncio.to_thread(ask, site.guests[0], get("/latest/meta-data/hostname")) == (200, "guest-0")


async def test_the_dhcp_server_can_read_again_what_a_careful_root_wrote(
    site: Site, wires: LinuxWires
) -> None:
    """It is nobody by then, and the daemon's umask may be anything."""
    before = os.umask(0o077)
    try:
        await wires.unplug(site.wiring(0).guest.id, 1)
        site.connect_guests(only=0)
        await wires.plug(site.wiring(0))
    finally:
        os.umask(before)

    offer = await asyncio.to_thread(inside, site.guests[0], lambda: discover(site.ports[0].mac))
    assert offer.address == site.ports[0].address


async def test_a_folder_in_which_the_dhcp_server_would_lose_its_leases_is_said(
    site: Site, wires: LinuxWires
) -> None:
    """It cannot say so itself: it reads nothing, forgets every guest and answers nobody."""
    # One that is still starting would read only now, and that is another fault.
    await asyncio.to_thread(inside, site.guests[0], lambda: discover(site.ports[0].mac))
    site.state.chmod(0o700)
    with pytest.raises(NetworkError) as refused:
        await wires.plug(site.wiring(0))
    assert refused.value.code == FaultCode.NETWORK_FAILED

    site.state.chmod(0o755)
    await wires.plug(site.wiring(0))
    offer = await asyncio.to_thread(inside, site.guests[0], lambda: discover(site.ports[0].mac))
    assert offer.address == site.ports[0].address


@pytest.mark.usefixtures("wires")
async def test_a_dhcp_server_leaves_the_machines_own_pid_file_alone(site: Site) -> None:
    """There is one for all servers of the machine: of two that start at once, one would find the other's, and give up."""
    offer = await asyncio.to_thread(inside, site.guests[0], lambda: discover(site.ports[0].mac))
    assert offer.address == site.ports[0].address

    with contextlib.suppress(FileNotFoundError):
        assert Path("/run/dnsmasq.pid").read_text().strip() != str(dhcp_pid(site))


async def test_a_new_daemon_serves_what_the_old_one_wired_without_being_told(
    site: Site, wires: LinuxWires
) -> None:
    """Guests outlive hostd, and a hostd may come up while no conductor can be reached."""
    server = dhcp_pid(site)
    await wires.close()
    assert (await asyncio.to_thread(ask, site.guests[0], get("/"), 2.0))[0] == 0

    successor = site.wires()
    await successor.prepare()
    try:
        assert (await asyncio.to_thread(ask, site.guests[0], get("/latest/meta-data/hostname")))[
            1
        ] == "guest-0"
        assert dhcp_pid(site) == server
        assert await successor.plugged() == {site.wiring(0).guest.id: 1, site.wiring(1).guest.id: 1}
        with greeter(site.outside, 7000):
            assert await asyncio.to_thread(reach, site.guests[0], OUTSIDE, 7000) == UPLINK
    finally:
        await successor.close()


async def test_a_server_whose_number_was_never_written_is_found_all_the_same(
    site: Site, wires: LinuxWires
) -> None:
    server = dhcp_pid(site)
    await wires.close()
    (site.state / "dhcp" / "dnsmasq.pid").unlink()

    successor = site.wires()
    await successor.prepare()
    await successor.dismantle()
    await successor.close()

    assert not Path(f"/proc/{server}").exists()


async def test_what_is_not_ours_is_never_touched(site: Site, wires: LinuxWires) -> None:
    ip("link", "add", "br-other", "type", "bridge", netns=site.host)
    ip("tuntap", "add", "dev", "tap-other", "mode", "tap", netns=site.host)
    nft(site, "add table inet other")

    await wires.unplug(site.wiring(0).guest.id, 1)
    await wires.prepare()
    await wires.dismantle()

    names = ip("-brief", "link", "show", netns=site.host)
    assert "br-other" in names
    assert "tap-other" in names
    assert "cellfabric0" not in names
    assert tap_name(site.ports[1].id) not in names
    assert nft(site, "list tables") == "table inet other\n"


async def test_a_stray_tap_that_nobody_holds_is_removed(site: Site, wires: LinuxWires) -> None:
    stray = tap_name("a port of long ago")
    ip("tuntap", "add", "dev", stray, "mode", "tap", netns=site.host)

    await wires.prepare()

    assert stray not in ip("-brief", "link", "show", netns=site.host)


async def test_a_tap_that_a_killed_daemon_left_half_made_is_finished(site: Site, wires: LinuxWires) -> None:
    """Its mark is on it from the beginning, and so says nothing about the rest."""
    await wires.close()
    ip("link", "set", "dev", tap_name(site.ports[0].id), "nomaster", netns=site.host)

    successor = site.wires()
    await successor.prepare()

    assert (await asyncio.to_thread(ask, site.guests[0], get("/latest/meta-data/hostname")))[1] == "guest-0"
    await successor.close()
