"""The store in memory is a model of etcd: whatever is done to both, both answer the same.

Random transactions, lists, watches, revoked leases and compactions, from a seed. Revisions are compared too: etcd's differ from
the model's by what was written before, a constant.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from fabric.errors import FabricError
from fabric.store.base import Committed, Compacted, Event, Lease, Refused, Snapshot, Txn
from tests.conformance.store.conftest import STORES, CompactableEtcd, CompactableMemory

KEYS = [f"{letter}/{number}" for letter in "ab" for number in range(4)] + ["a", "c"]
PREFIXES = ["", "a", "a/", "b/", "c", "none"]
STEPS = 150
SEEDS = range(12)

LONG_S = 3600.0


class Pair:
    """Both stores, what was done to them, and the constant between their revisions."""

    def __init__(self, model: CompactableMemory, real: CompactableEtcd, offset: int) -> None:
        self.model = model
        self.real = real
        self.offset = offset
        self.leases: list[tuple[Lease, Lease]] = []

    def real_revision(self, revision: int) -> int:
        return revision + self.offset if revision else 0

    def in_model(self, value: Any) -> Any:
        """What the real store said, in the model's revisions and lease ids."""
        match value:
            case Committed(revision, read):
                return Committed(revision - self.offset, self.in_model(read))
            case Refused(current):
                return Refused(self.in_model(current))
            case Snapshot(revision, entries):
                ids = {real.id: model.id for model, real in self.leases} | {0: 0}
                return Snapshot(
                    revision - self.offset,
                    {
                        key: replace(
                            entry,
                            mod_revision=entry.mod_revision - self.offset,
                            create_revision=entry.create_revision - self.offset,
                            lease_id=ids[entry.lease_id],
                        )
                        for key, entry in entries.items()
                    },
                )
            case Event(key, content, revision):
                return Event(key, content, revision - self.offset)
        raise AssertionError(value)


async def outcome(doing: Any) -> Any:
    """What came of it: an answer, or the class of the refusal."""
    try:
        return await doing
    except (FabricError, Compacted) as refused:
        return type(refused)


def a_txn(rng: random.Random, pair: Pair, revisions: dict[str, int]) -> tuple[Txn, Txn]:
    """The same transaction for both. Most compare what is there; some what is not."""
    compared = rng.sample(KEYS, rng.randrange(4))
    unchanged = {
        key: revisions.get(key, 0) if rng.random() < 0.8 else rng.randrange(pair.model.revision + 1)
        for key in compared
    }
    touched = rng.sample(KEYS, rng.randrange(5))
    split = rng.randrange(len(touched) + 1)
    put = {key: b"%d" % rng.randrange(1000) for key in touched[:split]}
    leased = [key for key in put if pair.leases and rng.random() < 0.3]
    chosen = {key: rng.choice(pair.leases) for key in leased}
    made = Txn(
        unchanged=unchanged,
        empty=rng.sample(PREFIXES, rng.randrange(2)) if rng.random() < 0.3 else (),
        put=put,
        delete=touched[split:],
        leases={key: model.id for key, (model, _) in chosen.items()},
        reads=rng.sample(KEYS, rng.randrange(3)),
        read_prefixes=rng.sample(PREFIXES, rng.randrange(2)),
    )
    theirs = replace(
        made,
        unchanged={key: pair.real_revision(revision) for key, revision in unchanged.items()},
        leases={key: real.id for key, (_, real) in chosen.items()},
    )
    return made, theirs


async def watched(pair: Pair, prefix: str, after: int) -> tuple[Any, Any]:
    """What a watch from `after` up to now brings, or that it was told of compaction."""
    until = pair.model.revision

    async def collect(store: Any, start: int, end: int) -> Any:
        if start >= end:
            return []
        events: list[Event] = []
        watch = store.watch(prefix, after=start)
        assert isinstance(watch, AsyncGenerator)
        try:
            async for batch in watch:
                events += batch.events
                if batch.revision >= end:
                    break
        except Compacted as told:
            return Compacted, told.revision
        finally:
            await watch.aclose()
        return sorted(events, key=lambda event: (event.mod_revision, event.key))

    ours = await collect(pair.model, after, until)
    theirs = await collect(pair.real, pair.real_revision(after), pair.real_revision(until))
    if isinstance(theirs, tuple):
        return ours, (Compacted, theirs[1] - pair.offset)
    return ours, [pair.in_model(event) for event in theirs]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("store", STORES[1:], indirect=True)
async def test_whatever_is_done_both_answer_the_same(store: CompactableEtcd, seed: int) -> None:
    rng = random.Random(seed)
    model = CompactableMemory(progress_s=0.2)
    before = await store.get()
    pair = Pair(model, store, before.revision - model.revision)
    async with asyncio.timeout(100):
        for _ in range(STEPS):
            known = {key: entry.mod_revision for key, entry in (await model.list("")).entries.items()}
            match rng.choices(
                ("commit", "list", "get", "watch", "grant", "revoke", "compact"), (60, 8, 8, 4, 6, 6, 4)
            )[0]:
                case "commit":
                    ours, theirs = a_txn(rng, pair, known)
                    expected = await outcome(model.commit(ours))
                    found = await outcome(store.commit(theirs))
                    assert (found if isinstance(found, type) else pair.in_model(found)) == expected
                case "list":
                    prefix = rng.choice(PREFIXES)
                    assert pair.in_model(await store.list(prefix)) == await model.list(prefix)
                case "get":
                    keys = rng.sample(KEYS, rng.randrange(5))
                    assert pair.in_model(await store.get(*keys)) == await model.get(*keys)
                case "watch":
                    mine, real = await watched(
                        pair, rng.choice(PREFIXES), rng.randrange(1, model.revision + 1)
                    )
                    assert real == mine
                case "grant":
                    pair.leases.append((await model.grant(LONG_S), await store.grant(LONG_S)))
                case "revoke" if pair.leases:
                    mine_lease, real_lease = rng.choice(pair.leases)
                    await model.revoke(mine_lease)
                    await store.revoke(real_lease)
                case "compact":
                    at = rng.randrange(2, model.revision + 2)
                    expected = await outcome(model.compact_history(at))
                    assert await outcome(store.compact_history(pair.real_revision(at))) == expected
        assert pair.in_model(await store.list("")) == await model.list("")
        mine, real = await watched(pair, "", max(1, model._compacted))
        assert real == mine
    for _, real_lease in pair.leases:
        await store.revoke(real_lease)
    await model.close()
