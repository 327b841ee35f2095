"""Servers between cells: full ones, closed ones, ones that are away. Small worlds on a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from fabric.model.host import Cell, Resources
from fabric.model.states import VmState
from fabric.scheduler.settings import SchedulerSettings
from fabric.store import keys
from fabric.store.base import Txn
from tests.unit.scheduler.stage import WALL_MS, Stage, build, builds, host, play, small


def test_a_full_cell_sends_servers_to_another() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(small("e1"), small("w1", "west", room=5))
        stage.schedule()
        await asyncio.sleep(2)
        await stage.accept(*builds(4))
        await asyncio.sleep(3)

        east, west = await stage.instances(), await stage.instances("west")
        assert (len(east), len(west)) == (1, 3)
        assert {each.host for each in west.values()} == {"w1"}
        locations = {each.instance_id: each.cell for each in (await stage.locations()).values()}
        assert locations == dict.fromkeys(east, "east") | dict.fromkeys(west, "west")
        assert await stage.held(keys.OVER) == {f"over/{instance}" for instance in west}
        assert await stage.builds() == {}

    play(world)


@pytest.mark.parametrize("seed", range(10))
def test_a_server_is_never_raised_in_two_cells(seed: int) -> None:
    """One scheduler claims the last slot while the other, seeing the cell full, sends the same build away."""

    async def world(stage: Stage) -> None:
        await stage.open(*(small(f"e{number}") for number in range(3)))
        for number in range(3):
            await stage.open(small(f"w{number}", "west"))
        one, two = stage.schedule("s1"), stage.schedule("s2")
        count = 0

        def loses(_: Txn) -> bool:
            nonlocal count
            count += 1
            return count % 3 == 0

        for store in (one.to_cell["east"], two.to_cell["west"], two.to_global):
            store.loses = loses
        await asyncio.sleep(2)
        await stage.accept(*builds(7))
        await asyncio.sleep(40)

        east, west = await stage.instances(), await stage.instances("west")
        assert not east.keys() & west.keys()
        assert len(east) + len(west) == 7
        assert len([each for each in (*east.values(), *west.values()) if each.host]) == 6
        assert await stage.builds() == {}
        cells = {each.instance_id: each.cell for each in (await stage.locations()).values()}
        assert cells == dict.fromkeys(east, "east") | dict.fromkeys(west, "west")

    play(world, seed=seed)


def test_a_cell_that_hangs_delays_no_other() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"), host("w1", cell="west"))
        running = stage.schedule()
        await asyncio.sleep(2)
        running.to_cell["west"].hang()
        await stage.accept(build("slow", cell="west", create_time_ms=WALL_MS))
        await asyncio.sleep(0.01)
        await stage.accept(*builds(5))
        await asyncio.sleep(0.1)
        assert len(await stage.instances()) == 5
        assert await stage.instances("west") == {}

        running.to_cell["west"].hang(False)
        await asyncio.sleep(10)
        assert set(await stage.instances("west")) == {"slow"}
        assert await stage.builds() == {}

    play(world)


def test_a_build_whose_cell_is_away_is_not_lost() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"), host("w1", cell="west"))
        running = stage.schedule()
        await asyncio.sleep(2)
        running.to_cell["east"].away()
        await asyncio.sleep(6)
        await stage.accept(*builds(1))
        await asyncio.sleep(300)
        assert set(await stage.builds()) == {"build/east/i-0"}
        assert await stage.instances("west") == {}

        running.to_cell["east"].away(False)
        await asyncio.sleep(10)
        assert (await stage.instances())["i-0"].host == "e1"

    play(world)


def test_a_build_that_nobody_could_place_for_ten_minutes_ends_in_error() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        running = stage.schedule()
        await asyncio.sleep(2)
        running.to_cell["east"].away()
        await asyncio.sleep(6)
        await stage.accept(*builds(1))
        await asyncio.sleep(700)
        running.to_cell["east"].away(False)
        await asyncio.sleep(10)

        (instance,) = (await stage.instances()).values()
        assert instance.vm_state is VmState.ERROR
        assert instance.fault is not None
        assert instance.fault.code == "BUILD_TIMEOUT"
        assert await stage.builds() == {}

    play(world)


def test_no_room_here_waits_a_little_for_a_cell_that_is_away() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(small("e1"), host("w1", cell="west"))
        running = stage.schedule()
        await asyncio.sleep(2)
        running.to_cell["west"].away()
        await asyncio.sleep(6)
        await stage.accept(*builds(2))
        await asyncio.sleep(3)
        assert len(await stage.builds()) == 1

        running.to_cell["west"].away(False)
        await asyncio.sleep(8)
        assert len(await stage.instances("west")) == 1

    play(world)


def test_a_cell_that_stays_away_is_not_waited_for_long() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(small("e1"), host("w1", cell="west"))
        running = stage.schedule()
        await asyncio.sleep(2)
        running.to_cell["west"].away()
        await asyncio.sleep(6)
        await stage.accept(*builds(2))
        await asyncio.sleep(20)

        (failed,) = [each for each in (await stage.instances()).values() if not each.host]
        assert failed.fault is not None
        assert (
            failed.fault.message == "0 of 2 hosts fit: 1 in a cell that cannot be reached, 1 short of memory"
        )

    play(world)


def test_a_closed_cell_takes_nothing() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"), host("w1", cell="west"))
        await stage.put(stage.globe, keys.CELL.at("east"), Cell(name="east", enabled=False))
        stage.schedule()
        await asyncio.sleep(2)
        await stage.accept(*builds(2))
        await asyncio.sleep(3)

        assert await stage.instances() == {}
        assert len(await stage.instances("west")) == 2

    play(world)


def test_a_cell_once_left_never_raises_the_server_however_late_the_claim() -> None:
    """The second scheduler has missed the move, and meanwhile the old cell has room again."""

    async def world(stage: Stage) -> None:
        await stage.open(small("e1"), small("w1", "west"))
        stage.schedule("s1")
        late = stage.schedule("s2", settings=SchedulerSettings(reread_s=1000))
        await asyncio.sleep(2)
        late.to_cell["east"].away()
        await asyncio.sleep(5)
        for each in builds(2):
            await stage.accept(each)
        await asyncio.sleep(0.006)
        late.to_global.stop_watches()
        await asyncio.sleep(2)
        (moved,) = await stage.instances("west")
        assert f"build/east/{moved}" not in await stage.builds()

        await stage.put(stage.cells["east"], keys.HOST.at("e1"), small("e1", room=5))
        late.to_cell["east"].away(False)
        await asyncio.sleep(10)

        assert late.to_cell["east"].commits > 1
        assert moved not in await stage.instances("east")

    play(world)


@pytest.mark.parametrize("seed", range(10))
def test_a_scheduler_that_slept_gives_nobody_up_on_what_it_knew_before(seed: int) -> None:
    """It waits with a server for a cell that is away, is stopped for 20 s, and meanwhile a host here has grown."""

    async def world(stage: Stage) -> None:
        await stage.open(small("e1"))
        await stage.cells["west"].commit(Txn(put={"schema": b"999"}))
        process = stage.sleeper()
        process.start()
        await asyncio.sleep(3)
        await stage.accept(build("i-0", Resources(vcpus=4, ram_mib=512, disk_gib=1), create_time_ms=WALL_MS))
        await asyncio.sleep(3)
        process.pause()
        await stage.put(stage.cells["east"], keys.HOST.at("e1"), small("e1", room=5))
        await asyncio.sleep(20)
        process.resume()
        await asyncio.sleep(10)

        assert (await stage.instances())["i-0"].host == "e1"
        assert process.main_task is not None
        process.main_task.cancel()
        await asyncio.gather(process.main_task, return_exceptions=True)

    play(world, seed=seed)
