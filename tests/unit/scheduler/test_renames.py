"""A new name reaches the index, the latest one however many were given at once; and what was done to a server goes with its traces."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fabric.lifecycle.events import accepted
from fabric.model.instance import Location, Over, Renamed
from fabric.model.quota import Charge
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.names import brought
from fabric.scheduler.core.picture import Seen
from fabric.scheduler.settings import SchedulerSettings
from fabric.store import codec, keys
from fabric.store.base import Txn
from tests.unit.scheduler.stage import WALL_MS, Stage, builds, host, play
from tests.unit.scheduler.test_saga import placed
from tests.unit.scheduler.worlds import build

ROW = Location(
    instance_id="i-1", project_id="p-1", user_id="u", name="old", cell="c", charge=Charge(instances=1)
)


def test_an_index_row_gets_the_records_name_and_is_compared() -> None:
    record = placed()[0]

    change = brought(Seen(ROW, 7, 7), record, op_id="op")

    row = change.put["location/i-1"]
    assert isinstance(row, Location)
    assert (row.name, row.cell, row.charge) == (record.request.guest.name, ROW.cell, ROW.charge)
    assert change.unchanged == {"location/i-1": 7}


def test_nothing_is_brought_to_a_row_that_has_it_or_of_a_server_that_is_gone() -> None:
    record = placed()[0]
    same = replace(ROW, name=record.request.guest.name)

    assert brought(Seen(same, 7, 7), record, op_id="op") == Change()
    assert brought(Seen(ROW, 7, 7), None, op_id="op") == Change()
    assert brought(Seen(None, 0, 9), record, op_id="op") == Change()


async def rename(stage: Stage, server: str, name: str) -> None:
    cell, key = stage.cells["east"], keys.INSTANCE.at(server)
    now = (await stage.instances())[server]
    named = replace(now, request=replace(now.request, guest=replace(now.request.guest, name=name)))
    await cell.commit(
        Txn(
            put={
                key: codec.encode(named),
                keys.RENAMED.at(server): codec.encode(Renamed(instance_id=server)),
            }
        )
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_latest_name_wins_whatever_schedulers_lose_and_repeat(seed: int) -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        await stage.accept(*builds(1))
        one, _ = stage.schedule("s1"), stage.schedule("s2")
        await stage.placed()
        (server,) = await stage.instances()
        count = 0

        def loses(_: Txn) -> bool:
            nonlocal count
            count += 1
            return count % 2 == 0

        one.to_global.loses = one.to_cell["east"].loses = loses
        for name in ("one", "two", "three"):
            await rename(stage, server, name)
            await asyncio.sleep(0.003 * seed)
        await asyncio.sleep(10)

        assert (await stage.locations())[keys.LOCATION.at(server)].name == "three"
        assert await stage.held(keys.RENAMED) == set()

    play(world, seed=seed)


def test_what_was_done_to_a_server_is_forgotten_with_the_server() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        cell = stage.cells["east"]
        for server, age_s in (("i-old", SchedulerSettings().over_ttl_s + 1), ("i-new", 5)):
            over = Over(instance_id=server, over_time_ms=WALL_MS - int(age_s * 1000))
            await stage.put(cell, keys.OVER.at(server), over)
            for slot in range(32):
                await stage.put(cell, keys.EVENT.at(server, str(slot)), accepted(build(server)))
        stage.schedule()
        await asyncio.sleep(3 * SchedulerSettings().sweep_s)

        assert {key.split("/")[1] for key in await stage.held(keys.EVENT)} == {"i-new"}
        assert await stage.held(keys.OVER) == {keys.OVER.at("i-new")}

    play(world)
