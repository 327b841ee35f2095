"""How builds and servers end: cancelled, deleted, paid back, forgotten. Small worlds on a virtual clock."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fabric.model.instance import Over, Refund
from fabric.model.states import TaskState, Want
from fabric.scheduler.settings import SchedulerSettings
from fabric.store import codec, keys
from fabric.store.base import Txn
from tests.unit.scheduler.stage import WALL_MS, Stage, builds, host, play, small


def test_a_server_that_is_over_is_not_raised_by_a_late_build() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        over = Over(instance_id="i-0", over_time_ms=WALL_MS)
        refund = Refund(instance_id="i-0", project_id="p-1")
        await stage.put(stage.cells["east"], keys.OVER.at("i-0"), over)
        await stage.put(stage.cells["east"], keys.REFUND.at("i-0"), refund)
        await stage.accept(*builds(1))
        stage.schedule()
        await asyncio.sleep(5)

        assert await stage.instances() == {}
        assert await stage.locations() == {}
        assert await stage.builds() == {}
        assert (await stage.quota()).used.instances == 0

    play(world)


@pytest.mark.parametrize("seed", range(5))
def test_a_charge_is_given_back_once_by_however_many_schedulers(seed: int) -> None:
    async def world(stage: Stage) -> None:
        await stage.open()
        await stage.accept(*builds(70))
        one, two = stage.schedule("s1"), stage.schedule("s2")
        count = 0

        def loses(_: Txn) -> bool:
            nonlocal count
            count += 1
            return count % 4 == 0

        one.to_global.loses = two.to_cell["east"].loses = loses
        for number in range(40):
            key = keys.REFUND.at(f"i-{number}")
            refund = Refund(instance_id=f"i-{number}", project_id="p-1")
            await stage.cells["east"].commit(
                Txn(
                    put={
                        key: codec.encode(refund),
                        keys.OVER.at(f"i-{number}"): codec.encode(
                            Over(instance_id=f"i-{number}", over_time_ms=WALL_MS)
                        ),
                    }
                )
            )
        await asyncio.sleep(30)

        assert await stage.held(keys.REFUND) == set()
        assert (await stage.quota()).used.instances == len(await stage.locations()) == 30

    play(world, seed=seed)


@pytest.mark.parametrize(
    "failpoint", ["scheduler.claim.committed", "scheduler.cell.left", "scheduler.refund.given"]
)
def test_wherever_a_scheduler_dies_another_goes_on(failpoint: str) -> None:
    """One server to place here, one to send to the other cell, one whose charge is owed; the first scheduler stops at the failpoint."""

    async def world(stage: Stage) -> None:
        await stage.open(small("e1"), small("w1", "west"))
        await stage.accept(*builds(3))
        over, refund = (
            Over(instance_id="i-2", over_time_ms=WALL_MS),
            Refund(instance_id="i-2", project_id="p-1"),
        )
        await stage.put(stage.cells["east"], keys.OVER.at("i-2"), over)
        await stage.put(stage.cells["east"], keys.REFUND.at("i-2"), refund)
        reached = asyncio.Event()

        class Death:
            async def reach(self, name: str) -> None:
                if name == failpoint:
                    reached.set()
                    await asyncio.Event().wait()

        first = stage.schedule("s1", failpoints=Death())
        await reached.wait()
        first.task.cancel()
        stage.running.remove(first)
        stage.schedule("s2")
        await asyncio.sleep(20)

        assert await stage.builds() == {}
        assert len(await stage.instances()) == len(await stage.instances("west")) == 1
        assert len(await stage.locations()) == (await stage.quota()).used.instances == 2
        assert await stage.held(keys.REFUND) == set()

    play(world)


def test_what_is_over_is_forgotten_after_a_day_and_not_before() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        day_ms = 24 * 3600 * 1000
        for name, age_ms in (("old", day_ms + 1), ("young", day_ms // 2)):
            over = Over(instance_id=name, over_time_ms=WALL_MS - age_ms)
            await stage.put(stage.cells["east"], keys.OVER.at(name), over)
        stage.schedule(settings=SchedulerSettings(sweep_s=20))
        await asyncio.sleep(60)

        assert await stage.held(keys.OVER) == {"over/young"}

    play(world)


def test_nothing_is_forgotten_while_it_is_not_known_what_is_still_to_be_built() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        over = Over(instance_id="old", over_time_ms=WALL_MS - 2 * 24 * 3600 * 1000)
        await stage.put(stage.cells["east"], keys.OVER.at("old"), over)
        running = stage.schedule(settings=SchedulerSettings(sweep_s=20))
        await asyncio.sleep(5)
        running.to_global.away()
        await asyncio.sleep(60)

        assert await stage.held(keys.OVER) == {"over/old"}

        running.to_global.away(is_away=False)
        await asyncio.sleep(60)

        assert await stage.held(keys.OVER) == set()

    play(world)


def test_a_cancelled_build_is_never_placed_and_its_charge_comes_back() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        (wanted,) = builds(1)
        await stage.accept(replace(wanted, cancelled=True))
        stage.schedule()
        await asyncio.sleep(3)

        assert await stage.instances() == {}
        assert await stage.held(keys.OVER) == {"over/i-0"}
        assert await stage.held(keys.REFUND) == set()
        assert await stage.locations() == {}
        assert await stage.builds() == {}
        assert (await stage.quota()).used.instances == 0

    play(world)


def test_a_build_cancelled_after_its_claim_has_its_server_deleted() -> None:
    """The delete comes between the claim and the build's removal: the claim stands, so the host must be told. Nobody watches."""

    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        is_claimed, goes_on = asyncio.Event(), asyncio.Event()

        class Between:
            async def reach(self, name: str) -> None:
                if name == "scheduler.claim.committed":
                    is_claimed.set()
                    await goes_on.wait()

        running = stage.schedule(failpoints=Between())
        (wanted,) = builds(1)
        await stage.accept(wanted)
        await is_claimed.wait()
        running.to_global.stop_watches()
        await stage.put(stage.globe, keys.BUILD.at("east", "i-0"), replace(wanted, cancelled=True))
        goes_on.set()
        await asyncio.sleep(10)

        (instance,) = (await stage.instances()).values()
        (order,) = (await stage.cells["east"].list(keys.ASSIGNMENT.under())).entries.values()
        assert (instance.want, instance.task) == (Want.ABSENT, TaskState.DELETING)
        told = codec.decode(keys.ASSIGNMENT.record, order.value)
        assert (told.want, told.generation) == (Want.ABSENT, instance.generation)
        assert await stage.builds() == {}
        assert (await stage.quota()).used.instances == 1

    play(world)
