"""Finding out what became of a write whose answer was lost (R12), and finishing it.

A write that came back Ambiguous was applied, or was not, or *will be*: the request may still sit in a member's queue and
be applied long after its caller gave up. Three facts make the question decidable all the same:

1. Every transaction settled here compares one key, the *mark*, and writes it a value nobody else ever writes (records
   carry the id of the operation that wrote them). So whatever number of copies of it are on their way, at most one is
   ever applied: the first moves the mark's mod_revision, and all others compare against the old one. Hence sending the
   same transaction again, with the same compares, is safe, and a late copy changes nothing.
2. If it was applied, its value is the *first* change of the mark after the revision that was compared; whatever that
   change is, nothing sent with the old compare can be applied any more. So the first change decides, and somebody having
   written over us in the meantime (an instance we claimed, already ACTIVE) does not hide that we were there.
3. As long as the mark still stands at the compared revision, nothing is decided, and (1) says what to do.

One thing is the caller's to ensure. Revisions never come back, but absence does: where a key is compared as *absent*,
deleting it must leave something behind that the same transaction compares (the tombstone `ti/<u>` beside `i/<u>`), for
longer than a request can be late; and so with a prefix compared as empty. Else "absent, applied, deleted, absent" looks
like never having been there, to us and to a late copy alike.

What a settled transaction *read* is lost with its answer, and reading it again afterwards would be a read outside the
transaction, which may grant nothing (R11). So transactions with reads are not settled; they are begun anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from fabric.deadlines import within
from fabric.errors import Ambiguous, Bug, Unavailable
from fabric.store.base import Committed, Compacted, Event, Refused, Snapshot, Store, Txn

PATIENCE_S = 10.0
PAUSE_S = (0.1, 1.0)


async def commit_settled(
    store: Store, txn: Txn, *, mark: str, patience_s: float = PATIENCE_S
) -> Committed | Refused:
    """Commit, and if the answer is lost find out what happened or send it again, until one of the two is certain.

    Args:
        store: where.
        txn: what; it compares `mark`, puts it a value unique to this operation, and reads nothing.
        mark: the key that tells whether it was us.
        patience_s: how long to go on after the first lost answer.

    Returns:
        Committed at the revision at which it was really applied, or Refused with what stands there now.

    Raises:
        Ambiguous: still unknown after `patience_s`, or history that would tell is compacted.
        Unavailable: it was never sent.
        Bug: `txn` cannot be settled by `mark`.
    """
    _check(txn, mark)
    try:
        return await store.commit(txn)
    except Ambiguous as lost:
        first_loss = lost
    try:
        async with within(patience_s):
            return await _settle(store, txn, mark)
    except (TimeoutError, Compacted) as still:
        raise Ambiguous(
            f"store {store.name}: the fate of a write to {mark} could not be found out",
            store=store.name,
            key=mark,
        ) from (first_loss if isinstance(still, TimeoutError) else still)


async def _settle(store: Store, txn: Txn, mark: str) -> Committed | Refused:
    pause_s = PAUSE_S[0]
    while True:
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, PAUSE_S[1])
        # Whatever goes wrong in here leaves the first copy's fate as open as it was: look again. That a *later* copy was
        # never sent (Unavailable) says nothing about it.
        with contextlib.suppress(Unavailable):
            seen = await store.get(mark)
            if seen.seen(mark) == txn.unchanged[mark]:
                outcome = await store.commit(txn)
                if isinstance(outcome, Committed):
                    return outcome
                seen = outcome.current
                if seen.seen(mark) == txn.unchanged[mark]:
                    # Refused for another key: the same refuses every copy that comes after this one, but an earlier
                    # copy, had it been applied, would have moved the mark. It was not.
                    return outcome
            return await _who_was_first(store, txn, mark, seen)


async def _who_was_first(store: Store, txn: Txn, mark: str, seen: Snapshot) -> Committed | Refused:
    """The mark has moved: by us, or by somebody else."""
    ours = txn.put[mark]
    if seen.value(mark) == ours:
        return Committed(seen.entries[mark].mod_revision, Snapshot(seen.revision, {}))
    # A mark compared as absent was created since, once (see above): its creation is the first change.
    after = txn.unchanged[mark] or seen.entries[mark].create_revision - 1
    first = await _first_change(store, mark, after)
    if first.value == ours:
        return Committed(first.mod_revision, Snapshot(seen.revision, {}))
    return Refused(await store.get(*txn.unchanged))


async def _first_change(store: Store, key: str, after: int) -> Event:
    """The first change of a key that is known to have changed after a revision. Raises Compacted."""
    batches = store.watch(key, after=after)
    try:
        async for batch in batches:
            for event in batch.events:
                if event.key == key:
                    return event
    finally:
        if isinstance(batches, AsyncGenerator):
            await batches.aclose()
    raise Unavailable(f"store {store.name} was closed", store=store.name)


def _check(txn: Txn, mark: str) -> None:
    if mark not in txn.put:
        raise Bug(f"{mark} tells nothing about a transaction that does not put it")
    if mark not in txn.unchanged:
        raise Bug(f"{mark} is not compared: a second copy of the transaction would be applied too")
    if txn.reads or txn.read_prefixes:
        raise Bug(
            "what a transaction read is lost with its answer: begin it anew instead of settling it (R11)"
        )
