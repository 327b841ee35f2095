"""The networks of `fabric dev` on a real kernel: what hosts have in common, what they do not, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.model.host import Resources
from fabric.server.dev import machine, network
from fabric.server.dev.topology import (
    OUTSIDE,
    Link,
    Options,
    Segments,
    Topology,
    draw_up,
    free_block,
    ports_needed,
    tag_of,
)
from tests.conformance.namespaces import inside, ip

pytestmark = pytest.mark.owns_machine
NO_ADDRESS = "0.0.0.0"  # noqa: S104 - in namespaces that reach nobody, or for a moment
PORT = 17_000


@contextlib.contextmanager
def raised(state: Path) -> Iterator[Topology]:
    """The networks of a fabric of two hosts, without the fabric."""
    options = Options(state=state, hosts=2)
    topology = draw_up(
        options,
        ports=range(40_000, 40_000 + ports_needed(options)),
        api_port=7600,
        block=free_block(tag_of(state), machine.routed_networks()),
        capacity=[Resources()] * 2,
    )
    try:
        network.raise_all(topology)
        yield topology
    finally:
        network.lower_all(state)
        assert network.namespaces(state) + network.links(state) == []


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / f"f{os.getpid()}"


def segments_of(topology: Topology) -> Segments:
    assert topology.segments is not None
    return topology.segments


def link_of(topology: Topology, number: int) -> Link:
    link = topology.hosts[number].link
    assert link is not None
    return link


@contextlib.contextmanager
def greeter(netns: str) -> Iterator[None]:
    """Tells everybody who connects where they came from."""

    def listen() -> socket.socket:
        return socket.create_server((NO_ADDRESS, PORT))

    listening = inside(netns, listen) if netns else listen()

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


def reach(address: str, *, netns: str = "", timeout_s: float = 15.0) -> str:
    """What is said to who connects from there; empty where there is no way."""

    def connect() -> str:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address, PORT), timeout=timeout_s) as client,
        ):
            return client.recv(100).decode()
        return ""

    return inside(netns, connect) if netns else connect()


def a_floating_ip(topology: Topology, number: int) -> str:
    """Have one of the outside's addresses at a host, as a router there would, with the outside's gateway for everything else."""
    segments, host = segments_of(topology), link_of(topology, number)
    gateway = segments.gateway.partition("/")[0]
    ip("address", "add", f"{segments.first}/24", "dev", OUTSIDE, netns=host.netns)
    ip("route", "add", "default", "via", gateway, netns=host.netns)
    return segments.first


def test_hosts_reach_each_others_tunnel_addresses(state: Path) -> None:
    with raised(state) as topology:
        one, other = topology.hosts

        with greeter(link_of(topology, 1).netns):
            assert reach(other.tunnel_address, netns=link_of(topology, 0).netns) == one.tunnel_address


def test_the_machine_reaches_a_floating_ip_and_is_not_reached_from_it(state: Path) -> None:
    with raised(state) as topology:
        address, host = a_floating_ip(topology, 0), link_of(topology, 0).netns
        outer = segments_of(topology).link.outer_address.partition("/")[0]

        with greeter(host), greeter(""):
            assert reach(address) == outer
            assert reach(outer) == outer
            assert reach(outer, netns=host, timeout_s=0.3) == ""


def test_nobody_passes_a_host_into_the_underlay(state: Path) -> None:
    with raised(state) as topology:
        host, other = link_of(topology, 0), topology.hosts[1]
        ip("route", "add", f"{other.tunnel_address}/32", "via", host.inner_address.partition("/")[0])

        with greeter(link_of(topology, 1).netns):
            # Known the way back, so that it is not for want of a route.
            back = host.outer_address.partition("/")[0]
            ip(
                "route",
                "add",
                f"{back}/32",
                "via",
                topology.hosts[0].tunnel_address,
                netns=link_of(topology, 1).netns,
            )
            assert reach(other.tunnel_address, timeout_s=0.3) == ""
            assert reach(other.tunnel_address, netns=host.netns) == topology.hosts[0].tunnel_address


def test_two_fabrics_have_nothing_in_common(state: Path) -> None:
    with raised(state) as one, raised(Path(f"{state}-b")) as other:
        address = a_floating_ip(one, 0)

        assert segments_of(one).outside_cidr != segments_of(other).outside_cidr
        with greeter(link_of(one, 0).netns):
            assert reach(address) != ""
            assert reach(address, netns=link_of(other, 0).netns, timeout_s=0.3) == ""
