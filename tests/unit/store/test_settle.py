from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fabric.errors import Ambiguous, Bug, Unavailable
from fabric.store.base import Committed, Refused, Snapshot, Txn
from fabric.store.memory import MemoryStore
from fabric.store.settle import commit_settled
from tests.unit.store.virtual import run

CLAIM = Txn(unchanged={"i/1": 0, "use/h": 0}, put={"i/1": b"op-1", "use/h": b"1"})


class LossyStore(MemoryStore):
    """Loses answers by script: each commit takes the next line, and after the last all is well."""

    def __init__(self, *script: Callable[[LossyStore, Txn], Awaitable[Committed | Refused]]) -> None:
        super().__init__()
        self.script = list(script)

    async def really_commit(self, txn: Txn) -> Committed | Refused:
        return await super().commit(txn)

    async def commit(self, txn: Txn) -> Committed | Refused:
        if self.script:
            return await self.script.pop(0)(self, txn)
        return await super().commit(txn)


async def applied_answer_lost(store: LossyStore, txn: Txn) -> Committed | Refused:
    await store.really_commit(txn)
    raise Ambiguous("lost")


async def never_arrived(_: LossyStore, __: Txn) -> Committed | Refused:
    raise Ambiguous("lost")


async def never_sent(_: LossyStore, __: Txn) -> Committed | Refused:
    raise Unavailable("nobody there")


async def applied_then_overwritten(store: LossyStore, txn: Txn) -> Committed | Refused:
    await store.really_commit(txn)
    await store.really_commit(Txn(put={"i/1": b"op-2 of somebody else"}))
    raise Ambiguous("lost")


async def somebody_else_first(store: LossyStore, _: Txn) -> Committed | Refused:
    await store.really_commit(Txn(put={"i/1": b"theirs"}))
    raise Ambiguous("lost")


async def arrives_late(store: LossyStore, txn: Txn) -> Committed | Refused:
    asyncio.get_running_loop().call_later(0.15, lambda: asyncio.ensure_future(store.really_commit(txn)))
    raise Ambiguous("lost")


def values(store: MemoryStore, key: str) -> list[bytes | None]:
    return [change.after for change in store.history if change.key == key]


@pytest.mark.parametrize(
    "script",
    [
        [applied_answer_lost],
        [never_arrived],
        [never_arrived, never_sent, never_arrived, applied_answer_lost],
        [applied_then_overwritten],
        [arrives_late],
        [arrives_late, never_arrived],
        [never_arrived, applied_then_overwritten],
    ],
    ids=lambda script: ",".join(step.__name__ for step in script),
)
def test_a_write_whose_answer_was_lost_is_done_exactly_once(script: list) -> None:
    store = LossyStore(*script)

    async def main() -> Committed | Refused:
        outcome = await commit_settled(store, CLAIM, mark="i/1")
        await asyncio.sleep(5)  # for what comes late
        return outcome

    outcome = run(main())

    first = next(change.revision for change in store.history if change.key == "i/1")
    assert outcome == Committed(first, outcome.read if isinstance(outcome, Committed) else Snapshot(0, {}))
    assert values(store, "use/h") == [b"1"]
    assert values(store, "i/1").count(b"op-1") == 1


def test_a_write_that_came_second_is_refused() -> None:
    store = LossyStore(somebody_else_first)

    outcome = run(commit_settled(store, CLAIM, mark="i/1"))

    assert isinstance(outcome, Refused)
    assert outcome.current.value("i/1") == b"theirs"
    assert values(store, "use/h") == []


def test_a_write_refused_for_another_key_is_refused() -> None:
    async def other_key_first(store: LossyStore, _: Txn) -> Committed | Refused:
        await store.really_commit(Txn(put={"use/h": b"9"}))
        raise Ambiguous("lost")

    store = LossyStore(other_key_first)

    assert isinstance(run(commit_settled(store, CLAIM, mark="i/1")), Refused)
    assert values(store, "i/1") == []


def test_a_write_over_something_is_told_from_a_later_write_by_somebody_else() -> None:
    async def overwrite(store: LossyStore, txn: Txn) -> Committed | Refused:
        await store.really_commit(txn)
        await store.really_commit(Txn(delete=["i/1"]))
        await store.really_commit(Txn(put={"i/1": b"reborn"}))
        raise Ambiguous("lost")

    store = LossyStore()

    async def main() -> tuple[int, Committed | Refused]:
        before = await store.really_commit(Txn(put={"i/1": b"op-0"}))
        assert isinstance(before, Committed)
        store.script.append(overwrite)
        txn = Txn(unchanged={"i/1": before.revision}, put={"i/1": b"op-1"})
        return before.revision, await commit_settled(store, txn, mark="i/1")

    before, outcome = run(main())

    assert isinstance(outcome, Committed)
    assert outcome.revision == before + 1


def test_what_cannot_be_found_out_stays_ambiguous() -> None:
    async def overwritten_and_compacted(store: LossyStore, txn: Txn) -> Committed | Refused:
        await applied_then_overwritten_once(store, txn)
        store.compact(store.revision)
        raise Ambiguous("lost")

    async def applied_then_overwritten_once(store: LossyStore, txn: Txn) -> None:
        await store.really_commit(txn)
        await store.really_commit(Txn(put={"i/1": b"theirs"}))

    with pytest.raises(Ambiguous):
        run(commit_settled(LossyStore(overwritten_and_compacted), CLAIM, mark="i/1"))
    with pytest.raises(Ambiguous):
        run(commit_settled(LossyStore(*[never_arrived] * 100), CLAIM, mark="i/1", patience_s=5))
    # Unavailable for ever after: nothing is known of the first copy, so it may not read as "nothing was done".
    with pytest.raises(Ambiguous):
        run(commit_settled(LossyStore(never_arrived, *[never_sent] * 100), CLAIM, mark="i/1", patience_s=5))


def test_a_write_that_was_never_sent_is_plainly_unavailable() -> None:
    with pytest.raises(Unavailable) as caught:
        run(commit_settled(LossyStore(never_sent), CLAIM, mark="i/1"))
    assert not isinstance(caught.value, Ambiguous)


@pytest.mark.parametrize(
    "txn",
    [
        Txn(unchanged={"i/1": 0}, put={"other": b""}),
        Txn(put={"i/1": b""}),
        Txn(unchanged={"i/1": 0}, put={"i/1": b""}, reads=["a"]),
        Txn(unchanged={"i/1": 0}, put={"i/1": b""}, read_prefixes=["a"]),
    ],
)
def test_what_cannot_be_settled_is_not_begun(txn: Txn) -> None:
    store = MemoryStore()

    with pytest.raises(Bug):
        run(commit_settled(store, txn, mark="i/1"))
    assert store.history == []
