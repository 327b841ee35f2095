"""A member may be connected and of no use. gRPC's pings say nothing about that; deadlines and bad marks must."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from fabric.errors import Ambiguous
from fabric.store.base import Committed, Txn
from fabric.store.etcd import EtcdStore
from tests.chaos.deaf_member import DeafMember
from tests.chaos.etcd_process import Cluster
from tests.chaos.proxy import Proxy
from tests.chaos.recorder import Recorder

Connect = Callable[..., EtcdStore]
PATIENCE_S = 30.0


@pytest.fixture
async def deaf() -> AsyncIterator[DeafMember]:
    async with DeafMember() as member:
        yield member


@pytest.fixture
async def store(
    single: Cluster, deaf: DeafMember, connect: Connect
) -> AsyncIterator[tuple[EtcdStore, Proxy]]:
    """A client of a deaf member and a good one that cannot be reached yet: so it begins at the deaf one."""
    async with Proxy(single.endpoints[0]) as good:
        good.refuse()
        settings = replace(
            single.settings(deaf.endpoint, good.endpoint),
            probe_s=0.3,
            silence_s=1.5,
            # Long enough to find the good one, which has to be dialled again.
            call_timeout_s=PATIENCE_S,
        )
        yield connect(settings), good


async def asked(member: DeafMember, method: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not any(name.endswith(method) for name in member.asked):
            await asyncio.sleep(0.02)


async def test_a_read_goes_on_to_the_next_member(store: tuple[EtcdStore, Proxy], deaf: DeafMember) -> None:
    client, good = store
    reading = asyncio.create_task(client.list("a"))
    await asked(deaf, "Range")
    good.heal()

    assert (await reading).entries == {}


async def test_a_write_does_not_but_the_next_one_does(
    store: tuple[EtcdStore, Proxy], deaf: DeafMember
) -> None:
    client, good = store
    writing = asyncio.create_task(client.commit(Txn(put={"a": b"1"})))
    await asked(deaf, "Txn")
    good.heal()

    with pytest.raises(Ambiguous):
        await writing
    async with asyncio.timeout(PATIENCE_S):
        while not client._endpoints._members[1].is_connected:
            await asyncio.sleep(0.02)
    assert isinstance(await client.commit(Txn(put={"a": b"2"})), Committed)
    assert deaf.asked.count("/etcdserverpb.KV/Txn") == 1


async def test_a_watch_that_is_not_answered_is_taken_elsewhere(
    store: tuple[EtcdStore, Proxy], deaf: DeafMember, single: Cluster, connect: Connect
) -> None:
    client, good = store
    writer = connect(single.settings())
    after = (await writer.get()).revision
    async with Recorder(client, "n/", after=after) as seen:
        await asked(deaf, "Watch")
        good.heal()
        outcome = await writer.commit(Txn(put={"n/1": b"1"}))
        assert isinstance(outcome, Committed)

        assert [event.value for event in await seen.until(outcome.revision)] == [b"1"]


async def test_a_lease_is_kept_elsewhere(
    store: tuple[EtcdStore, Proxy], deaf: DeafMember, single: Cluster, connect: Connect
) -> None:
    client, good = store
    lease = await connect(single.settings()).grant(6)
    keeping = asyncio.create_task(client.keep_alive(lease))
    await asked(deaf, "LeaseKeepAlive")
    good.heal()
    await asyncio.sleep(lease.ttl_s)

    assert not keeping.done()
    keeping.cancel()
