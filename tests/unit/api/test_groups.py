"""Values by what they have in common: always what a look at all of them would find."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from fabric.api.groups import Groups
from fabric.api.shelf import Shelf
from fabric.model.instance import Location
from fabric.model.quota import Charge
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import LOCATION
from fabric.store.memory import MemoryStore
from tests.unit.store.virtual import LoopClock, run

PROJECTS = ("p-1", "p-2", "p-3")
WRITES = st.lists(
    st.tuples(st.sampled_from(("i-1", "i-2", "i-3", "i-4")), st.sampled_from((*PROJECTS, ""))), max_size=12
)


@given(before=WRITES, after=WRITES)
def test_a_group_is_what_a_look_at_everything_finds(
    before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    """Whatever comes, goes, or changes its group, in the list that a picture begins with or in what it is told later."""

    async def world() -> None:
        store = MemoryStore("global")
        shelf = Shelf(store, LOCATION.under(), Location, clock=LoopClock())
        groups = Groups(shelf, lambda each: each.project_id)
        await _write(store, before)
        running = asyncio.create_task(shelf.run())
        for writes in ([], after):
            await _write(store, writes)
            await shelf.catch_up()
            for project_id in PROJECTS:
                wanted = [each for each in shelf.values() if each.project_id == project_id]
                assert sorted(groups.of(project_id), key=_id) == sorted(wanted, key=_id)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()

    run(world())


async def _write(store: MemoryStore, writes: list[tuple[str, str]]) -> None:
    """Each a server and its project; no project: it goes."""
    for instance_id, project_id in writes:
        key = LOCATION.at(instance_id)
        if project_id:
            location = Location(
                instance_id=instance_id,
                user_id="u-1",
                name="web",
                project_id=project_id,
                cell="c1",
                charge=Charge(),
                create_time_ms=1,
            )
            await store.commit(Txn(put={key: encode(location)}))
        else:
            await store.commit(Txn(delete=(key,)))


def _id(each: Location) -> str:
    return each.instance_id
