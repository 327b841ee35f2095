"""What a watch lives through. Every row is a way in which some client of etcd lost events or fell silent for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from fabric.store.base import Committed, Compacted, Store, Txn
from fabric.store.etcd import EtcdStore
from tests.chaos.etcd_process import Cluster
from tests.chaos.proxy import Proxy
from tests.chaos.recorder import Recorder

Connect = Callable[..., EtcdStore]


async def write(store: Store, numbers: range, *, at_once: int = 1) -> int:
    """One put per number under `n/`, the value being the number; returns the last revision."""
    revision = 0

    async def put(number: int) -> None:
        nonlocal revision
        outcome = await store.commit(Txn(put={f"n/{number % 50}": b"%d" % number}))
        assert isinstance(outcome, Committed)
        revision = max(revision, outcome.revision)

    for start in range(numbers.start, numbers.stop, at_once):
        await asyncio.gather(*(put(number) for number in range(start, min(start + at_once, numbers.stop))))
    return revision


def values(recorder: Recorder) -> list[int]:
    return [int(event.value or b"-1") for event in recorder.events]


async def test_a_member_killed_and_started_again_costs_no_event(single: Cluster, connect: Connect) -> None:
    store = connect(single.settings())
    async with Recorder(store, "n/", after=(await store.get()).revision) as seen:
        await seen.until(await write(store, range(10)))
        single.members[0].kill()
        single.members[0].start()
        await asyncio.to_thread(single.members[0].wait_healthy)
        await seen.until(await write(connect(single.settings()), range(10, 20)))

        assert values(seen) == list(range(20))


async def test_writes_made_while_the_watcher_was_cut_off_arrive(single: Cluster, connect: Connect) -> None:
    writer = connect(single.settings())
    async with Proxy(single.endpoints[0]) as proxy:
        watcher = connect(single.settings(proxy.endpoint))
        async with Recorder(watcher, "n/", after=(await writer.get()).revision) as seen:
            await seen.until(await write(writer, range(10)))
            proxy.refuse()
            last = await write(writer, range(10, 20))
            proxy.heal()
            await seen.until(last)

            assert values(seen) == list(range(20))


async def test_compaction_while_the_watcher_was_away_is_said(single: Cluster, connect: Connect) -> None:
    writer = connect(single.settings())
    async with Proxy(single.endpoints[0]) as proxy:
        watcher = connect(single.settings(proxy.endpoint))
        async with Recorder(watcher, "n/", after=(await writer.get()).revision) as seen:
            await seen.until(await write(writer, range(5)))
            proxy.refuse()
            last = await write(writer, range(5, 20))
            await writer.compact(last - 1)
            proxy.heal()

            with pytest.raises(Compacted) as caught:
                await seen.until(last)
            assert caught.value.revision == last - 1
            assert values(seen) == list(range(5))


async def test_a_connection_that_breaks_while_catching_up_costs_nothing(
    single: Cluster, connect: Connect
) -> None:
    writer = connect(single.settings())
    after = (await writer.get()).revision
    last = await write(writer, range(6000), at_once=100)
    async with Proxy(single.endpoints[0]) as proxy:
        watcher = connect(single.settings(proxy.endpoint))
        await watcher.get()
        proxy.break_after(100_000)
        async with Recorder(watcher, "n/", after=after) as seen:
            await seen.until(last)

            assert proxy.connections > 1
            assert sorted(values(seen)) == list(range(6000))
            revisions = [event.mod_revision for event in seen.events]
            assert revisions == sorted(set(revisions))


async def test_thirty_cuts_during_three_thousand_writes_lose_and_repeat_nothing(
    single: Cluster, connect: Connect
) -> None:
    rng = random.Random(single.members[0].name)
    writer = connect(single.settings())
    async with Proxy(single.endpoints[0]) as proxy:
        watcher = connect(single.settings(proxy.endpoint))
        async with Recorder(watcher, "n/", after=(await writer.get()).revision) as seen:
            cuts = 0
            writing = asyncio.create_task(write(writer, range(3000), at_once=4))
            while not writing.done() or cuts < 30:
                await asyncio.sleep(rng.uniform(0.0, 0.08))
                if rng.random() < 0.5:
                    proxy.cut()
                else:
                    proxy.break_after(rng.randrange(1, 20_000))
                cuts += 1
            await seen.until(await writing)

            assert sorted(values(seen)) == list(range(3000))
            revisions = [event.mod_revision for event in seen.events]
            assert revisions == sorted(set(revisions))


@pytest.mark.parametrize("directions", [(), ("down",), ("up",)], ids=["both", "down", "up"])
async def test_a_member_gone_silent_is_left_for_another(
    three: Cluster, connect: Connect, directions: tuple[str, ...]
) -> None:
    writer = connect(three.settings())
    async with Proxy(three.endpoints[0]) as first, Proxy(three.endpoints[1]) as second:
        second.refuse()
        settings = replace(three.settings(first.endpoint, second.endpoint), probe_s=0.3, silence_s=1.5)
        watcher = connect(settings)
        async with Recorder(watcher, "n/", after=(await writer.get()).revision) as seen:
            await seen.until(await write(writer, range(10)))
            first.silence(*directions)
            second.heal()
            await seen.until(await write(writer, range(10, 20)))

            assert values(seen) == list(range(20))


async def test_a_black_hole_that_clears_is_noticed_too(single: Cluster, connect: Connect) -> None:
    writer = connect(single.settings())
    async with Proxy(single.endpoints[0]) as proxy:
        watcher = connect(replace(single.settings(proxy.endpoint), probe_s=0.3, silence_s=1.5))
        async with Recorder(watcher, "n/", after=(await writer.get()).revision) as seen:
            await seen.until(await write(writer, range(10)))
            proxy.silence()
            last = await write(writer, range(10, 20))
            await asyncio.sleep(2)
            proxy.heal()
            await seen.until(last)

            assert values(seen) == list(range(20))


async def test_a_watch_lives_through_the_loss_of_the_quorum(three: Cluster, connect: Connect) -> None:
    store = connect(three.settings())
    async with Recorder(store, "n/", after=(await store.get()).revision) as seen:
        await seen.until(await write(store, range(10)))
        for member in three.members[:2]:
            member.kill()
        await asyncio.sleep(4)
        for member in three.members[:2]:
            member.start()
        for member in three.members[:2]:
            await asyncio.to_thread(member.wait_healthy)
        await seen.until(await write(connect(three.settings()), range(10, 20)))

        assert values(seen) == list(range(20))


async def test_large_revisions_come_in_fragments_and_are_put_together(
    single: Cluster, connect: Connect
) -> None:
    store = connect(single.settings())
    after = (await store.get()).revision
    sizes: dict[int, int] = {}
    for number in range(12):
        outcome = await store.commit(Txn(put={f"f/{key}": bytes([number]) * 12_000 for key in range(120)}))
        assert isinstance(outcome, Committed)
        sizes[outcome.revision] = 120
    async with Recorder(store, "f/", after=after) as seen:
        await seen.until(max(sizes))

        counted: dict[int, int] = {}
        for event in seen.events:
            counted[event.mod_revision] = counted.get(event.mod_revision, 0) + 1
        assert counted == sizes
