"""What the composed fabric is told: authorities, certificates and settings, in one folder for each service of compose.yaml.

A service is given its own folder and no other. So a host has its own certificate, and neither another host's nor one that opens a store.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from fabric.config.settings import (
    ApiSettings,
    BootstrapSettings,
    ConductorSettings,
    HostdSettings,
    SchedulerSettings,
    StoreSettings,
    TlsSettings,
)
from fabric.model.host import Resources
from fabric.server import pki
from fabric.server.dev.files import toml

CELL: Final = "cell1"
MEMBERS: Final = ("etcd-1", "etcd-2", "etcd-3")
HOSTS: Final = ("host-1", "host-2")
STORES: Final = ("global", CELL)
"""Both in the one cluster, under a prefix each: enough to see everything work. In production they are clusters of their own."""

INSIDE: Final = Path("/etc/cellfabric")
"""Where a service finds its folder."""
USER: Final = 10001
"""Whom all but the hosts run as; the Dockerfile makes it."""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What an administrator approves of a host. `tunnel_address` is its own in the underlay, as compose.yaml has it."""

    name: str
    capacity: Resources
    guest_cidr: str
    tunnel_address: str


def plans(each: Resources) -> tuple[HostPlan, ...]:
    """Two hosts of one size, each with a subnet of guests and a place in the underlay."""
    return tuple(
        HostPlan(name, each, guest_cidr=f"10.64.{number}.0/24", tunnel_address=f"10.64.255.{10 + number}")
        for number, name in enumerate(HOSTS, start=1)
    )


def write(
    folder: Path, hosts: tuple[HostPlan, ...], *, now_ms: int, owner: tuple[int, int] = (USER, USER)
) -> None:
    """Make the folder anew, with everything for a first start. What the hosts are not given belongs to `owner`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o711, parents=True)
    password = secrets.token_urlsafe(24)
    ours = pki.create_authority("cellfabric", now_ms=now_ms)
    store = pki.create_authority("cellfabric stores", now_ms=now_ms)
    for name in MEMBERS:
        member = store.issue("etcd", addresses=(name, "localhost"), serves=True, dials=True, now_ms=now_ms)
        pki.save(member, store, folder / name, "etcd")
    for name in ("api", "scheduler", "conductor", "operator"):
        pki.save(store.issue(name, dials=True, now_ms=now_ms), store, folder / name / "store", "client")
    for name in ("api", "scheduler", "conductor"):
        cell = CELL if name == "conductor" else ""
        issued = ours.issue_service(name, cell=cell, addresses=(name,), now_ms=now_ms)
        pki.save(issued, ours, folder / name, "own")
    serials = {}
    for host in hosts:
        issued = ours.issue_host(CELL, host.name, now_ms=now_ms)
        pki.save(issued, ours, folder / host.name, "own")
        serials[host.name] = issued.serial
    for name, settings in _settings(hosts):
        (folder / name / "settings.toml").write_text(toml(settings), encoding="utf-8")
    pki.write_private(folder / "api" / "admin-password", f"{password}\n".encode())
    _operator(folder / "operator", ours, hosts, serials, password)
    for name in (*MEMBERS, "api", "scheduler", "conductor", "operator"):
        _give(folder / name, owner)


def _settings(hosts: tuple[HostPlan, ...]) -> Iterator[tuple[str, msgspec.Struct]]:
    yield (
        "api",
        ApiSettings(
            global_store=_store("global"),
            cells={CELL: _store(CELL)},
            blob_path=Path("/var/lib/cellfabric/blobs"),
            audit_path=Path("/var/lib/cellfabric/audit.jsonl"),
            listen="0.0.0.0:7600",
            tls=_OWN,
            internal_listen="0.0.0.0:7601",
            internal_tls=_OWN,
            bootstrap=BootstrapSettings(password_path=INSIDE / "admin-password"),
        ),
    )
    yield (
        "scheduler",
        SchedulerSettings(
            global_store=_store("global"), cells={CELL: _store(CELL)}, listen="0.0.0.0:7610", tls=_OWN
        ),
    )
    yield (
        "conductor",
        ConductorSettings(
            cell=CELL,
            store=_store(CELL),
            global_store=_store("global"),
            listen="0.0.0.0:7620",
            advertise="conductor:7620",
            tls=_OWN,
            api_endpoints=("api:7601",),
        ),
    )
    for host in hosts:
        yield (
            host.name,
            HostdSettings(
                conductors=("conductor:7620",),
                tls=_OWN,
                state_path=Path("/var/lib/cellfabric/hostd"),
                libvirt_uri="qemu+unix:///system?socket=/var/lib/cellfabric/lv/run/libvirt-sock",
            ),
        )


_OWN: Final = TlsSettings(ca=INSIDE / "ca.pem", cert=INSIDE / "own.pem", key=INSIDE / "own.key")


def _store(name: str) -> StoreSettings:
    near = INSIDE / "store"
    return StoreSettings(
        endpoints=tuple(f"{member}:2379" for member in MEMBERS),
        prefix=f"{name}/",
        tls=TlsSettings(ca=near / "ca.pem", cert=near / "client.pem", key=near / "client.key"),
    )


def _operator(
    folder: Path, ours: pki.Authority, hosts: tuple[HostPlan, ...], serials: dict[str, str], password: str
) -> None:
    """The administrator's profile, and what there is to enrol: enrol.py reads it."""
    (folder / "ca.pem").write_bytes(ours.pem)
    pki.write_private(folder / "admin-password", f"{password}\n".encode())
    (folder / "clouds.toml").write_text(
        'default = "admin"\n\n[clouds.admin]\nendpoint = "api:7600"\nca_file = "ca.pem"\n'
        'username = "admin"\nproject = "admin"\npassword_file = "admin-password"\n',
        encoding="utf-8",
    )
    plan = {
        "cell": CELL,
        "endpoints": [f"{member}:2379" for member in MEMBERS],
        "prefix": "global/",
        "hosts": [
            {
                "name": host.name,
                "vcpus": host.capacity.vcpus,
                "ram_mib": host.capacity.ram_mib,
                "disk_gib": host.capacity.disk_gib,
                "guest_cidr": host.guest_cidr,
                "tunnel_address": host.tunnel_address,
                "cert_serial": serials[host.name],
            }
            for host in hosts
        ],
    }
    (folder / "plan.json").write_bytes(msgspec.json.format(msgspec.json.encode(plan)))


def _give(folder: Path, owner: tuple[int, int]) -> None:
    """To the user of the services, who alone may read the keys."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *owner)
