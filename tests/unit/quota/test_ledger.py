from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import Bug, NotFound, QuotaExceeded
from fabric.ids import RandomIds
from fabric.model.quota import Charge, Quota
from fabric.quota.core import Admission, charge, refund
from fabric.quota.ledger import Ledger
from fabric.store.base import Committed, Refused, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import QUOTA
from fabric.store.memory import MemoryStore
from tests.unit.store.virtual import run

ONE = Charge(instances=1, vcpus=2, ram_mib=512)
AMOUNTS = st.builds(
    Charge, instances=st.integers(0, 50), vcpus=st.integers(0, 50), ram_mib=st.integers(0, 50)
)


@given(AMOUNTS, st.lists(AMOUNTS, max_size=8))
def test_what_is_charged_never_passes_a_limit_and_refunds_give_it_all_back(
    limit: Charge, asked: list[Charge]
) -> None:
    quota = empty = Quota(project_id="p", limit=limit)
    charged: list[Charge] = []
    for each in asked:
        try:
            quota = charge(quota, each, op_id="")
        except QuotaExceeded:
            continue
        charged.append(each)
        assert min(vars_of(limit - quota.used)) >= 0
    for each in charged:
        quota = refund(quota, each, op_id="")

    assert quota == empty


def vars_of(amounts: Charge) -> tuple[int, int, int]:
    return amounts.instances, amounts.vcpus, amounts.ram_mib


def test_a_refusal_names_the_resource_with_limit_used_and_asked() -> None:
    quota = Quota(project_id="p", limit=Charge(instances=9, vcpus=3, ram_mib=9999), used=ONE)

    with pytest.raises(QuotaExceeded) as refused:
        charge(quota, ONE, op_id="")

    assert refused.value.facts == {"resource": "vcpus", "limit": "3", "used": "2", "asked": "2"}


def test_giving_back_more_than_was_charged_is_a_bug() -> None:
    with pytest.raises(Bug):
        refund(Quota(project_id="p", limit=ONE), ONE, op_id="")


async def _store(instances: int) -> MemoryStore:
    store = MemoryStore("global")
    limit = Charge(instances=instances, vcpus=1000, ram_mib=1_000_000)
    await store.commit(Txn(put={QUOTA.at("p"): encode(Quota(project_id="p", limit=limit))}))
    return store


def _admission(name: str) -> Admission:
    return Admission(
        charge=ONE,
        mark=f"request/{name}",
        unchanged={f"request/{name}": 0},
        put={f"request/{name}": name},
    )


def _ledger(store: MemoryStore) -> Ledger:
    return Ledger(store, ids=RandomIds(), jitter=lambda: 0.0)


async def test_creates_that_come_together_share_a_transaction() -> None:
    store = await _store(100)
    before, ledger = store.revision, _ledger(store)

    outcomes = await asyncio.gather(*(ledger.admit("p", _admission(str(n))) for n in range(48)))

    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    assert store.revision - before == 2
    assert decode(Quota, (await store.get(QUOTA.at("p"))).value(QUOTA.at("p")) or b"").used.instances == 48


def test_nobody_waits_for_those_that_are_done() -> None:
    async def world() -> None:
        store = await _store(100)
        ledger = _ledger(store)

        for number in range(5):
            await ledger.admit("p", _admission(str(number)))

        assert asyncio.get_running_loop().time() == 0.0

    run(world())


async def test_the_last_places_go_to_exactly_as_many_as_there_are() -> None:
    store = await _store(5)
    ledgers = [_ledger(store), _ledger(store)]

    outcomes = await asyncio.gather(
        *(ledgers[n % 2].admit("p", _admission(str(n))) for n in range(20)), return_exceptions=True
    )

    assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 5
    assert sum(isinstance(outcome, QuotaExceeded) for outcome in outcomes) == 15


async def test_the_same_request_twice_at_once_is_charged_once() -> None:
    store = await _store(5)
    ledger = _ledger(store)

    outcomes = await asyncio.gather(*(ledger.admit("p", _admission("same")) for _ in range(3)))

    assert [type(outcome) for outcome in outcomes] == [Committed, Refused, Refused]
    assert decode(Quota, (await store.get(QUOTA.at("p"))).value(QUOTA.at("p")) or b"").used == ONE


async def test_a_caller_that_hangs_up_does_not_take_the_others_along() -> None:
    store = await _store(5)
    ledger = _ledger(store)
    first = asyncio.create_task(ledger.admit("p", _admission("first")))
    second = asyncio.create_task(ledger.admit("p", _admission("second")))
    await asyncio.sleep(0)

    first.cancel()

    assert isinstance(await second, Committed)


async def test_a_project_that_is_gone_is_not_found() -> None:
    with pytest.raises(NotFound):
        await _ledger(MemoryStore("global")).admit("p", _admission("x"))


async def test_two_who_want_the_same_thing_do_not_share_a_transaction() -> None:
    """Both found it free: whoever is written first has it, and the other is refused by what it compares."""
    store = await _store(5)
    ledger = _ledger(store)
    admissions = [
        replace(
            each, unchanged={**each.unchanged, "address/s/1": 0}, encoded={"address/s/1": each.mark.encode()}
        )
        for each in (_admission("one"), _admission("two"))
    ]

    outcomes = await asyncio.gather(*(ledger.admit("p", each) for each in admissions))

    assert [type(outcome) for outcome in outcomes] == [Committed, Refused]
    assert (await store.get("address/s/1")).value("address/s/1") == b"request/one"
    assert decode(Quota, (await store.get(QUOTA.at("p"))).value(QUOTA.at("p")) or b"").used == ONE


async def test_creates_that_hold_much_are_not_more_than_a_store_takes() -> None:
    store = await _store(100)
    before, ledger = store.revision, _ledger(store)
    admissions = [
        replace(each, unchanged={**each.unchanged, **{f"{each.mark}/{at}": 0 for at in range(40)}})
        for each in (_admission(str(number)) for number in range(6))
    ]

    await asyncio.gather(*(ledger.admit("p", each) for each in admissions))

    assert store.revision - before == 3
