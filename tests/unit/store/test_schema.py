from __future__ import annotations

import pytest

from fabric.errors import Bug, Unavailable, WrongState
from fabric.store import schema
from fabric.store.base import Snapshot, Txn
from fabric.store.memory import MemoryStore
from fabric.store.schema import CHANGES, KEY, OLDEST, SCHEMA_VERSION, open_schema, opened, raise_schema
from tests.unit.store.virtual import run


def test_every_version_has_its_line_in_the_list_of_changes() -> None:
    assert list(CHANGES) == list(range(1, SCHEMA_VERSION + 1))
    assert 1 <= OLDEST <= SCHEMA_VERSION


def test_an_empty_store_is_put_at_the_newest_version_once() -> None:
    store = MemoryStore()

    assert run(open_schema(store)) == SCHEMA_VERSION
    assert run(open_schema(store)) == SCHEMA_VERSION
    assert [change.after for change in store.history] == [b"%d" % SCHEMA_VERSION]


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, OLDEST - 1])
def test_a_store_this_code_does_not_know_is_not_opened(version: int) -> None:
    store = MemoryStore()
    run(store.commit(Txn(put={KEY: b"%d" % version})))

    with pytest.raises(WrongState):
        run(open_schema(store))


def test_a_version_that_is_no_number_is_a_bug() -> None:
    store = MemoryStore()
    run(store.commit(Txn(put={KEY: b"one"})))

    with pytest.raises(Bug):
        run(open_schema(store))


def test_a_version_is_raised_but_never_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    run(open_schema(store))
    # Patched, because there is only one version yet.
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)

    run(raise_schema(store, SCHEMA_VERSION + 1))

    assert run(open_schema(store)) == SCHEMA_VERSION + 1
    for to in (SCHEMA_VERSION, SCHEMA_VERSION + 1, SCHEMA_VERSION + 2):
        with pytest.raises(WrongState):
            run(raise_schema(store, to))


def test_a_store_that_is_away_is_waited_for() -> None:
    class Away(MemoryStore):
        tries = 0

        async def get(self, *keys: str) -> Snapshot:
            self.tries += 1
            if self.tries < 5:
                raise Unavailable("away")
            return await super().get(*keys)

    assert run(opened(Away())) == SCHEMA_VERSION
