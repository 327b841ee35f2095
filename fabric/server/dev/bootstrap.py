"""The records an operator makes: which cells there are, and which hosts with what capacity and which certificate."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from fabric.clock import Clock
from fabric.config.settings import TlsSettings
from fabric.errors import Ambiguous
from fabric.model.host import Cell, Host
from fabric.model.network import PHYSICAL_NETWORK
from fabric.model.traits import PLAIN_FIRMWARE, SECURE_BOOT_TRAIT, boot_traits
from fabric.model.volume import trait_of
from fabric.network.addresses import slots_in
from fabric.server.dev.files import OPERATOR, host_serial, store_tls
from fabric.server.dev.firmware import has_secure_boot, has_uefi
from fabric.server.dev.topology import SHARED_VOLUMES, HostTopology, StoreTopology, Topology
from fabric.store import codec, keys
from fabric.store.base import Txn
from fabric.store.etcd import EtcdSettings, EtcdStore
from fabric.store.schema import open_schema

ZONE = "nova"
"""The availability zone that everybody knows from OpenStack's default."""


@contextlib.asynccontextmanager
async def opened(topology: Topology) -> AsyncIterator[dict[str, EtcdStore]]:
    """Every store of the fabric by its name, with the operator's certificates."""
    stores = {store.name: _connect(topology, store) for store in topology.stores}
    try:
        yield stores
    finally:
        await asyncio.gather(*(store.close() for store in stores.values()))


async def record(topology: Topology, stores: Mapping[str, EtcdStore], clock: Clock) -> None:
    """Make the cells' and hosts' records where they are absent.

    Raises:
        Unavailable: a store cannot be reached.
    """
    await asyncio.gather(*(open_schema(store) for store in stores.values()))
    cells = {
        keys.CELL.at(cell.name): codec.encode(Cell(name=cell.name, create_time_ms=clock.now_ms()))
        for cell in topology.cells
    }
    await asyncio.gather(
        _put_absent(stores["global"], cells),
        *(
            _put_absent(
                stores[cell.name],
                {
                    keys.HOST.at(host.name): codec.encode(_host(topology, host, clock.now_ms()))
                    for host in cell.hosts
                },
            )
            for cell in topology.cells
        ),
    )


async def _put_absent(store: EtcdStore, records: Mapping[str, bytes]) -> None:
    """Write each record unless its key is there. One transaction each: what they say does not depend on each other."""
    for key, value in records.items():
        # An answer that was lost needs no settling: the key is absent or has what we would write.
        with contextlib.suppress(Ambiguous):
            await store.commit(Txn(unchanged={key: 0}, put={key: value}))
        if (await store.get(key)).value(key) is None:
            await store.commit(Txn(unchanged={key: 0}, put={key: value}))


def _traits(topology: Topology) -> tuple[str, ...]:
    """What each host can: what this machine can."""
    firmware = "uefi" if has_uefi() else PLAIN_FIRMWARE
    shared = (trait_of(SHARED_VOLUMES),) if topology.shares_volumes else ()
    secure = (SECURE_BOOT_TRAIT,) if has_secure_boot() else ()
    return (*sorted(boot_traits("x86_64", firmware)), *secure, *shared)


def _host(topology: Topology, host: HostTopology, now_ms: int) -> Host:
    return Host(
        name=host.name,
        cell=host.cell,
        zone=ZONE,
        capacity=host.capacity,
        traits=_traits(topology),
        cert_serial=host_serial(topology, host.name),
        guest_cidr=host.guest_cidr,
        slots=slots_in(host.guest_cidr),
        tunnel_address=host.tunnel_address,
        physical_networks=(PHYSICAL_NETWORK,) if host.tunnel_address else (),
        create_time_ms=now_ms,
        update_time_ms=now_ms,
    )


def _connect(topology: Topology, store: StoreTopology) -> EtcdStore:
    tls: TlsSettings = store_tls(topology, store, OPERATOR)
    return EtcdStore(
        EtcdSettings(endpoints=store.endpoints, ca_path=tls.ca, cert_path=tls.cert, key_path=tls.key),
        name=store.name,
    )
