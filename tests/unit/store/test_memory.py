from __future__ import annotations

import asyncio
import contextlib

import pytest

from fabric.store.base import Batch, Compacted, Event, Txn
from fabric.store.memory import Change, MemoryStore
from tests.unit.store.virtual import run


def test_the_history_is_whole_whatever_is_compacted() -> None:
    async def main() -> list[Change]:
        store = MemoryStore()
        await store.commit(Txn(put={"a": b"1", "b": b"1"}))
        await store.commit(Txn(put={"a": b"2"}, delete=["b"]))
        store.compact(3)
        return [*store.history]

    assert run(main()) == [
        Change(2, "a", None, b"1"),
        Change(2, "b", None, b"1"),
        Change(3, "a", b"1", b"2"),
        Change(3, "b", b"1", None),
    ]


def test_a_change_in_the_instant_of_a_progress_mark_comes_before_it() -> None:
    async def main() -> list[Batch]:
        store = MemoryStore(progress_s=1.0)
        seen: list[Batch] = []

        async def watch() -> None:
            async for batch in store.watch("", after=1):
                seen.append(batch)  # noqa: PERF401 - what came before the test is cancelled counts

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        for second in range(1, 20):
            asyncio.get_running_loop().call_at(
                float(second), lambda: asyncio.ensure_future(store.commit(Txn(put={"a": b""})))
            )
        await asyncio.sleep(30)
        watching.cancel()
        return [batch for batch in seen if batch.events]

    assert run(main()) == [Batch(n, (Event("a", b"", n),)) for n in range(2, 21)]


def test_a_broken_watch_catches_up_or_is_told_of_compaction() -> None:
    async def main() -> None:
        store = MemoryStore()
        watch = store.watch("a", after=1)
        await store.commit(Txn(put={"a": b"1"}))
        assert await anext(watch) == Batch(2, (Event("a", b"1", 2),))
        await store.commit(Txn(put={"a": b"2"}))
        store.break_watches()
        await store.commit(Txn(put={"a": b"3"}))
        assert await anext(watch) == Batch(4, (Event("a", b"2", 3), Event("a", b"3", 4)))
        store.break_watches()
        await store.commit(Txn(put={"a": b"5"}))
        await store.commit(Txn(put={"a": b"6"}))
        store.compact(6)
        with pytest.raises(Compacted):
            await anext(watch)

    run(main())


def test_watchers_that_left_cost_nothing() -> None:
    async def main() -> MemoryStore:
        store = MemoryStore()
        for prefix in ("a", "b/", "b/"):
            watch = store.watch(prefix, after=1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await anext(watch)
        return store

    store = run(main())
    assert store._watchers == {}
    assert store._prefix_lengths == {}


def test_a_lease_runs_on_the_time_of_the_loop() -> None:
    async def main() -> tuple[float, list[Change]]:
        store = MemoryStore()
        lease = await store.grant(3600)
        await store.commit(Txn(put={"a": b""}, leases={"a": lease.id}))
        await asyncio.sleep(3599)
        assert (await store.get("a")).value("a") == b""
        await asyncio.sleep(2)
        return asyncio.get_running_loop().time(), [*store.history]

    now_s, history = run(main())
    assert now_s == 3601
    assert history[-1] == Change(3, "a", b"", None)
