"""What a new fabric finds on disk: authorities, certificates, settings of every process, the client's profile.

Each store has an authority of its own. A certificate that opens one store opens no other, and no host's opens any: hosts never reach
etcd (design.md), even on a machine where everything is on loopback.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509

from fabric.config.settings import (
    ApiSettings,
    BootstrapSettings,
    ConductorSettings,
    ConsoleSettings,
    HostdSettings,
    HostNetworkSettings,
    LogSettings,
    NetworkSettings,
    SchedulerSettings,
    SharedVolumesSettings,
    StoreSettings,
    TlsSettings,
)
from fabric.model.network import PHYSICAL_NETWORK
from fabric.model.volume import SHARED_MARK
from fabric.rpc.tls import TlsFiles, serial_text
from fabric.server import pki
from fabric.server.dev.topology import (
    OUTSIDE,
    SHARED_VOLUMES,
    CellTopology,
    HostTopology,
    StoreTopology,
    Topology,
    dump,
)

LOOPBACK: Final = ("127.0.0.1", "localhost")
OPERATOR: Final = "operator"
"""Whose certificates the supervisor uses: to write records, and to ask servers for their health."""

NOVNC: Final = Path("/usr/share/novnc")
"""Where Debian's package `novnc` puts it."""

_ACCELERATORS: Final[Mapping[str, Any]] = {"auto": "auto", "kvm": "kvm", "qemu": "tcg"}


def write_all(topology: Topology, *, now_ms: int) -> None:
    """Write every file of a new fabric into its state folder, which exists."""
    paths = topology.paths
    for folder in (paths.log, paths.settings, paths.blobs):
        folder.mkdir(mode=0o700, parents=True)
    paths.pki.mkdir(mode=0o700)
    # Guests run as users of their own, and their disks are below: they may pass here, and read nothing.
    for host in topology.hosts:
        paths.host(host.name).mkdir(parents=True, mode=0o711)
    for store in topology.stores:
        for member in store.members:
            paths.store_data(member.name).mkdir(parents=True, mode=0o700)
    if topology.shares_volumes:
        paths.shared_volumes.mkdir(mode=0o711)
        (paths.shared_volumes / SHARED_MARK).touch()
    pki.write_private(paths.admin_password, f"{secrets.token_urlsafe(24)}\n".encode())
    _certificates(topology, now_ms)
    for name, settings in _settings(topology):
        paths.settings_of(name).write_text(toml(settings), encoding="utf-8")
    # Last: whoever finds it finds all the rest.
    paths.topology.write_bytes(dump(topology))


def store_clients(store: StoreTopology, cells: Iterable[str]) -> tuple[str, ...]:
    """Who has a certificate for a store: only those who work on it."""
    if store.name == "global":
        # Conductors for tenant networks, which span cells.
        return ("api", "scheduler", *(f"conductor-{each}" for each in cells), OPERATOR)
    return ("api", "scheduler", f"conductor-{store.name}", OPERATOR)


def store_tls(topology: Topology, store: StoreTopology, client: str) -> TlsSettings:
    """The certificate with which `client` opens a store."""
    return _tls(topology.paths.store_pki(store.name), client)


def service_files(topology: Topology, name: str) -> TlsFiles:
    """A server's own certificate, as the one who dials uses it."""
    tls = _tls(topology.paths.pki, name)
    return TlsFiles(ca_path=tls.ca, cert_path=tls.cert, key_path=tls.key)


def host_serial(topology: Topology, host: str) -> str:
    """The serial number of a host's certificate: the only one its record will allow."""
    pem = _tls(topology.paths.pki, f"hostd-{host}").cert.read_bytes()
    return serial_text(x509.load_pem_x509_certificate(pem).serial_number)


def _certificates(topology: Topology, now_ms: int) -> None:
    folder = topology.paths.pki
    authority = pki.create_authority("cellfabric", now_ms=now_ms)
    authority.save(folder)
    for name, service, cell in (
        ("api", "api", ""),
        ("scheduler", "scheduler", ""),
        *((f"conductor-{cell.name}", "conductor", cell.name) for cell in topology.cells),
    ):
        issued = authority.issue_service(service, cell=cell, addresses=LOOPBACK, now_ms=now_ms)
        pki.save(issued, authority, folder, name)
    for host in topology.hosts:
        issued = authority.issue_host(host.cell, host.name, now_ms=now_ms)
        pki.save(issued, authority, folder, f"hostd-{host.name}")
    for store in topology.stores:
        _store_certificates(topology, store, now_ms)


def _store_certificates(topology: Topology, store: StoreTopology, now_ms: int) -> None:
    folder = topology.paths.store_pki(store.name)
    authority = pki.create_authority(f"cellfabric store {store.name}", now_ms=now_ms)
    authority.save(folder)
    # Members dial each other with what they serve with.
    member = authority.issue("etcd", now_ms=now_ms, addresses=LOOPBACK, serves=True, dials=True)
    pki.save(member, authority, folder, "etcd")
    for client in store_clients(store, (cell.name for cell in topology.cells)):
        pki.save(authority.issue(client, now_ms=now_ms, dials=True), authority, folder, client)


def _tls(folder: Path, name: str) -> TlsSettings:
    return TlsSettings(ca=folder / "ca.pem", cert=folder / f"{name}.pem", key=folder / f"{name}.key")


def _store(topology: Topology, store: StoreTopology, client: str) -> StoreSettings:
    return StoreSettings(endpoints=store.endpoints, tls=store_tls(topology, store, client))


def _settings(topology: Topology) -> Iterator[tuple[str, msgspec.Struct]]:
    yield "api", _api(topology)
    yield (
        "scheduler",
        SchedulerSettings(
            global_store=_store(topology, topology.global_store, "scheduler"),
            cells=_cells(topology, "scheduler"),
            listen=f"127.0.0.1:{topology.scheduler_port}",
            tls=_tls(topology.paths.pki, "scheduler"),
        ),
    )
    for cell in topology.cells:
        yield f"conductor-{cell.name}", _conductor(topology, cell)
    for host in topology.hosts:
        yield f"hostd-{host.name}", _hostd(topology, host)


def _cells(topology: Topology, client: str) -> dict[str, StoreSettings]:
    return {cell.name: _store(topology, cell.store, client) for cell in topology.cells}


def _api(topology: Topology) -> ApiSettings:
    paths = topology.paths
    return ApiSettings(
        global_store=_store(topology, topology.global_store, "api"),
        cells=_cells(topology, "api"),
        blob_path=paths.blobs,
        audit_path=paths.audit,
        listen=f"127.0.0.1:{topology.api_port}",
        tls=_tls(paths.pki, "api"),
        internal_listen=f"127.0.0.1:{topology.internal_port}",
        internal_tls=_tls(paths.pki, "api"),
        bootstrap=BootstrapSettings(password_path=paths.admin_password),
        network=NetworkSettings(mtu=topology.mtu, dns_servers=topology.dns_servers),
        reflection=True,
        reclaim_s=topology.reclaim_s,
        console=ConsoleSettings(
            listen=f"127.0.0.1:{topology.console_port}" if topology.console_port else "",
            novnc_path=NOVNC if NOVNC.is_dir() else None,
        ),
    )


def _conductor(topology: Topology, cell: CellTopology) -> ConductorSettings:
    return ConductorSettings(
        cell=cell.name,
        store=_store(topology, cell.store, f"conductor-{cell.name}"),
        global_store=_store(topology, topology.global_store, f"conductor-{cell.name}"),
        listen=f"127.0.0.1:{cell.conductor_port}",
        tls=_tls(topology.paths.pki, f"conductor-{cell.name}"),
        api_endpoints=(f"127.0.0.1:{topology.internal_port}",),
    )


def _hostd(topology: Topology, host: HostTopology) -> HostdSettings:
    (cell,) = (each for each in topology.cells if each.name == host.cell)
    return HostdSettings(
        conductors=(f"127.0.0.1:{cell.conductor_port}",),
        tls=_tls(topology.paths.pki, f"hostd-{host.name}"),
        state_path=topology.paths.host(host.name) / "hostd",
        driver=topology.hypervisor,
        libvirt_uri=f"qemu+unix:///system?socket={topology.paths.libvirt(host.name)}/run/libvirt-sock",
        netns="" if host.link is None else host.link.netns,
        network=HostNetworkSettings(
            physical={PHYSICAL_NETWORK: OUTSIDE} if host.link is not None and topology.segments else {}
        ),
        accelerator=_ACCELERATORS[topology.accelerator],
        shared_volumes=SharedVolumesSettings(name=SHARED_VOLUMES, path=topology.paths.shared_volumes)
        if topology.shares_volumes
        else None,
        log=LogSettings(),
    )


# ------------------------------------------------------------------------------------------------------------ TOML


def toml(settings: msgspec.Struct) -> str:
    """Settings as the file that `fabric.config.load` reads: what is None is left out, and so is its default."""
    return "\n".join(_table("", msgspec.to_builtins(settings, enc_hook=str))).lstrip("\n") + "\n"


def _table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    plain = {key: value for key, value in values.items() if value is not None and not isinstance(value, dict)}
    if name and plain:
        yield from ("", f"[{name}]")
    yield from (f"{key} = {_value(value)}" for key, value in plain.items())
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _table(f"{name}.{key}" if name else key, value)


def _value(value: object) -> str:
    # TOML's basic strings, numbers and booleans are written as JSON's are; so are arrays of them.
    return json.dumps(value)
