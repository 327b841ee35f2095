from __future__ import annotations

import ipaddress
import os
from itertools import combinations
from pathlib import Path

import msgspec
import pytest

from fabric.config.load import load as load_settings
from fabric.config.settings import PROCESSES, ApiSettings
from fabric.errors import InvalidRequest
from fabric.model.host import Resources
from fabric.server.dev import files
from fabric.server.dev.plan import Kind, Process, Programs, processes
from fabric.server.dev.topology import (
    LONGEST_STATE,
    Options,
    Paths,
    Topology,
    check,
    draw_up,
    dump,
    free_block,
    load,
    ports_needed,
    tag_of,
)

IFNAMSIZ = 15
SUN_PATH = 107
PROGRAMS = Programs(
    python="/v/python",
    etcd="/v/etcd",
    ours={name: f"/v/{name}" for name in ("fabric-api", "fabric-scheduler", "fabric-conductor", "hostd")},
)


def a_topology(state: Path = Path("/f"), *, cells: int = 2, hosts: int = 2, members: int = 3) -> Topology:
    options = Options(state=state, cells=cells, hosts=hosts, etcd_members=members, reclaim_s=60.0)
    return draw_up(
        options,
        ports=range(40_000, 40_000 + ports_needed(options)),
        api_port=7600,
        block=200,
        capacity=[Resources(vcpus=2, ram_mib=1024, disk_gib=10)] * cells * hosts,
    )


def ports_of(topology: Topology) -> list[int]:
    members = [member for store in topology.stores for member in store.members]
    return [
        topology.api_port,
        topology.internal_port,
        topology.scheduler_port,
        topology.console_port,
        *(cell.conductor_port for cell in topology.cells),
        *(port for member in members for port in (member.client_port, member.peer_port, member.metrics_port)),
    ]


def test_no_port_is_given_twice_and_none_is_left_over() -> None:
    ports = ports_of(a_topology())

    assert len(set(ports)) == len(ports)
    assert len(ports) == 1 + ports_needed(Options(cells=2, hosts=2, etcd_members=3))


def test_networks_of_hosts_and_links_do_not_overlap() -> None:
    topology = a_topology(cells=6, hosts=10, members=1)

    networks = [ipaddress.ip_network(host.guest_cidr) for host in topology.hosts]
    networks += [
        ipaddress.ip_interface(host.link.outer_address).network for host in topology.hosts if host.link
    ]

    assert len(networks) == 120
    assert not [pair for pair in combinations(networks, 2) if pair[0].overlaps(pair[1])]


def test_both_ends_of_a_link_are_addresses_of_its_network() -> None:
    for host in a_topology().hosts:
        assert host.link is not None
        outer = ipaddress.ip_interface(host.link.outer_address)
        inner = ipaddress.ip_interface(host.link.inner_address)

        assert {outer.ip, inner.ip} == set(outer.network.hosts())


def test_names_of_interfaces_fit_the_kernel() -> None:
    topology = a_topology(cells=6, hosts=10, members=1)

    assert all(len(host.link.outer) <= IFNAMSIZ for host in topology.hosts if host.link)
    assert len({host.link.outer for host in topology.hosts if host.link}) == 60


def test_the_longest_allowed_state_leaves_room_for_a_socket() -> None:
    state = Path("/" + "s" * (LONGEST_STATE - 1))
    check(Options(state=state))

    sockets = [
        process.target
        for process in processes(a_topology(state, cells=6, hosts=10, members=1), PROGRAMS)
        if process.kind is Kind.LIBVIRTD
    ]
    assert max(len(os.fsencode(path)) for path in [*sockets, str(Paths(state).control)]) <= SUN_PATH


def test_what_is_kept_is_what_is_read_back(tmp_path: Path) -> None:
    topology = a_topology()
    path = tmp_path / "topology.json"

    path.write_bytes(dump(topology))

    assert load(path) == topology


def test_a_topology_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "topology.json"
    path.write_text('{"state": "/f"}')

    with pytest.raises(InvalidRequest, match="another version"):
        load(path)


def test_a_network_in_use_is_not_taken() -> None:
    tag = tag_of(Path("/f"))
    first = free_block(tag, ())

    assert free_block(tag, [f"10.{first}.7.0/24"]) != first
    assert free_block(tag, ["0.0.0.0/0"]) == first  # a default route is no network of anybody's


def test_a_machine_whose_networks_are_all_taken_is_told_so() -> None:
    with pytest.raises(InvalidRequest, match="in use"):
        free_block("abcd", ["10.0.0.0/8"])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (Options(cells=0), "cells"),
        (Options(cells=9), "cells"),
        (Options(hosts=-1), "hosts"),
        (Options(hosts=61), "hosts"),
        (Options(etcd_members=2), "etcd_members"),
        (Options(dns_servers=("192.0.2.53", "dns.example")), "dns_server"),
        (Options(mtu=575), "mtu"),
        (Options(reclaim_s=-1.0), "reclaim"),
        (Options(reclaim_s=float("nan")), "reclaim"),
        (Options(reclaim_s=float("inf")), "reclaim"),
        (Options(state=Path("relative")), "state"),
        (Options(state=Path("/" + "s" * LONGEST_STATE)), "state"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(options: Options, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(options)

    assert refused.value.field == field


def test_every_process_waits_only_for_processes_before_it() -> None:
    seen: set[str] = set()
    for process in processes(a_topology(), PROGRAMS):
        assert set(process.after) <= seen, process.name
        seen.add(process.name)


def test_a_fake_host_has_no_libvirtd_and_no_link() -> None:
    options = Options(state=Path("/f"), hypervisor="fake", hosts=3)
    topology = draw_up(
        options, ports=range(ports_needed(options)), api_port=1, block=200, capacity=[Resources()] * 3
    )

    assert all(host.link is None for host in topology.hosts)
    assert Kind.LIBVIRTD not in {process.kind for process in processes(topology, PROGRAMS)}


def kind_of(process: Process) -> str:
    return next(kind for kind in PROCESSES if process.name.startswith(kind))


def test_every_process_is_told_what_it_understands(tmp_path: Path) -> None:
    topology = a_topology(tmp_path)
    files.write_all(topology, now_ms=1_800_000_000_000)

    told = [process for process in processes(topology, PROGRAMS) if process.kind in {Kind.SERVER, Kind.HOSTD}]

    assert len(told) == 8
    assert "reclaim_s = 60.0\n" in topology.paths.settings_of("api").read_text()
    for process in told:
        kind = kind_of(process)
        path = topology.paths.settings_of(process.name)
        assert process.argv[-1] == str(path)
        settings = load_settings(PROCESSES[kind], kind, path=path, environment={})
        assert files.toml(settings) == path.read_text()


def test_guests_are_told_of_the_mtu_and_the_name_servers_that_were_chosen(tmp_path: Path) -> None:
    topology = msgspec.structs.replace(a_topology(tmp_path), dns_servers=("192.0.2.53",), mtu=1400)
    files.write_all(topology, now_ms=1_800_000_000_000)

    settings = load_settings(PROCESSES["api"], "api", path=topology.paths.settings_of("api"), environment={})

    assert isinstance(settings, ApiSettings)
    assert (settings.network.dns_servers, settings.network.mtu) == (("192.0.2.53",), 1400)


def test_a_conductor_can_open_its_own_store_and_the_global_one_and_no_other(tmp_path: Path) -> None:
    topology = a_topology(tmp_path)
    files.write_all(topology, now_ms=1_800_000_000_000)

    holders = {
        store.name: {path.stem for path in topology.paths.store_pki(store.name).glob("*.key")}
        for store in topology.stores
    }

    assert "conductor-cell1" in holders["cell1"] & holders["global"]
    assert "conductor-cell1" not in holders["cell2"]
    assert not [name for names in holders.values() for name in names if "host" in name]


def test_keys_and_passwords_are_for_their_owner_alone(tmp_path: Path) -> None:
    topology = a_topology(tmp_path)
    files.write_all(topology, now_ms=1_800_000_000_000)

    secret = [*topology.paths.pki.rglob("*.key"), topology.paths.admin_password]

    assert len(secret) > 10
    assert {path.stat().st_mode & 0o077 for path in secret} == {0}
