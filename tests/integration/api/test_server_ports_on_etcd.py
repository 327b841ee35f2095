"""Ports of servers on real etcd, with many API servers and schedulers at once: none double, none leaked."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import pytest

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells
from fabric.api.instances import InstanceHandlers
from fabric.api.network_desk import Desk
from fabric.api.pages import Pages
from fabric.clock import SystemClock
from fabric.errors import FabricError, Reason
from fabric.ids import RandomIds
from fabric.model.flavor import Flavor
from fabric.model.host import Cell
from fabric.model.image import Image, ImageFormat, ImageState
from fabric.model.instance import Location, Over, Refund
from fabric.model.quota import Charge, NetworkLimits, Quota
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.quota.ledger import Ledger
from fabric.scheduler.ports import Ports
from fabric.scheduler.service import SchedulerService
from fabric.scheduler.settings import SchedulerSettings
from fabric.store.base import Txn
from fabric.store.codec import decode, encode
from fabric.store.etcd import EtcdStore
from fabric.store.keys import BUILD, CELL, FLAVOR, IMAGE, LOCATION, OVER, PORT, QUOTA, REFUND
from fabric.store.memory import MemoryStore
from tests.chaos.etcd_process import Cluster, find_binaries
from tests.unit.api import network_books
from tests.unit.api.network_world import OWN, NetworkWorld
from tests.unit.api.test_instances import Consoles

API_SERVERS = 6
ROOM = 16 - 4
"""Addresses of a /28, less the network's, the broadcast, the gateway's and the service's."""


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Cluster]:
    """One member, of the newest version at hand."""
    binaries = find_binaries()
    if not binaries:
        pytest.skip("NO ETCD HERE: run tools/setup first")
    with Cluster(tmp_path, binary=next(iter(binaries.values()))) as cluster:
        yield cluster


class Api:
    """What an API server is made of, as far as servers go."""

    def __init__(self, store: EtcdStore, cell: MemoryStore, number: int) -> None:
        clock, ids, jitter = SystemClock(), RandomIds(), Random(number).random
        self.store = store
        self.catalogue = Catalogue(store, clock=clock)
        self.cells = Cells({"c1": cell}, clock=clock)
        self.handlers = InstanceHandlers(
            catalogue=self.catalogue,
            cells=self.cells,
            ledger=Ledger(store, ids=ids, jitter=jitter),
            desk=Desk(store, limits=NetworkLimits(), clock=clock, ids=ids, jitter=jitter),
            conductors=Consoles(),
            pages=Pages(),
            clock=clock,
            ids=ids,
            jitter=jitter,
        )

    async def create(self, name: str, **fields: object) -> pb.Instance:
        asked = {"request_id": name, "name": name, "flavor": "m1", "image": "linux", **fields}
        request = pb.CreateInstanceRequest(**asked)  # type: ignore[arg-type]  # by name
        return (await self.handlers.create_instance(request, OWN)).instance


class Fabric:
    """API servers on one store, and a cell that needs no etcd for this."""

    def __init__(self, stores: list[EtcdStore]) -> None:
        self.cell = MemoryStore("c1")
        self.stores = stores
        self.apis = [Api(store, self.cell, number) for number, store in enumerate(stores)]
        self.net = NetworkWorld(stores[0])

    async def many(self, count: int, **fields: object) -> tuple[list[pb.Instance], Counter[str]]:
        """That many creates at once, over all API servers: what was made, and why the others were not."""
        outcomes = await asyncio.gather(
            *(self.apis[at % API_SERVERS].create(f"web-{at}", **fields) for at in range(count)),
            return_exceptions=True,
        )
        assert all(isinstance(each, pb.Instance | FabricError) for each in outcomes), outcomes
        return (
            [each for each in outcomes if isinstance(each, pb.Instance)],
            Counter(each.reason for each in outcomes if isinstance(each, FabricError)),
        )

    async def check(self, made: list[pb.Instance]) -> None:
        """Every key that holds something has its holder, and every port the server that the index says."""
        found = await network_books.check(self.stores[0])
        bound = {(each.instance_id, each.id) for each in found[PORT.template] if each.instance_id}
        rows = (await self.stores[0].list(LOCATION.under())).entries.values()
        locations = [decode(Location, each.value) for each in rows]
        assert {each.instance_id for each in locations} == {each.id for each in made}
        assert {(each.instance_id, port) for each in locations for port in each.port_ids} == bound
        key = QUOTA.at("own")
        quota = decode(Quota, (await self.stores[0].get(key)).value(key) or b"")
        assert quota.used.instances == len(made)


@pytest.fixture
async def fabric(etcd: Cluster) -> AsyncIterator[Fabric]:
    async with contextlib.AsyncExitStack() as stack:
        stores = [EtcdStore(etcd.patient(), name="global") for _ in range(API_SERVERS)]
        for store in stores:
            stack.push_async_callback(store.close)
        records: dict[str, object] = {
            QUOTA.at("own"): Quota(
                project_id="own", limit=Charge(instances=1000, vcpus=1000, ram_mib=1_000_000)
            ),
            FLAVOR.at("f"): Flavor(id="f", name="m1", vcpus=1, ram_mib=512, disk_gib=1),
            CELL.at("c1"): Cell(name="c1"),
            IMAGE.at("i"): Image(
                id="i", name="linux", project_id="own", format=ImageFormat.RAW, state=ImageState.ACTIVE
            ),
        }
        await stores[0].commit(Txn(put={key: encode(value) for key, value in records.items()}))
        made = Fabric(stores)
        await made.net.network("lan")
        await made.net.subnet("lan", "10.0.0.0/28")
        running = [
            asyncio.create_task(run()) for api in made.apis for run in (api.catalogue.run, api.cells.run)
        ]
        try:
            yield made
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await made.cell.close()


async def test_of_many_creates_as_many_win_as_there_are_addresses(fabric: Fabric) -> None:
    made, refused = await fabric.many(ROOM + 18, networks=[pb.RequestedNetwork(network="lan")])

    assert len(made) == ROOM
    assert len({each.status.addresses[0].address for each in made}) == ROOM
    assert refused == {Reason.ADDRESSES_EXHAUSTED: 18}
    await fabric.check(made)


async def test_of_many_creates_one_has_the_port(fabric: Fabric) -> None:
    await fabric.net.port("lan", "web")

    made, refused = await fabric.many(12, networks=[pb.RequestedNetwork(port="web")])

    assert len(made) == 1
    assert set(refused) <= {Reason.RESOURCE_IN_USE, Reason.CHANGED_MEANWHILE}
    await fabric.check(made)


async def test_servers_that_end_give_every_address_back_by_two_schedulers(fabric: Fabric) -> None:
    await fabric.net.port("lan", "web")
    made, _ = await fabric.many(ROOM - 1, networks=[pb.RequestedNetwork(network="lan")])
    with_port = await fabric.apis[0].create("with-port", networks=[pb.RequestedNetwork(port="web")])
    made.append(with_port)
    put: dict[str, object] = {}
    for each in made:
        put[REFUND.at(each.id)] = Refund(instance_id=each.id, project_id="own")
        put[OVER.at(each.id)] = Over(instance_id=each.id, over_time_ms=1)
    await fabric.cell.commit(Txn(put={key: encode(value) for key, value in put.items()}))
    schedulers = [
        SchedulerService(
            store,
            {"c1": fabric.cell},
            Ports(
                settings=SchedulerSettings(), clock=SystemClock(), ids=RandomIds(), jitter=Random(at).random
            ),
        )
        for at, store in enumerate(fabric.stores[:2])
    ]
    running = [asyncio.create_task(each.run()) for each in schedulers]
    try:
        async with asyncio.timeout(30):
            while (await fabric.cell.list(REFUND.under())).entries:
                await asyncio.sleep(0.05)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    await fabric.check([])
    assert [each.name for each in await fabric.net.list("Port")] == ["web"]
    assert (await fabric.stores[0].list(BUILD.under())).entries == {}
