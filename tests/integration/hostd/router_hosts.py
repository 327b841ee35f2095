"""Hosts with routers for tests: an external segment beside the underlay, networks with ranges of their own, and a world that answers."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fabric.clock import SystemClock
from fabric.model.network import Port, PortAddress
from fabric.model.network_plan import (
    Neighbour,
    NetworkPlan,
    OutsideSubnet,
    PlannedFloatingIp,
    PlannedNetwork,
    PlannedRouter,
    PlannedSubnet,
    RouterLeg,
    RouterOutside,
)
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from hostd.network.driver import LinuxWires, NetworkSettings
from hostd.network.netns import Namespace
from hostd.network.routers import Routers
from tests.conformance.guests import an_id
from tests.conformance.namespaces import a_namespace, inside, ip
from tests.integration.hostd.tenant_hosts import (
    PATIENCE_S,
    TUNNELS,
    Fabric,
    TenantGuest,
    TenantNetwork,
    a_fabric,
)

GATEWAY = "203.0.113.1"
WORLD = "198.51.100.7"
"""Beyond the external network's gateway."""
UPLINKS = ("out0", "br-ex")
"""Of the first host it is the interface itself; of the second a bridge that it is in."""


@dataclass(frozen=True)
class RoutedNetwork(TenantNetwork):
    """A tenant's network with a range of its own: 10.OCTET.0.0/24 and fd0OCTET::/64."""

    octet: int = 0

    def planned(self, **changes: Any) -> PlannedNetwork:
        subnets = (
            PlannedSubnet(
                id=an_id(f"{self.word} v4"),
                cidr=f"10.{self.octet}.0.0/24",
                gateway=f"10.{self.octet}.0.1",
                service_address=f"10.{self.octet}.0.2",
            ),
            PlannedSubnet(
                id=an_id(f"{self.word} v6"),
                cidr=f"fd0{self.octet}::/64",
                gateway=f"fd0{self.octet}::1",
                service_address=f"fd0{self.octet}::2",
            ),
        )
        return super().planned(**{"subnets": subnets} | changes)

    @property
    def legs(self) -> tuple[RouterLeg, RouterLeg]:
        four, six = self.planned().subnets
        return (
            RouterLeg(
                network_id=self.id,
                subnet_id=four.id,
                address=four.gateway,
                prefix_length=24,
                mac=f"fa:16:3e:{self.vni:02x}:ff:04",
            ),
            RouterLeg(
                network_id=self.id,
                subnet_id=six.id,
                address=six.gateway,
                prefix_length=64,
                mac=f"fa:16:3e:{self.vni:02x}:ff:06",
            ),
        )


@dataclass(frozen=True)
class RoutedGuest(TenantGuest):
    """A guest on such a network."""

    network: RoutedNetwork

    @property
    def address(self) -> str:
        return f"10.{self.network.octet}.0.{self.number}"

    @property
    def address6(self) -> str:
        return f"fd0{self.network.octet}::{self.number:x}"

    @property
    def port(self) -> Port:
        octet = self.network.octet
        return replace(
            super().port,
            address=self.address,
            gateway=f"10.{octet}.0.1",
            further=(PortAddress(address=self.address6, prefix_length=64, gateway=f"fd0{octet}::1"),),
        )


@dataclass(frozen=True)
class ARouter:
    """A router: its networks, where it leads out and under which address."""

    word: str
    vni: int
    networks: tuple[RoutedNetwork, ...]
    gateway: int
    address: str

    @property
    def id(self) -> str:
        return an_id(f"router {self.word}")

    def planned(self, host: int, floating: dict[str, RoutedGuest]) -> PlannedRouter:
        """As it is on a host. `floating` are all floating IPs and whose they are."""
        here = tuple(
            PlannedFloatingIp(address=at, fixed_address=guest.address, fixed_network_id=guest.network.id)
            for at, guest in floating.items()
            if guest.host == host and guest.network in self.networks
        )
        return PlannedRouter(
            id=self.id,
            vni=self.vni,
            legs=tuple(leg for network in self.networks for leg in network.legs),
            outside=RouterOutside(
                physical_network="external",
                mtu=1500,
                mac=f"fa:16:3e:00:{self.vni:02x}:{host:02x}",
                subnets=(OutsideSubnet(cidr="203.0.113.0/24", gateway=GATEWAY),),
                addresses=(self.address,),
                is_gateway=host == self.gateway,
                gateway_tunnel_address="" if host == self.gateway else TUNNELS[self.gateway],
                floating_ips=here,
            ),
        )


@dataclass
class RoutedFabric:
    """Two hosts, the segment outside, and the guests and routers that there are."""

    fabric: Fabric
    world: str
    guests: tuple[RoutedGuest, ...]
    routers: tuple[ARouter, ...]
    floating: dict[str, RoutedGuest] = field(default_factory=dict)

    def wires(self, host: int, failpoints: Failpoints = NO_FAILPOINTS) -> tuple[LinuxWires, Routers]:
        netns = self.fabric.hosts[host]
        routers = Routers(Namespace(netns), {"external": UPLINKS[host]}, failpoints=failpoints)
        settings = NetworkSettings(state=self.fabric.states[host], netns=netns, plan_patience_s=1)
        return LinuxWires(settings, SystemClock(), routing=routers), routers

    def connect(self, guest: RoutedGuest) -> None:
        netns = self.fabric.connect(guest)
        ip("route", "add", "default", "via", guest.port.gateway, netns=netns)

    def netns(self, guest: RoutedGuest) -> str:
        return self.fabric.netns[guest.word]

    def plan(self, host: int) -> NetworkPlan:
        """With every router that a guest of the host is behind, or that leads out here; and all networks of those."""
        local = {guest.network for guest in self.guests if guest.host == host}
        routers = [each for each in self.routers if each.gateway == host or local & set(each.networks)]
        networks = {network for each in routers for network in each.networks} | local
        plan = self.fabric.plan(host, self.guests)
        known = {each.id: each for each in plan.networks}
        return replace(
            plan,
            networks=tuple(
                known.get(network.id, self._from_afar(network, host))
                for network in sorted(networks, key=lambda network: network.vni)
            ),
            routers=tuple(each.planned(host, self.floating) for each in routers),
        )

    def _from_afar(self, network: RoutedNetwork, host: int) -> PlannedNetwork:
        """A network of which only a router is here."""
        return network.planned(
            neighbours=tuple(
                Neighbour(
                    port_id=guest.port.id,
                    mac=guest.port.mac,
                    addresses=(guest.address, guest.address6),
                    tunnel_address=TUNNELS[guest.host],
                )
                for guest in self.guests
                if guest.network == network and guest.host != host
            )
        )


@contextlib.contextmanager
def a_routed_fabric(guests: tuple[RoutedGuest, ...], routers: tuple[ARouter, ...]) -> Iterator[RoutedFabric]:
    with a_fabric() as fabric, a_namespace("w") as world:
        ip("link", "add", "segment", "type", "bridge", "forward_delay", "0", netns=world)
        ip("address", "add", f"{GATEWAY}/24", "dev", "segment", netns=world)
        ip("address", "add", f"{WORLD}/32", "dev", "lo", netns=world)
        ip("link", "set", "segment", "up", netns=world)
        for number, host in enumerate(fabric.hosts):
            port = f"port{number}"
            ip("link", "add", "out0", "type", "veth", "peer", "name", port, "netns", world, netns=host)
            ip("link", "set", port, "master", "segment", "up", netns=world)
            ip("link", "set", "out0", "up", netns=host)
        ip("link", "add", "br-ex", "type", "bridge", "forward_delay", "0", netns=fabric.hosts[1])
        ip("link", "set", "out0", "master", "br-ex", netns=fabric.hosts[1])
        ip("link", "set", "br-ex", "up", netns=fabric.hosts[1])
        yield RoutedFabric(fabric, world, guests, routers)


# ------------------------------------------------------------------ conversations


@contextlib.contextmanager
def greeting(netns: str, word: str, port: int = 7100) -> Iterator[None]:
    """A TCP server that tells whoever connects `word` and where they come from, and then says everything twice."""

    def make() -> socket.socket:
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=16)

    listening = inside(netns, make)
    clients: list[socket.socket] = []

    def echo(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while said := client.recv(100):
                client.sendall(said)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, who = listening.accept()
                clients.append(client)
                client.sendall(f"{word} {who[0].removeprefix('::ffff:')}".encode())
                threading.Thread(target=echo, args=(client,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            client.close()


class Conversation:
    """A connection that stays open. `greeted` is what it was told, empty where there was no way."""

    def __init__(self, netns: str, address: str, port: int = 7100, *, timeout_s: float = PATIENCE_S) -> None:
        self._netns = netns
        self.greeted = ""
        with contextlib.suppress(OSError):
            self._socket = inside(netns, lambda: socket.create_connection((address, port), timeout=timeout_s))
            self.greeted = self._socket.recv(100).decode()

    def goes_on(self, *, timeout_s: float = PATIENCE_S) -> bool:
        """Whether a word that is said comes back."""
        self._socket.settimeout(timeout_s)
        with contextlib.suppress(OSError):
            self._socket.sendall(b"still there?")
            return self._socket.recv(100) == b"still there?"
        return False

    def close(self) -> None:
        self._socket.close()


def ask(netns: str, address: str, *, timeout_s: float = PATIENCE_S) -> str:
    """What somebody who connects is told; empty where there is no way."""
    talk = Conversation(netns, address, timeout_s=timeout_s)
    if talk.greeted:
        talk.close()
    return talk.greeted


def router_leftovers(host: str) -> list[str]:
    """What is there of routers on a host."""
    found = [path.name for path in Path("/run/netns").iterdir() if path.name.startswith(f"{host}.cfr-")]
    links = ip("-brief", "link", "show", netns=host).splitlines()
    return sorted(found) + sorted(line.split("@")[0] for line in links if line.startswith(("cfl", "cfo")))


async def state_of(host: str) -> list[str]:
    """All that a host's routers consist of, but for how interfaces are numbered, and for what only this host is called."""
    found = []
    for name in router_leftovers(host):
        found.append(name.replace(host, "HOST"))
        is_router = ".cfr-" in name
        for words in _INSIDE if is_router else _OUTSIDE:
            said = await Namespace(name if is_router else host).run(
                *(word.format(name=name) for word in words)
            )
            lines = said.decode().replace(host, "HOST").splitlines()
            found += sorted(_UNSTEADY.sub("", line) for line in lines)
    return found


_INSIDE = (
    ("ip", "-o", "link", "show"),
    ("ip", "-o", "address", "show"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "rule", "show"),
    ("ip", "neigh", "show", "nud", "permanent"),
    ("bridge", "fdb", "show"),
    ("nft", "-s", "list", "ruleset"),
)
_OUTSIDE = (
    ("bridge", "-d", "link", "show", "dev", "{name}"),
    ("bridge", "fdb", "show", "dev", "{name}", "state", "static"),
)
_UNSTEADY = re.compile(r"^\d+: |@[\w-]+|link-netnsid \d+|link-netns \S+|tentative ?|state \w+|\s+$")
