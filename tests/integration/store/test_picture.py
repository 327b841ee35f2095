"""A picture over real etcd, through a connection that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fabric.clock import SystemClock
from fabric.store.base import Committed, Store, Txn
from fabric.store.etcd import EtcdStore
from fabric.store.picture import Pace, Picture
from tests.chaos.etcd_process import Cluster
from tests.chaos.proxy import Proxy

GUARD_S = 30.0


async def put(store: Store, **values: int) -> int:
    outcome = await store.commit(Txn(put={f"p/{key}": b"%d" % value for key, value in values.items()}))
    assert isinstance(outcome, Committed)
    return outcome.revision


async def becomes(picture: Picture[int], *, connected: bool) -> None:
    async with asyncio.timeout(GUARD_S):
        while picture.is_connected is not connected:
            await asyncio.sleep(0.05)


async def test_a_picture_outlives_its_store(single: Cluster, connect: Callable[..., EtcdStore]) -> None:
    writer = connect(single.settings())
    first = await put(writer, a=1, b=2)
    async with Proxy(single.endpoints[0]) as proxy:
        picture = Picture(
            connect(single.settings(proxy.endpoint)),
            "p/",
            lambda _, value: int(value),
            clock=SystemClock(),
            pace=Pace(contact_s=0.3, stale_after_s=2.0),
        )
        running = asyncio.create_task(picture.run())
        await picture.at_least(first, timeout_s=GUARD_S)
        assert {key: held.value for key, held in picture.entries.items()} == {"p/a": 1, "p/b": 2}
        assert picture.is_fresh

        # A write that touches nothing here is waited for all the same.
        elsewhere = await writer.commit(Txn(put={"q": b""}))
        assert isinstance(elsewhere, Committed)
        await picture.at_least(elsewhere.revision, timeout_s=GUARD_S)

        proxy.refuse()
        await becomes(picture, connected=False)
        assert {key: held.value for key, held in picture.entries.items()} == {"p/a": 1, "p/b": 2}
        await writer.commit(Txn(delete=["p/b"]))
        last = await put(writer, a=3, c=4)
        await writer.compact(last)

        proxy.heal()
        await becomes(picture, connected=True)
        await picture.at_least(last, timeout_s=GUARD_S)
        assert {key: held.value for key, held in picture.entries.items()} == {"p/a": 3, "p/c": 4}
        later = await put(writer, d=5)
        await picture.at_least(later, timeout_s=GUARD_S)
        assert picture.entries["p/d"].mod_revision == later
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
