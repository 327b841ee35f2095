"""Hosts with tenant networks for tests: namespaces that an underlay joins, and guests that are namespaces behind veths named like taps."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.clock import SystemClock
from fabric.model.firewall import HostFilters, PortFilter, RuleGroup
from fabric.model.network import Port, PortAddress
from fabric.model.network_plan import Neighbour, NetworkPlan, PlannedNetwork, PlannedSubnet
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from hostd.core.firewall import link_local
from hostd.core.tap_names import tap_name
from hostd.core.tenant_services import host_prefix
from hostd.network.base import Wiring
from hostd.network.driver import LinuxWires, NetworkSettings
from tests.conformance.guests import a_guest, an_id, everything
from tests.conformance.namespaces import a_namespace, inside, ip

TUNNELS = ("192.0.2.1", "192.0.2.2")
PATIENCE_S = 15.0
"""How long is asked what must be answered: the first packet may be lost, and a busy machine be slow."""
SILENCE_S = 0.5
"""How long is asked what must not be."""
MTU = 1450


@dataclass(frozen=True)
class TenantNetwork:
    """A network of a tenant's, which takes the same ranges as any other."""

    word: str
    vni: int

    @property
    def id(self) -> str:
        return an_id(f"network {self.word}")

    def planned(self, **changes: Any) -> PlannedNetwork:
        fields: dict[str, Any] = {
            "id": self.id,
            "vni": self.vni,
            "mtu": MTU,
            "subnets": (
                PlannedSubnet(
                    id=an_id(f"{self.word} v4"),
                    cidr="10.0.0.0/24",
                    gateway="10.0.0.1",
                    service_address="10.0.0.2",
                    dns_servers=("192.0.2.53",),
                ),
                PlannedSubnet(
                    id=an_id(f"{self.word} v6"),
                    cidr="fd00::/64",
                    gateway="fd00::1",
                    service_address="fd00::2",
                    dns_servers=("2001:db8::53",),
                ),
            ),
        }
        return PlannedNetwork(**fields | changes)


@dataclass(frozen=True)
class TenantGuest:
    """A guest on the host of that number, with the network's addresses of `number`. `netns` is empty until it is connected."""

    network: TenantNetwork
    host: int
    number: int

    @property
    def word(self) -> str:
        return f"{self.network.word}-{self.number}"

    @property
    def port(self) -> Port:
        return Port(
            id=an_id(f"port {self.word}"),
            network_id=self.network.id,
            network_name=self.network.word,
            mac=f"fa:16:3e:{self.network.vni:02x}:00:{self.number:02x}",
            address=f"10.0.0.{self.number}",
            prefix_length=24,
            gateway="10.0.0.1",
            mtu=MTU,
            vni=self.network.vni,
            further=(PortAddress(address=f"fd00::{self.number:x}", prefix_length=64, gateway="fd00::1"),),
        )

    @property
    def wiring(self) -> Wiring:
        guest = a_guest(self.word, hostname=self.word, ports=(self.port,))
        return Wiring(guest=guest, placement_epoch=1)

    def filter(self, group: RuleGroup) -> PortFilter:
        return PortFilter(
            port_id=self.port.id,
            instance_id=an_id(self.word),
            network_id=self.network.id,
            tap=tap_name(self.port.id),
            mac=self.port.mac,
            addresses=tuple(each.address for each in self.port.addresses),
            groups=(group.id,),
        )


@dataclass
class Fabric:
    """Two hosts and what is on them."""

    hosts: tuple[str, ...]
    states: tuple[Path, ...]
    stack: contextlib.ExitStack
    netns: dict[str, str] = field(default_factory=dict)

    def wires(self, host: int, failpoints: Failpoints = NO_FAILPOINTS) -> LinuxWires:
        settings = NetworkSettings(state=self.states[host], netns=self.hosts[host], plan_patience_s=1)
        return LinuxWires(settings, SystemClock(), failpoints=failpoints)

    def connect(self, guest: TenantGuest) -> str:
        """Stand a namespace in for the guest, before it is plugged, as a tap that is there already."""
        netns = self.netns.setdefault(guest.word, "") or self.stack.enter_context(a_namespace("g"))
        self.netns[guest.word] = netns
        port, tap, host = guest.port, tap_name(guest.port.id), self.hosts[guest.host]
        ip("link", "add", tap, "type", "veth", "peer", "name", "eth0", "netns", netns, netns=host)
        inside(netns, lambda: Path("/proc/sys/net/ipv6/conf/eth0/dad_transmits").write_text("0"))
        ip("link", "set", "eth0", "address", port.mac, "mtu", str(MTU), "up", netns=netns)
        for each in port.addresses:
            ip(
                "address",
                "add",
                f"{each.address}/{each.prefix_length}",
                "dev",
                "eth0",
                *(("nodad",) if ":" in each.address else ()),
                netns=netns,
            )
        return netns

    def settle(self, guest: TenantGuest) -> None:
        """Wait until the guest has all its addresses: it makes its link-local one itself, some time after its link is up."""
        until = time.monotonic() + 2 * PATIENCE_S
        own = f"{link_local(guest.port.mac)}/64"
        while own not in ip("address", "show", "dev", "eth0", "-tentative", netns=self.netns[guest.word]):
            assert time.monotonic() < until, f"{guest.word} has no {own}"
            time.sleep(0.02)

    def plan(
        self, host: int, guests: tuple[TenantGuest, ...], group: RuleGroup | None = None, **changes: Any
    ) -> NetworkPlan:
        """The host's plan where these guests are all there are."""
        group = group or everything()
        local = [guest for guest in guests if guest.host == host]
        networks = {guest.network.id: guest.network for guest in local}
        fields: dict[str, Any] = {
            "tunnel_address": TUNNELS[host],
            "networks": tuple(
                network.planned(
                    neighbours=tuple(
                        Neighbour(
                            port_id=guest.port.id,
                            mac=guest.port.mac,
                            addresses=tuple(each.address for each in guest.port.addresses),
                            tunnel_address=TUNNELS[guest.host],
                        )
                        for guest in guests
                        if guest.network == network and guest.host != host
                    )
                )
                for network in networks.values()
            ),
            "filters": HostFilters(
                ports=tuple(guest.filter(group) for guest in local), groups=(group,) if local else ()
            ),
        }
        return NetworkPlan(**fields | changes)


@contextlib.contextmanager
def a_fabric() -> Iterator[Fabric]:
    with contextlib.ExitStack() as stack:
        hosts = tuple(stack.enter_context(a_namespace(f"h{number}")) for number in range(2))
        states = []
        for _ in hosts:
            # Everybody may search it. Below pytest's own, every pytest that starts on the machine takes that away again.
            folder = Path(tempfile.mkdtemp(prefix="cf-tenants-"))
            folder.chmod(0o755)
            stack.callback(shutil.rmtree, folder)
            states.append(folder)
        ip(
            "link",
            "add",
            "under0",
            "type",
            "veth",
            "peer",
            "name",
            "under0",
            "netns",
            hosts[1],
            netns=hosts[0],
        )
        for host, address in zip(hosts, TUNNELS, strict=True):
            ip("address", "add", f"{address}/24", "dev", "under0", netns=host)
            ip("link", "set", "under0", "mtu", "1500", "up", netns=host)
        # As Docker has it in a container, and many an administrator: what guests speak is not the host's affair.
        inside(hosts[1], lambda: Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1"))
        yield Fabric(hosts, tuple(states), stack)


# ------------------------------------------------------------------ what a host has


def leftovers(host: str, state: Path) -> list[str]:
    """What is there of tenant networks on a host, in words; nothing when there is none."""
    found = [
        line.split()[0]
        for line in ip("-brief", "link", "show", netns=host).splitlines()
        if line.startswith(("cfb", "cfx", "cfs", "cft"))
    ]
    found += [f"netns {each}" for each in service_namespaces(host)]
    found += [f"file {path.relative_to(state)}" for path in state.rglob("*") if _is_of_tenants(path, state)]
    return found


def _is_of_tenants(path: Path, state: Path) -> bool:
    return path.relative_to(state).parts[0] == "dhcp-networks" and path != state / "dhcp-networks"


def service_namespaces(host: str) -> list[str]:
    """The service namespaces of a host."""
    prefix = host_prefix(f"/run/netns/{host}")
    return sorted(path.name for path in Path("/run/netns").iterdir() if path.name.startswith(prefix))


# ------------------------------------------------------------------ conversations


@contextlib.contextmanager
def answering(netns: str, word: str, port: int = 7000) -> Iterator[None]:
    """TCP and UDP servers of both families in a namespace that say `word` to whoever asks."""

    def make() -> list[socket.socket]:
        tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.bind(("::", port))
        return [tcp, udp]

    tcp, udp = inside(netns, make)

    def serve_tcp() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = tcp.accept()
                with client:
                    client.sendall(word.encode())

    def serve_udp() -> None:
        with contextlib.suppress(OSError):
            while True:
                said, who = udp.recvfrom(100)
                if not said:
                    return
                udp.sendto(word.encode(), who)

    threads = [threading.Thread(target=serve_tcp), threading.Thread(target=serve_udp)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        tcp.shutdown(socket.SHUT_RDWR)
        # A datagram of nothing, from itself: closing does not wake whoever reads.
        inside(netns, lambda: _nothing_to(port))
        for thread in threads:
            thread.join()
        tcp.close()
        udp.close()


def _nothing_to(port: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.sendto(b"", ("::1", port))


def ask_tcp(netns: str, address: str, port: int = 7000, *, timeout_s: float = PATIENCE_S) -> str:
    """What a TCP server says first, empty where there is no way."""

    def ask() -> str:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address, port), timeout=timeout_s) as client,
        ):
            return client.recv(100).decode()
        return ""

    return inside(netns, ask)


def ask_udp(netns: str, address: str, port: int = 7000, *, timeout_s: float = PATIENCE_S) -> str:
    """The same by UDP, asking again every second."""

    def ask() -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        until = time.monotonic() + timeout_s
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as client:
            while (left_s := until - time.monotonic()) > 0:
                client.settimeout(min(1.0, left_s))
                client.sendto(b"?", (address, port))
                with contextlib.suppress(TimeoutError):
                    return client.recv(100).decode()
        return ""

    return inside(netns, ask)


def pings(netns: str, address: str, *, timeout_s: float = PATIENCE_S) -> bool:
    """Whether an echo request (ICMP or ICMPv6) is answered, or one of those sent a second later each."""
    six = ":" in address
    number = 0x4321

    def ask() -> bool:
        kind = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        body = struct.pack(">BBHHH", 128 if six else 8, 0, 0, number, 1)
        total = sum(struct.unpack(">4H", body))
        if not six:
            total = (total & 0xFFFF) + (total >> 16)
            body = body[:2] + struct.pack(">H", ~total & 0xFFFF) + body[4:]
        until = time.monotonic() + timeout_s
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, kind) as raw,
        ):
            while (left_s := until - time.monotonic()) > 0:
                raw.settimeout(min(1.0, left_s))
                raw.sendto(body, (address, 0))
                again = time.monotonic() + 1.0
                with contextlib.suppress(TimeoutError):
                    while time.monotonic() < min(again, until):
                        answer, who = raw.recvfrom(2000)
                        answer = answer if six else answer[20:]
                        if (
                            who[0] == address
                            and answer[0] == (129 if six else 0)
                            and answer[4:6] == body[4:6]
                        ):
                            return True
        return False

    return inside(netns, ask)


class Sniffer:
    """Frames that an interface of a namespace sends and is sent, kept from `start` to `stop`."""

    def __init__(self, netns: str, interface: str) -> None:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            made.bind((interface, 3))
            made.settimeout(0.05)
            return made

        self._socket = inside(netns, make)

    def taken(self, want: Callable[[bytes], bool] = lambda _frame: True) -> list[bytes]:
        """What came since the last time, or the beginning."""
        frames = []
        with contextlib.suppress(TimeoutError):
            while True:
                frames.append(self._socket.recv(65536))
        return [frame for frame in frames if want(frame)]

    def close(self) -> None:
        self._socket.close()


def tunnelled(frame: bytes) -> tuple[int, bytes] | None:
    """The VNI and the inner frame of a VXLAN packet over IPv4, None for another."""
    if frame[12:14] != b"\x08\x00" or frame[23] != 17 or frame[36:38] != struct.pack(">H", 4789):
        return None
    return int.from_bytes(frame[46:49], "big"), frame[50:]
