"""Addresses, MACs, VNIs and quota on real etcd, with many clients at once: none double, none leaked."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fabric.errors import FabricError, NoCapacity, QuotaExceeded
from fabric.model.quota import NetworkLimits
from fabric.store.etcd import EtcdStore
from tests.chaos.etcd_process import Cluster, find_binaries
from tests.unit.api import network_books
from tests.unit.api.network_world import ADMIN, OWN, NetworkWorld

CLIENTS = 16


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Cluster]:
    """One member, of the newest version at hand."""
    binaries = find_binaries()
    if not binaries:
        pytest.skip("NO ETCD HERE: run tools/setup first")
    with Cluster(tmp_path, binary=next(iter(binaries.values()))) as cluster:
        yield cluster


@pytest.fixture
async def stores(etcd: Cluster) -> AsyncIterator[list[EtcdStore]]:
    """As many connections as there are clients: each is an API server of its own."""
    async with contextlib.AsyncExitStack() as stack:
        made = [EtcdStore(etcd.patient(), name="global") for _ in range(CLIENTS)]
        for store in made:
            stack.push_async_callback(store.close)
        yield made


async def test_a_subnet_is_given_away_by_many_clients_to_its_last_address(stores: list[EtcdStore]) -> None:
    worlds = [NetworkWorld(store) for store in stores]
    await worlds[0].network("lan")
    await worlds[0].subnet("lan", "10.0.0.0/25")
    room = 128 - 4  # the network's, the broadcast, the gateway's and the service's addresses

    outcomes = await asyncio.gather(
        *(worlds[number % CLIENTS].port("lan") for number in range(room + 20)), return_exceptions=True
    )

    ports = [each for each in outcomes if not isinstance(each, BaseException)]
    refused = [each for each in outcomes if isinstance(each, BaseException)]
    assert len({each.fixed_ips[0].ip_address for each in ports}) == len(ports) == room
    assert len({each.mac_address for each in ports}) == room
    assert {type(each) for each in refused} == {NoCapacity}
    await network_books.check(stores[0])


async def test_addresses_that_come_and_go_are_never_given_twice(stores: list[EtcdStore]) -> None:
    """More clients than addresses, each making and deleting: after every creation the address is its port's alone."""
    worlds = [NetworkWorld(store) for store in stores]
    await worlds[0].network("lan")
    await worlds[0].subnet("lan", "10.0.0.0/28")
    held: set[str] = set()
    outcomes: Counter[str] = Counter()

    async def live(world: NetworkWorld) -> None:
        for _ in range(15):
            try:
                port = await world.port("lan")
            except FabricError as refused:
                outcomes[refused.reason] += 1
                continue
            address = port.fixed_ips[0].ip_address
            assert address not in held, f"{address} was given twice"
            held.add(address)
            await asyncio.sleep(0)
            # Before the call: the address may be another's as soon as the store has deleted the port.
            held.discard(address)
            await world.delete("Port", port.id)
            outcomes["made"] += 1

    await asyncio.gather(*map(live, worlds))

    assert outcomes["made"] > CLIENTS
    assert set(outcomes) <= {"made", "ADDRESSES_EXHAUSTED", "CHANGED_MEANWHILE"}
    found = await network_books.check(stores[0])
    assert found["port/{project}/{port}"] == []


async def test_vnis_and_quota_are_exact(stores: list[EtcdStore]) -> None:
    limits = NetworkLimits(networks=20)
    worlds = [NetworkWorld(store, limits) for store in stores]

    outcomes = await asyncio.gather(
        *(worlds[number % CLIENTS].network(f"n{number}") for number in range(40)), return_exceptions=True
    )

    made = [each for each in outcomes if not isinstance(each, BaseException)]
    assert len(made) == 20
    assert {type(each) for each in outcomes if isinstance(each, BaseException)} == {QuotaExceeded}
    assert len({each.vni for each in await worlds[0].list("Network", ADMIN)}) == 20
    await network_books.check(stores[0])


async def test_what_ends_while_others_come_leaves_nothing_hanging(stores: list[EtcdStore]) -> None:
    worlds = [NetworkWorld(store) for store in stores]
    for turn in range(6):
        await worlds[0].network("lan")
        await worlds[0].subnet("lan", "10.0.0.0/24")
        await worlds[0].group("web")

        outcomes = await asyncio.gather(
            *(world.port("lan", security_groups=["web"]) for world in worlds[:6]),
            worlds[6].delete("Network", "lan"),
            worlds[7].delete("SecurityGroup", "web"),
            return_exceptions=True,
        )

        assert all(isinstance(each, FabricError) for each in outcomes if isinstance(each, BaseException))
        await network_books.check(stores[turn % CLIENTS])
        for port in await worlds[0].list("Port"):
            await worlds[0].delete("Port", port.id)
        for noun, name in (("Network", "lan"), ("SecurityGroup", "web")):
            with contextlib.suppress(FabricError):
                await worlds[0].delete(noun, name)
    left = await network_books.check(stores[0])
    assert [each.name for each in left["security-group/{project}/{group}"]] == ["default"]
    assert await worlds[0].list("Network", OWN) == []
