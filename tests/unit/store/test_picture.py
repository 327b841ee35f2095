from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

import pytest
import structlog

from fabric.errors import Unavailable
from fabric.store.base import Batch, Committed, Snapshot, Txn
from fabric.store.memory import MemoryStore
from fabric.store.picture import Change, Pace, Picture
from tests.unit.store.virtual import LoopClock, run


class FaultyStore(MemoryStore):
    """Can be away, and its watches can lose events or deliver nothing at all."""

    def __init__(self) -> None:
        super().__init__(progress_s=1.0)
        self.is_away = False
        self.loses = 0.0
        self.random = Random(1)
        self.list_delay_s = 0.0

    async def get(self, *keys: str) -> Snapshot:
        self._check_there()
        return await super().get(*keys)

    async def list(self, prefix: str) -> Snapshot:
        self._check_there()
        snapshot = await super().list(prefix)
        await asyncio.sleep(self.list_delay_s)
        return snapshot

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        async with contextlib.aclosing(super().watch(prefix, after=after)) as batches:  # type: ignore[type-var]  # a generator, which the port does not promise
            async for batch in batches:
                kept = tuple(event for event in batch.events if self.random.random() >= self.loses)
                yield Batch(batch.revision, kept)

    def _check_there(self) -> None:
        if self.is_away:
            raise Unavailable("away")


def shown(picture: Picture[int]) -> dict[str, int]:
    return {key: held.value for key, held in picture.entries.items()}


async def stored(store: MemoryStore) -> dict[str, int]:
    entries = (await MemoryStore.list(store, "p/")).entries
    return {key: int(entry.value) for key, entry in entries.items()}


async def put(store: MemoryStore, **values: int) -> int:
    outcome = await store.commit(Txn(put={f"p/{key}": b"%d" % value for key, value in values.items()}))
    assert isinstance(outcome, Committed)
    return outcome.revision


@contextlib.asynccontextmanager
async def running(store: MemoryStore, **options: Any) -> AsyncIterator[Picture[int]]:
    picture = Picture(store, "p/", lambda _, value: int(value), clock=LoopClock(), **options)
    task = asyncio.create_task(picture.run())
    try:
        yield picture
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_picture_shows_what_is_there_and_what_comes() -> None:
    async def main() -> None:
        store, told = FaultyStore(), []

        def on_change(changes: Sequence[Change[int]]) -> None:
            told.append(
                [
                    (c.key, c.before and c.before.value, c.after and c.after.value)
                    for c in sorted(changes, key=lambda change: change.key)
                ]
            )

        await put(store, a=1, b=2)
        async with running(store, on_change=on_change) as picture:
            await picture.at_least(store.revision, timeout_s=5)
            assert shown(picture) == {"p/a": 1, "p/b": 2}
            await store.commit(Txn(put={"p/a": b"3"}, delete=["p/b"]))
            await picture.at_least(store.revision, timeout_s=5)
            assert shown(picture) == {"p/a": 3}
            assert picture.entries["p/a"].mod_revision == store.revision
        assert told == [[("p/a", None, 1), ("p/b", None, 2)], [("p/a", 1, 3), ("p/b", 2, None)]]

    run(main())


def test_a_write_elsewhere_is_waited_for_by_reading_again() -> None:
    async def main() -> float:
        store = FaultyStore()
        store._progress_s = None
        await put(store, a=1)
        async with running(store) as picture:
            await picture.at_least(store.revision, timeout_s=5)
            await store.commit(Txn(put={"elsewhere": b""}))
            before_s = asyncio.get_running_loop().time()
            await picture.at_least(store.revision, timeout_s=5)
            return asyncio.get_running_loop().time() - before_s

    assert run(main()) < 0.5


def test_a_revision_that_does_not_come_is_unavailable() -> None:
    async def main() -> None:
        store = FaultyStore()
        async with running(store) as picture:
            with pytest.raises(Unavailable):
                await picture.at_least(1000, timeout_s=2)

    run(main())


def test_a_picture_lists_again_when_history_is_gone() -> None:
    async def main() -> None:
        store = FaultyStore()
        await put(store, a=1, b=1)
        async with running(store, pace=Pace(reread_s=3600)) as picture:
            await picture.at_least(store.revision, timeout_s=5)
            store.break_watches()
            await put(store, a=2)
            await store.commit(Txn(delete=["p/b"]))
            store.compact(store.revision)
            await asyncio.sleep(1)
            assert shown(picture) == {"p/a": 2}
            await put(store, c=3)
            await asyncio.sleep(0.1)
            assert shown(picture) == {"p/a": 2, "p/c": 3}

    run(main())


def test_what_a_watch_loses_a_re_read_repairs_and_reports() -> None:
    async def main() -> None:
        store = FaultyStore()
        await put(store, a=1, gone=1)
        async with running(store, pace=Pace(reread_s=10)) as picture:
            await picture.at_least(store.revision, timeout_s=5)
            store.loses = 1.0
            await put(store, a=2, b=2)
            await store.commit(Txn(delete=["p/gone"]))
            await asyncio.sleep(2)
            assert shown(picture) == {"p/a": 1, "p/gone": 1}
            with structlog.testing.capture_logs() as logs:
                await asyncio.sleep(10)
            assert shown(picture) == await stored(store)
            assert [log["missed"] for log in logs if log["event"] == "picture.repaired"] == [3]

    run(main())


@pytest.mark.parametrize("seed", range(20))
def test_slow_re_reads_and_a_lossy_watch_converge(seed: int) -> None:
    async def main() -> None:
        store, rng = FaultyStore(), Random(seed)
        store.loses, store.list_delay_s = 0.2, 0.3
        async with running(store, pace=Pace(reread_s=0.5)) as picture:
            for _ in range(200):
                key = f"p/{rng.randrange(6)}"
                await store.commit(
                    Txn(delete=[key]) if rng.random() < 0.4 else Txn(put={key: b"%d" % rng.randrange(100)})
                )
                if rng.random() < 0.05:
                    store.break_watches()
                if rng.random() < 0.02:
                    with contextlib.suppress(Exception):
                        store.compact(rng.randrange(2, store.revision + 1))
                await asyncio.sleep(rng.uniform(0, 0.1))
                # Nothing is ever shown that never was.
                for held_key, held in picture.entries.items():
                    assert any(
                        change.key == held_key
                        and change.revision == held.mod_revision
                        and change.after == b"%d" % held.value
                        for change in store.history
                    )
            store.loses = 0.0
            await asyncio.sleep(2)
            assert shown(picture) == await stored(store)

    run(main())


def test_a_correct_watch_is_never_repaired() -> None:
    async def main() -> None:
        store, rng = FaultyStore(), Random(3)
        store.list_delay_s = 0.3
        with structlog.testing.capture_logs() as logs:
            async with running(store, pace=Pace(reread_s=0.5)) as picture:
                for _ in range(300):
                    key = f"p/{rng.randrange(6)}"
                    await store.commit(
                        Txn(delete=[key])
                        if rng.random() < 0.4
                        else Txn(put={key: b"%d" % rng.randrange(100)})
                    )
                    await asyncio.sleep(rng.uniform(0, 0.1))
                assert shown(picture) == await stored(store)
        assert [log for log in logs if log["event"] == "picture.repaired"] == []

    run(main())


def test_an_unreachable_store_is_known_and_the_last_picture_kept() -> None:
    async def main() -> None:
        store = FaultyStore()
        store.is_away = True
        async with running(store) as picture:
            await asyncio.sleep(10)
            assert (picture.is_connected, picture.is_fresh, picture.revision) == (False, False, 0)
            store.is_away = False
            await put(store, a=1)
            await asyncio.sleep(3)
            assert (picture.is_connected, picture.is_fresh) == (True, True)
            contact_s = picture.contact_boot_s
            store.is_away = True
            await asyncio.sleep(10)
            assert (picture.is_connected, picture.is_fresh) == (False, False)
            assert shown(picture) == {"p/a": 1}
            assert picture.contact_boot_s <= contact_s + 1
            store.is_away = False
            await asyncio.sleep(2)
            assert picture.is_fresh

    run(main())


def test_an_entry_that_cannot_be_read_is_named_and_blinds_nobody() -> None:
    async def main() -> None:
        store = FaultyStore()
        await store.commit(Txn(put={"p/bad": b"secret", "p/good": b"1"}))
        with structlog.testing.capture_logs() as logs:
            async with running(store, pace=Pace(reread_s=1)) as picture:
                await asyncio.sleep(5)
                assert shown(picture) == {"p/good": 1}
                assert list(picture.broken) == ["p/bad"]
                await put(store, bad=2)
                await asyncio.sleep(0.1)
                assert shown(picture) == {"p/good": 1, "p/bad": 2}
                assert picture.broken == {}
        assert [log["key"] for log in logs if log["event"] == "picture.undecodable"] == ["p/bad"]
        assert "secret" not in repr(logs)

    run(main())


def test_a_store_set_back_to_a_backup_is_shown_as_it_is() -> None:
    async def main() -> None:
        store = FaultyStore()
        await put(store, a=1)
        backs: list[str] = []
        said = functools.partial(backs.append, "set back")
        async with running(store, pace=Pace(reread_s=5), on_set_back=said) as picture:
            await put(store, a=2, lost=1)
            await put(store, b=1)
            await picture.at_least(store.revision, timeout_s=5)
            restored = FaultyStore()
            await put(restored, a=1)
            picture._store = restored
            with structlog.testing.capture_logs() as logs:
                await asyncio.sleep(6)
            assert [log["event"] for log in logs].count("picture.store_set_back") == 1
            assert shown(picture) == {"p/a": 1}
            assert backs == ["set back"]
            await put(restored, c=9)
            await asyncio.sleep(0.1)
            assert shown(picture) == {"p/a": 1, "p/c": 9}

    run(main())


def test_a_store_set_back_that_has_gone_on_since_is_shown_as_it_is() -> None:
    """A store restored from a backup that was overtaken by new writes before the next re-read looked like one that was only late: what had
    been written after the backup stayed in the picture for ever, and every write that compared its revision was refused for ever.
    """

    async def main() -> None:
        store = FaultyStore()
        await put(store, a=1)
        backs: list[str] = []
        said = functools.partial(backs.append, "set back")
        async with running(store, pace=Pace(reread_s=5), on_set_back=said) as picture:
            await picture.at_least(store.revision, timeout_s=5)
            restored = FaultyStore()
            await put(restored, a=1)
            await put(store, a=2)
            await picture.at_least(store.revision, timeout_s=5)
            picture._store = restored
            for number in range(5):
                await put(restored, b=number)
            await asyncio.sleep(6)
            assert shown(picture) == {"p/a": 1, "p/b": 4}
            assert picture.entries["p/a"].mod_revision == (await restored.get("p/a")).seen("p/a")
            assert backs == ["set back"]

    run(main())


def test_closing_the_store_ends_the_picture() -> None:
    async def main() -> None:
        store = FaultyStore()
        picture = Picture(store, "p/", lambda _, value: int(value), clock=LoopClock())
        task = asyncio.create_task(picture.run())
        await asyncio.sleep(1)
        await store.close()
        async with asyncio.timeout(5):
            await task

    run(main())
