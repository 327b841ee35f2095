"""What runs, derived from a topology: every process with its command line, its order and its probe. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fabric.server.dev.topology import CellTopology, HostTopology, Member, StoreTopology, Topology


class Kind(enum.StrEnum):
    """How a process is probed, and in which order processes end."""

    ETCD = "etcd"
    SERVER = "server"
    LIBVIRTD = "libvirtd"
    HOSTD = "hostd"


ENDING = (Kind.HOSTD, Kind.LIBVIRTD, Kind.SERVER, Kind.ETCD)
"""Who ends first: those who need the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of a fabric.

    `target` is what its probe asks: a metrics port of etcd, a gRPC endpoint, libvirtd's socket, or `<cell>/<host>` whose session
    must be up. `after` are processes that must be ready before it starts; `needs_records` says that it starts only when cells and
    hosts are recorded.
    """

    name: str
    kind: Kind
    argv: tuple[str, ...]
    target: str
    after: tuple[str, ...] = ()
    needs_records: bool = False
    stop_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Where programs are: our own by name, Python and etcd."""

    python: str
    etcd: str
    ours: Mapping[str, str]


OURS = ("fabric-api", "fabric-scheduler", "fabric-conductor", "hostd")


def processes(topology: Topology, programs: Programs) -> tuple[Process, ...]:
    """Every process, those first that others wait for."""
    return tuple(_all(topology, programs))


def _all(topology: Topology, programs: Programs) -> Iterator[Process]:
    for store in topology.stores:
        for member in store.members:
            yield _member(topology, store, member, programs)
    everywhere = tuple(member.name for store in topology.stores for member in store.members)
    yield _server(topology, programs, "api", topology.api_port, after=everywhere)
    yield _server(topology, programs, "scheduler", topology.scheduler_port, after=everywhere)
    for cell in topology.cells:
        yield _conductor(topology, programs, cell)
    for host in topology.hosts:
        if topology.hypervisor == "libvirt":
            yield _libvirtd(topology, programs, host)
    for host in topology.hosts:
        yield _hostd(topology, programs, host)


def _member(topology: Topology, store: StoreTopology, member: Member, programs: Programs) -> Process:
    pki = topology.paths.store_pki(store.name)
    client, peer = f"https://127.0.0.1:{member.client_port}", f"https://127.0.0.1:{member.peer_port}"
    together = ",".join(f"{each.name}=https://127.0.0.1:{each.peer_port}" for each in store.members)
    files = ("--cert-file", str(pki / "etcd.pem"), "--key-file", str(pki / "etcd.key"))
    peer_files = ("--peer-cert-file", str(pki / "etcd.pem"), "--peer-key-file", str(pki / "etcd.key"))
    return Process(
        name=member.name,
        kind=Kind.ETCD,
        argv=(
            *(
                programs.etcd,
                "--name",
                member.name,
                "--data-dir",
                str(topology.paths.store_data(member.name)),
            ),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *(
                "--initial-cluster",
                together,
                "--listen-metrics-urls",
                f"http://127.0.0.1:{member.metrics_port}",
            ),
            *("--client-cert-auth", "--trusted-ca-file", str(pki / "ca.pem"), *files),
            *("--peer-client-cert-auth", "--peer-trusted-ca-file", str(pki / "ca.pem"), *peer_files),
            *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"),
            *("--experimental-watch-progress-notify-interval", "1s"),
            *("--logger", "zap", "--log-level", "warn"),
        ),
        target=str(member.metrics_port),
    )


def _server(
    topology: Topology, programs: Programs, name: str, port: int, *, after: tuple[str, ...], program: str = ""
) -> Process:
    program = program or f"fabric-{name}"
    return Process(
        name=name,
        kind=Kind.SERVER,
        argv=(programs.ours[program], "--config", str(topology.paths.settings_of(name))),
        target=f"127.0.0.1:{port}",
        after=after,
        needs_records=True,
    )


def _conductor(topology: Topology, programs: Programs, cell: CellTopology) -> Process:
    return _server(
        topology,
        programs,
        f"conductor-{cell.name}",
        cell.conductor_port,
        after=tuple(member.name for member in cell.store.members),
        program="fabric-conductor",
    )


def _libvirtd(topology: Topology, programs: Programs, host: HostTopology) -> Process:
    folder = topology.paths.libvirt(host.name)
    assert host.link is not None
    return Process(
        name=f"libvirtd-{host.name}",
        kind=Kind.LIBVIRTD,
        argv=(
            *(programs.python, "-m", "hostd.driver.libvirt.daemon", "--state", str(folder)),
            *("--netns", host.link.netns, "--hostname", host.name),
        ),
        target=str(folder / "run" / "libvirt-sock"),
        stop_s=20.0,
    )


def _hostd(topology: Topology, programs: Programs, host: HostTopology) -> Process:
    name = f"hostd-{host.name}"
    below = (f"libvirtd-{host.name}",) if topology.hypervisor == "libvirt" else ()
    return Process(
        name=name,
        kind=Kind.HOSTD,
        argv=(programs.ours["hostd"], "--config", str(topology.paths.settings_of(name))),
        target=f"{host.cell}/{host.name}",
        after=(f"conductor-{host.cell}", *below),
        needs_records=True,
    )


def programs_in(folder: Path, *, python: str, etcd: str) -> Programs:
    """Our programs as they are installed in a folder of an environment."""
    return Programs(python=python, etcd=etcd, ours={name: str(folder / name) for name in OURS})
