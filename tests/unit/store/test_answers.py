from __future__ import annotations

import pytest

from fabric.model.instance import Answered
from fabric.store.answers import TOGETHER, forget_answers
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import ACTED, ANSWERED, Key
from fabric.store.memory import MemoryStore

OVER_MS = 1_000


async def _remember(store: MemoryStore, kind: Key[Answered], number: int) -> str:
    answered = Answered(
        request_id=str(number),
        project_id="p",
        method="M",
        body_sha256="",
        resource_id="1",
        expire_time_ms=OVER_MS,
    )
    key = kind.at("p", str(number))
    await store.commit(Txn(put={key: encode(answered)}))
    return key


@pytest.mark.parametrize("kind", [ANSWERED, ACTED])
async def test_answers_are_forgotten_when_their_time_is_over_and_not_before(kind: Key[Answered]) -> None:
    store = MemoryStore()
    key = await _remember(store, kind, 1)

    early = await forget_answers(store, kind, now_ms=OVER_MS - 1)
    assert key in (await store.get(key)).entries
    late = await forget_answers(store, kind, now_ms=OVER_MS)

    assert (early, late) == (0, 1)
    assert key not in (await store.get(key)).entries


async def test_more_than_a_transaction_takes_are_forgotten_in_several() -> None:
    store = MemoryStore()
    for number in range(2 * TOGETHER + 1):
        await _remember(store, ACTED, number)

    assert await forget_answers(store, ACTED, now_ms=OVER_MS) == 2 * TOGETHER + 1
    assert (await store.list(ACTED.under())).entries == {}


async def test_an_answer_that_does_not_parse_stays_and_lets_the_others_go() -> None:
    """It failed every sweep, so that no answer was ever forgotten any more: a store that only grows."""
    store = MemoryStore()
    broken = ACTED.at("p", "broken")
    await store.commit(Txn(put={broken: b"\xff"}))
    await _remember(store, ACTED, 1)

    assert await forget_answers(store, ACTED, now_ms=OVER_MS) == 1
    assert list((await store.list(ACTED.under())).entries) == [broken]
