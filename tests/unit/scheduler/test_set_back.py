"""A store that is set back to a backup while schedulers run: they go on with what it says now."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fabric.model.host import Host
from fabric.store import keys
from fabric.store.base import Entry, Txn
from fabric.store.memory import MemoryStore
from tests.unit.scheduler.stage import WALL_MS, Running, Stage, build, builds, host, play
from tests.unit.scheduler.worlds import BIG

REREAD_S = 70.0
"""After so long every picture has been listed again."""


async def go_on(store: MemoryStore) -> None:
    """Use up some revisions."""
    for number in range(20):
        await store.commit(Txn(put={"something else": b"%d" % number}))


async def backup_of(store: MemoryStore) -> list[Entry]:
    return list((await store.list("")).entries.values())


async def restored(name: str, backup: list[Entry]) -> MemoryStore:
    """A store with what the backup has, at revisions that begin anew."""
    store = MemoryStore(name)
    for entry in backup:
        await store.commit(Txn(put={entry.key: entry.value}))
    return store


def turn_cell(stage: Stage, running: Running, store: MemoryStore) -> None:
    stage.cells["east"] = running.to_cell["east"]._memory = store


def test_servers_are_placed_in_a_cell_that_was_set_back() -> None:
    """What is known of hosts is ordered by revisions, and those of a restored store are lower: everything it said was taken for old news.
    Claims compared revisions that nothing had any more, until the scheduler was started anew.
    """

    async def world(stage: Stage) -> None:
        await go_on(stage.cells["east"])
        await stage.open(host("e1"))
        running = stage.schedule()
        await asyncio.sleep(2)
        backup = await backup_of(stage.cells["east"])
        await stage.accept(*builds(3))
        await asyncio.sleep(5)
        turn_cell(stage, running, await restored("east", backup))
        await asyncio.sleep(REREAD_S)

        await stage.accept(build("late", cell="east", create_time_ms=WALL_MS))
        await asyncio.sleep(30)

        assert {each.id: each.host for each in (await stage.instances()).values()} == {"late": "e1"}

    play(world)


def test_a_host_that_was_approved_after_the_backup_and_again_is_known() -> None:
    async def world(stage: Stage) -> None:
        await stage.open()
        running = stage.schedule()
        await asyncio.sleep(2)
        backup = await backup_of(stage.cells["east"])
        for number in range(20):
            await stage.put(stage.cells["east"], keys.HOST.at("e1"), _e1(number))
        await asyncio.sleep(2)
        turn_cell(stage, running, await restored("east", backup))
        await asyncio.sleep(REREAD_S)

        await stage.open(_e1(100))
        await stage.accept(build("late", cell="east", create_time_ms=WALL_MS))
        await asyncio.sleep(30)

        assert {each.id: each.host for each in (await stage.instances()).values()} == {"late": "e1"}

    play(world)


def test_builds_in_a_global_store_that_was_set_back_are_taken_away_when_they_are_placed() -> None:
    async def world(stage: Stage) -> None:
        running = stage.schedule()
        await stage.open(host("e1"))
        await asyncio.sleep(2)
        await go_on(stage.globe)
        running.to_cell["east"].away()
        await asyncio.sleep(10)
        await stage.accept(*builds(1))
        await asyncio.sleep(10)
        backup = await backup_of(stage.globe)
        stage.globe = running.to_global._memory = await restored("global", backup)
        await asyncio.sleep(REREAD_S)
        running.to_cell["east"].away(False)
        await asyncio.sleep(30)

        assert {each.id: each.host for each in (await stage.instances()).values()} == {"i-0": "e1"}
        assert await stage.builds() == {}

    play(world)


def _e1(more_mib: int) -> Host:
    """The host, approved with other words each time."""
    return host("e1", capacity=replace(BIG, ram_mib=BIG.ram_mib + more_mib))
