from __future__ import annotations

import ipaddress
from itertools import combinations
from pathlib import Path

import msgspec

from fabric.config.load import load as load_settings
from fabric.config.settings import HostdSettings
from fabric.model.host import Resources
from fabric.model.network import PHYSICAL_NETWORK
from fabric.server.dev import files
from fabric.server.dev.topology import (
    MOST_FAKE_HOSTS,
    MOST_HOSTS,
    OUTSIDE,
    Hypervisor,
    Options,
    Topology,
    draw_up,
    dump,
    load,
    ports_needed,
)

IFNAMSIZ = 15


def a_topology(state: Path = Path("/f"), *, hosts: int = 2, hypervisor: Hypervisor = "libvirt") -> Topology:
    options = Options(state=state, hosts=hosts, hypervisor=hypervisor)
    return draw_up(
        options,
        ports=range(40_000, 40_000 + ports_needed(options)),
        api_port=7600,
        block=200,
        capacity=[Resources(vcpus=2, ram_mib=1024, disk_gib=10)] * hosts,
    )


def test_the_segments_overlap_nothing_of_any_host() -> None:
    topology = a_topology(hosts=MOST_HOSTS)
    assert topology.segments is not None
    links = [host.link for host in topology.hosts if host.link] + [topology.segments.link]

    underlay = {ipaddress.ip_interface(f"{host.tunnel_address}/24").network for host in topology.hosts}
    networks = [ipaddress.ip_network(host.guest_cidr) for host in topology.hosts]
    networks += [ipaddress.ip_interface(link.outer_address).network for link in links]
    networks += [ipaddress.ip_network(topology.segments.outside_cidr), *underlay]

    assert len(underlay) == 1
    assert not [pair for pair in combinations(networks, 2) if pair[0].overlaps(pair[1])]


def test_every_host_has_a_tunnel_address_of_its_own_even_without_hardware() -> None:
    topology = a_topology(hosts=MOST_FAKE_HOSTS, hypervisor="fake")

    addresses = {ipaddress.ip_address(host.tunnel_address) for host in topology.hosts}

    assert len(addresses) == MOST_FAKE_HOSTS


def test_the_outsides_gateway_is_in_it_and_given_to_nobody() -> None:
    segments = a_topology().segments
    assert segments is not None
    gateway = ipaddress.IPv4Interface(segments.gateway)

    assert gateway.network == ipaddress.IPv4Network(segments.outside_cidr)
    assert ipaddress.IPv4Address(segments.first) > gateway.ip
    assert ipaddress.IPv4Address(segments.last) in gateway.network


def test_names_of_the_segments_interfaces_fit_the_kernel() -> None:
    topology = a_topology(hosts=MOST_HOSTS)
    assert topology.segments is not None

    assert len(topology.segments.link.outer) <= IFNAMSIZ
    assert len(f"{OUTSIDE}{MOST_HOSTS}") <= IFNAMSIZ


def test_a_host_is_told_which_interface_leads_outside(tmp_path: Path) -> None:
    topology = a_topology(tmp_path)
    files.write_all(topology, now_ms=1_800_000_000_000)

    path = topology.paths.settings_of("hostd-cell1-host1")
    told = load_settings(HostdSettings, "hostd", path=path, environment={})

    assert told.network.physical == {PHYSICAL_NETWORK: OUTSIDE}


def test_a_fabric_from_before_the_segments_is_read_as_one_without(tmp_path: Path) -> None:
    kept = msgspec.json.decode(dump(a_topology()))
    del kept["segments"]
    for host in kept["cells"][0]["hosts"]:
        del host["tunnel_address"]
    path = tmp_path / "topology.json"
    path.write_bytes(msgspec.json.encode(kept))

    topology = load(path)

    assert topology.segments is None
    assert {host.tunnel_address for host in topology.hosts} == {""}
