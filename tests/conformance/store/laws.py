"""The laws of `fabric.store.base.Store`, as plain functions of a store. Which store it is they cannot tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest

from fabric.errors import Bug, NotFound, Reason, TooMuch, Unavailable
from fabric.store.base import Batch, Committed, Compacted, Event, Refused, Store, Txn

PATIENCE_S = 60.0


class CompactingStore(Store, Protocol):
    """A store that can be told to forget its history, as both of ours can."""

    async def compact_history(self, revision: int) -> None: ...


Law = Callable[[CompactingStore], Awaitable[None]]


async def put(store: Store, **values: str) -> int:
    """Write keys whatever they were; returns the revision."""
    outcome = await store.commit(Txn(put={key: value.encode() for key, value in values.items()}))
    assert isinstance(outcome, Committed)
    return outcome.revision


async def take(watch: AsyncIterator[Batch], until: int) -> list[Event]:
    """The events of a watch up to a revision, and that is the end of it."""
    events: list[Event] = []
    async with asyncio.timeout(PATIENCE_S):
        async for batch in watch:
            assert all(event.mod_revision <= batch.revision for event in batch.events)
            events += batch.events
            if batch.revision >= until:
                break
    assert isinstance(watch, AsyncGenerator)
    await watch.aclose()
    return events


# ---------------------------------------------------------------------------------------- reading


async def an_absent_key_reads_as_absent(store: CompactingStore) -> None:
    snapshot = await store.get("nothing")

    assert snapshot.entries == {}
    assert snapshot.value("nothing") is None
    assert snapshot.seen("nothing") == 0


async def what_was_written_is_read_back_at_its_revision(store: CompactingStore) -> None:
    first = await put(store, a="1")
    second = await put(store, a="2", b="")

    snapshot = await store.get("a", "b", "c")

    assert snapshot.revision >= second
    assert list(snapshot.entries) == ["a", "b"]
    entry = snapshot.entries["a"]
    assert (entry.value, entry.create_revision, entry.mod_revision) == (b"2", first, second)
    assert (snapshot.value("b"), snapshot.seen("b")) == (b"", second)


async def reading_no_key_tells_the_revision(store: CompactingStore) -> None:
    last = await put(store, a="1")

    snapshot = await store.get()

    assert (snapshot.revision, snapshot.entries) == (last, {})


async def any_number_of_keys_is_read_at_one_revision(store: CompactingStore) -> None:
    names = [f"many/{number:03}" for number in range(300)]
    for start in range(0, 300, 100):
        await put(store, **{name: name for name in names[start : start + 100]})

    snapshot = await store.get(*names, "many/none")

    assert list(snapshot.entries) == names


async def a_list_holds_the_prefix_and_nothing_else_in_order(store: CompactingStore) -> None:
    await put(store, **{"p/b": "2", "p/a": "1", "p": "0", "q": "3", "p0": "4", "pé": "5"})

    assert list((await store.list("p/")).entries) == ["p/a", "p/b"]
    assert list((await store.list("p")).entries) == ["p", "p/a", "p/b", "p0", "pé"]
    assert list((await store.list("")).entries) == ["p", "p/a", "p/b", "p0", "pé", "q"]
    assert (await store.list("x")).entries == {}


async def a_long_list_is_whole(store: CompactingStore) -> None:
    names = [f"long/{number:04}" for number in range(2500)]
    for start in range(0, 2500, 125):
        await put(store, **dict.fromkeys(names[start : start + 125], "x"))

    assert list((await store.list("long/")).entries) == names


async def values_are_bytes_of_any_kind(store: CompactingStore) -> None:
    value = bytes(range(256)) * 100
    await store.commit(Txn(put={"binary": value}))

    assert (await store.get("binary")).value("binary") == value


# ---------------------------------------------------------------------------------------- writing


async def each_write_takes_one_new_revision(store: CompactingStore) -> None:
    before = (await store.get()).revision
    first = await put(store, a="1", b="2", c="3")
    second = await put(store, a="1")

    assert (first, second) == (before + 1, before + 2)
    assert (await store.get()).revision == second


async def a_write_that_changes_nothing_takes_no_revision(store: CompactingStore) -> None:
    before = await put(store, a="1")

    outcome = await store.commit(Txn(unchanged={"a": before}, delete=["absent"], reads=["a"]))

    assert isinstance(outcome, Committed)
    assert outcome.revision == before
    assert outcome.read.value("a") == b"1"


async def a_transaction_is_refused_when_anything_it_read_has_changed(store: CompactingStore) -> None:
    old = await put(store, a="1")
    new = await put(store, a="2", b="1")

    outcome = await store.commit(
        Txn(unchanged={"b": new, "a": old, "c": 0}, put={"c": b"x"}, delete=["b"], reads=["a"])
    )

    assert isinstance(outcome, Refused)
    assert {key: entry.value for key, entry in outcome.current.entries.items()} == {"a": b"2", "b": b"1"}
    assert outcome.current.seen("a") == new
    assert outcome.current.seen("c") == 0
    assert (await store.get()).revision == new


async def absence_can_be_compared(store: CompactingStore) -> None:
    claim = Txn(unchanged={"claim": 0}, put={"claim": b"mine"})

    assert isinstance(await store.commit(claim), Committed)
    refused = await store.commit(claim)
    assert isinstance(refused, Refused)
    assert refused.current.value("claim") == b"mine"
    await store.commit(Txn(delete=["claim"]))
    assert isinstance(await store.commit(claim), Committed)


async def that_nothing_is_below_a_prefix_can_be_compared(store: CompactingStore) -> None:
    await put(store, **{"room/1/a": "1", "room/10/b": "1"})

    refused = await store.commit(Txn(empty=("room/1/",), put={"closed": b"1"}))
    below = await store.commit(Txn(empty=("room/2/", "room/1/"), put={"closed": b"1"}))
    assert isinstance(refused, Refused)
    assert isinstance(below, Refused)
    assert (await store.get("closed")).entries == {}

    await store.commit(Txn(delete=("room/1/a",)))
    assert isinstance(await store.commit(Txn(empty=("room/1/", "room/2/"), put={"closed": b"1"})), Committed)


async def of_a_delete_and_what_would_hang_on_it_one_wins(store: CompactingStore) -> None:
    """The delete compares that nothing hangs on the thing, the other that the thing is as it was read."""
    for number in range(20):
        thing = await put(store, **{f"thing/{number}": "1"})
        delete = Txn(
            unchanged={f"thing/{number}": thing}, empty=(f"on/{number}/",), delete=(f"thing/{number}",)
        )
        hang = Txn(unchanged={f"thing/{number}": thing}, put={f"on/{number}/x": b"1"})

        outcomes = await asyncio.gather(store.commit(delete), store.commit(hang))

        assert sorted(isinstance(each, Committed) for each in outcomes) == [False, True]
        left = {*(await store.list(f"thing/{number}")).entries, *(await store.list(f"on/{number}/")).entries}
        assert len(left) in {0, 2}


async def a_key_made_again_is_a_new_key(store: CompactingStore) -> None:
    await put(store, a="1")
    await store.commit(Txn(delete=["a"]))
    revision = await put(store, a="1")

    entry = (await store.get("a")).entries["a"]

    assert (entry.create_revision, entry.mod_revision) == (revision, revision)


async def reads_of_a_transaction_see_its_writes(store: CompactingStore) -> None:
    await put(store, **{"r/1": "old", "r/2": "gone", "s": "other"})

    outcome = await store.commit(
        Txn(put={"r/1": b"new", "r/3": b"born"}, delete=["r/2"], reads=["s", "none"], read_prefixes=["r/"])
    )

    assert isinstance(outcome, Committed)
    assert outcome.read.revision == outcome.revision
    assert {key: entry.value for key, entry in outcome.read.entries.items()} == {
        "r/1": b"new",
        "r/3": b"born",
        "s": b"other",
    }
    assert outcome.read.seen("r/3") == outcome.revision


async def a_large_prefix_is_read_within_a_transaction(store: CompactingStore) -> None:
    for part in range(8):
        await store.commit(Txn(put={f"big/{part}/{n:03}": b"x" * 10_000 for n in range(100)}))

    outcome = await store.commit(Txn(put={"fence": b"1"}, read_prefixes=["big/"]))

    assert isinstance(outcome, Committed)
    assert len(outcome.read.entries) == 800


async def of_racing_writers_one_wins_each_revision(store: CompactingStore) -> None:
    await put(store, counter="0")

    async def add_one() -> None:
        while True:
            seen = await store.get("counter")
            value = b"%d" % (int(seen.value("counter") or b"0") + 1)
            outcome = await store.commit(
                Txn(unchanged={"counter": seen.seen("counter")}, put={"counter": value})
            )
            if isinstance(outcome, Committed):
                return

    await asyncio.gather(*(add_one() for _ in range(20)))

    assert (await store.get("counter")).value("counter") == b"20"


async def contradictions_are_our_own_fault(store: CompactingStore) -> None:
    with pytest.raises(Bug):
        await store.commit(Txn(put={"a": b"1"}, delete=["a"]))
    with pytest.raises(Bug):
        await store.commit(Txn(put={"a": b"1"}, leases={"b": 1}))
    for empty in (Txn(put={"": b""}), Txn(unchanged={"": 0}), Txn(delete=[""]), Txn(reads=[""])):
        with pytest.raises(Bug):
            await store.commit(empty)
    with pytest.raises(Bug):
        await store.get("a", "")


async def what_is_too_large_is_refused_before_anything_is_done(store: CompactingStore) -> None:
    before = (await store.get()).revision
    for txn in (
        Txn(put={f"k{number}": b"" for number in range(129)}),
        Txn(unchanged={f"k{number}": 0 for number in range(129)}, put={"k": b""}),
        Txn(put={"k": b"x" * 1_600_000}),
    ):
        with pytest.raises(TooMuch) as caught:
            await store.commit(txn)
        assert caught.value.reason is Reason.TOO_LARGE

    assert (await store.get()).revision == before


async def the_largest_transaction_is_taken(store: CompactingStore) -> None:
    names = [f"k{number:03}" for number in range(128)]

    outcome = await store.commit(
        Txn(unchanged=dict.fromkeys(names, 0), put=dict.fromkeys(names, b"x" * 11000))
    )

    assert isinstance(outcome, Committed)


# ---------------------------------------------------------------------------------------- watching


async def a_watch_brings_every_change_after_its_revision_once_in_order(store: CompactingStore) -> None:
    after = await put(store, **{"w/a": "0"})
    await put(store, **{"w/a": "1"})
    watch = store.watch("w/", after=after)
    await put(store, **{"w/b": "2", "x": "not ours"})
    await put(store, y="not ours either")
    changed = await store.commit(Txn(put={"w/a": b"3"}, delete=["w/b"]))
    assert isinstance(changed, Committed)
    last = changed.revision

    events = await take(watch, last)

    assert sorted(events, key=lambda event: (event.mod_revision, event.key)) == [
        Event("w/a", b"1", after + 1),
        Event("w/b", b"2", after + 2),
        Event("w/a", b"3", last),
        Event("w/b", None, last),
    ]


async def a_watch_from_a_list_misses_nothing_and_repeats_nothing(store: CompactingStore) -> None:
    async def write() -> int:
        revision = 0
        for number in range(60):
            revision = await put(store, **{f"l/{number % 7}": str(number)})
        return revision

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.01)
    listed = await store.list("l/")
    last = await writing
    shown = {key: entry.value for key, entry in listed.entries.items()}
    events = await take(store.watch("l/", after=listed.revision), last) if last > listed.revision else []
    for event in events:
        assert event.mod_revision > listed.revision
        shown[event.key] = event.value or b""

    assert shown == {key: entry.value for key, entry in (await store.list("l/")).entries.items()}


async def a_batch_never_splits_a_revision(store: CompactingStore) -> None:
    after = (await store.get()).revision
    sizes: dict[int, int] = {}
    for number in range(40):
        names = [f"s/{n}" for n in range(1 + number % 100)]
        outcome = await store.commit(Txn(put=dict.fromkeys(names, b"%d" % number * 1000)))
        assert isinstance(outcome, Committed)
        sizes[outcome.revision] = len(names)
    seen: dict[int, int] = {}

    async with asyncio.timeout(PATIENCE_S):
        watch = store.watch("s/", after=after)
        async for batch in watch:
            ours: dict[int, int] = {}
            for event in batch.events:
                ours[event.mod_revision] = ours.get(event.mod_revision, 0) + 1
            assert not ours.keys() & seen.keys()
            seen |= ours
            if batch.revision >= max(sizes):
                break
        assert isinstance(watch, AsyncGenerator)
        await watch.aclose()

    assert seen == sizes


async def a_quiet_watch_tells_the_revision(store: CompactingStore) -> None:
    after = (await store.get()).revision
    watch = store.watch("quiet/", after=after)
    revision = await put(store, elsewhere="1")

    assert await take(watch, revision) == []


async def many_watches_each_get_their_own(store: CompactingStore) -> None:
    after = (await store.get()).revision
    watches = [store.watch(f"m/{n}/", after=after) for n in range(5)] + [store.watch("m/", after=after)]
    taking = [asyncio.create_task(take(watch, after + 5)) for watch in watches]
    for n in range(5):
        await put(store, **{f"m/{n}/k": str(n)})

    taken = await asyncio.gather(*taking)

    assert [[event.value for event in events] for events in taken[:5]] == [[b"%d" % n] for n in range(5)]
    assert [event.value for event in taken[5]] == [b"%d" % n for n in range(5)]


async def a_watch_survives_compaction_of_what_it_has_seen(store: CompactingStore) -> None:
    after = (await store.get()).revision
    watch = store.watch("c/", after=after)
    first = await put(store, **{"c/1": "1"})
    batch = await anext(watch)
    while batch.revision < first:
        batch = await anext(watch)
    last = await put(store, **{"c/2": "2"})
    await store.compact_history(first)

    assert await take(watch, last) == [Event("c/2", b"2", last)]


async def a_watch_may_begin_exactly_at_the_compacted_revision(store: CompactingStore) -> None:
    revision = await put(store, **{"c/1": "1"})
    last = await put(store, **{"c/1": "2"})
    await store.compact_history(revision)

    assert await take(store.watch("c/", after=revision), last) == [Event("c/1", b"2", last)]


async def a_watch_from_before_the_compacted_revision_is_told(store: CompactingStore) -> None:
    after = await put(store, **{"c/1": "1"})
    # The deletion is exactly at the compacted revision: etcd up to 3.5.17 forgets it, and serves the watch all the same.
    removed = await store.commit(Txn(delete=["c/1"]))
    assert isinstance(removed, Committed)
    gone = removed.revision
    await put(store, **{"c/2": "1"})
    await store.compact_history(gone)

    with pytest.raises(Compacted) as caught:
        await take(store.watch("c/", after=after), gone + 1)
    assert caught.value.revision == gone


async def history_cannot_be_compacted_twice_or_ahead(store: CompactingStore) -> None:
    revision = await put(store, a="1")
    await put(store, a="2")
    await store.compact_history(revision)

    with pytest.raises(Compacted):
        await store.compact_history(revision)
    with pytest.raises(Compacted):
        await store.compact_history(revision + 1000)


async def a_list_of_the_present_does_not_care_about_compaction(store: CompactingStore) -> None:
    await put(store, a="1", b="1")
    last = await put(store, a="2")
    await store.compact_history(last)

    assert {key: entry.value for key, entry in (await store.list("")).entries.items()} == {
        "a": b"2",
        "b": b"1",
    }


# ---------------------------------------------------------------------------------------- leases


async def keys_of_a_lease_go_with_it_at_one_revision(store: CompactingStore) -> None:
    lease = await store.grant(60)
    bound = await store.commit(
        Txn(
            put={"l/1": b"", "l/2": b"", "free": b""},
            leases={"l/1": lease.id, "l/2": lease.id},
            reads=["l/1"],
        )
    )
    assert isinstance(bound, Committed)
    assert bound.read.entries["l/1"].lease_id == lease.id
    await store.revoke(lease)

    events = await take(store.watch("", after=bound.revision), bound.revision + 1)

    assert sorted(events, key=lambda event: event.key) == [
        Event("l/1", None, bound.revision + 1),
        Event("l/2", None, bound.revision + 1),
    ]
    assert list((await store.list("")).entries) == ["free"]


async def revoking_twice_is_fine(store: CompactingStore) -> None:
    lease = await store.grant(60)
    await store.revoke(lease)
    await store.revoke(lease)


async def a_lease_that_is_not_kept_ends(store: CompactingStore) -> None:
    lease = await store.grant(2)
    bound = await store.commit(Txn(put={"l": b""}, leases={"l": lease.id}))
    assert isinstance(bound, Committed)

    events = await take(store.watch("l", after=bound.revision), bound.revision + 1)

    assert events == [Event("l", None, bound.revision + 1)]


async def a_lease_is_granted_for_whole_seconds_and_not_less_than_asked(store: CompactingStore) -> None:
    assert (await store.grant(2.1)).ttl_s == 3.0
    assert (await store.grant(10)).ttl_s == 10.0
    assert (await store.grant(0.5)).ttl_s >= 1.0
    with pytest.raises(Bug):
        await store.grant(0)


async def a_kept_lease_lives_and_says_when_it_is_over(store: CompactingStore) -> None:
    lease = await store.grant(4)
    await store.commit(Txn(put={"l": b""}, leases={"l": lease.id}))
    keeping = asyncio.create_task(store.keep_alive(lease))
    await asyncio.sleep(lease.ttl_s + 2)

    assert (await store.get("l")).value("l") == b""
    assert not keeping.done()
    await store.revoke(lease)
    async with asyncio.timeout(PATIENCE_S):
        await keeping


async def a_key_put_again_without_its_lease_stays(store: CompactingStore) -> None:
    lease = await store.grant(60)
    await store.commit(Txn(put={"l": b"1"}, leases={"l": lease.id}))
    await put(store, l="2")
    await store.revoke(lease)

    assert (await store.get("l")).value("l") == b"2"


async def a_lease_that_is_gone_binds_nothing(store: CompactingStore) -> None:
    lease = await store.grant(60)
    await store.revoke(lease)

    with pytest.raises(NotFound):
        await store.commit(Txn(put={"l": b"1", "m": b"1"}, leases={"l": lease.id}))
    refused = await store.commit(Txn(unchanged={"n": 1}, put={"l": b"1"}, leases={"l": lease.id}))
    assert isinstance(refused, Refused)
    assert (await store.list("")).entries == {}


async def keeping_a_lease_that_is_gone_returns(store: CompactingStore) -> None:
    lease = await store.grant(60)
    await store.revoke(lease)

    async with asyncio.timeout(PATIENCE_S):
        await store.keep_alive(lease)


# ---------------------------------------------------------------------------------------- the end


async def closing_ends_watches_and_beats(store: CompactingStore) -> None:
    lease = await store.grant(60)
    after = (await store.get()).revision
    seen: list[Event] = []
    is_following = asyncio.Event()

    async def follow() -> None:
        async for batch in store.watch("", after=after):
            seen.extend(batch.events)
            is_following.set()

    watching = asyncio.create_task(follow())
    keeping = asyncio.create_task(store.keep_alive(lease))
    last = await put(store, a="0")
    async with asyncio.timeout(PATIENCE_S):
        await is_following.wait()
        await store.close()
        await watching
        await keeping

    assert seen == [Event("a", b"0", last)]
    with pytest.raises(Unavailable):
        await store.get("a")
    with pytest.raises(Unavailable):
        await put(store, a="1")


LAWS: tuple[Law, ...] = tuple(
    value
    for name, value in list(globals().items())
    if asyncio.iscoroutinefunction(value) and value.__module__ == __name__ and name not in {"put", "take"}
)
"""Every law of this file, in the order they are written."""
