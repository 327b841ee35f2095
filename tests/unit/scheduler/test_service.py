"""The scheduler as it runs: every test is a small world on a virtual clock, whose books are checked at its end."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fabric.model.host import CellCapacity, Resources, Session, SessionState
from fabric.model.instance import Instance
from fabric.model.states import TaskState, VmState
from fabric.store import codec, keys
from fabric.store.base import Txn
from tests.unit.scheduler.stage import WALL_MS, Stage, build, builds, host, play, small
from tests.unit.scheduler.worlds import BIG


def test_a_build_becomes_an_order_for_a_host_and_is_taken_away() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("h1"), host("h2"))
        stage.schedule()
        await asyncio.sleep(2)
        await stage.accept(*builds(1))
        await asyncio.sleep(1)

        (instance,) = (await stage.instances()).values()
        assert (instance.vm_state, instance.task) == (VmState.BUILDING, TaskState.SPAWNING)
        assert instance.host in {"h1", "h2"}
        assert instance.alternates == tuple({"h1", "h2"} - {instance.host})
        assert await stage.held(keys.ASSIGNMENT) == {f"assignment/{instance.host}/i-0"}
        assert await stage.builds() == {}

    play(world)


def test_a_single_create_is_claimed_at_once() -> None:
    """Nothing polls between accepting and claiming: a watch event, a decision, a transaction."""

    async def world(stage: Stage) -> float:
        await stage.open(host("h1"))
        stage.schedule()
        await asyncio.sleep(3)
        began_s = asyncio.get_running_loop().time()
        await stage.accept(*builds(1))
        await stage.placed()
        return asyncio.get_running_loop().time() - began_s

    assert play(world) < 0.02


def test_what_has_queued_up_shares_transactions() -> None:
    async def world(stage: Stage) -> int:
        await stage.open(*(host(f"h{number}") for number in range(10)))
        await stage.accept(*builds(100))
        running = stage.schedule()
        await asyncio.sleep(3)
        assert len(await stage.instances()) == 100
        assert await stage.builds() == {}
        return running.to_cell["east"].commits

    # One opens the store's schema, five are claims of twenty.
    assert play(world) == 6


def test_builds_that_were_waiting_when_it_started_are_placed() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("h1"))
        await stage.accept(*builds(3))
        stage.schedule()
        await asyncio.sleep(2)

        assert len(await stage.instances()) == 3

    play(world)


@pytest.mark.parametrize("seed", range(10))
def test_two_schedulers_fill_the_last_slots_exactly(seed: int) -> None:
    """More builds than room, and two who place them: every slot is taken once, and the rest ends in ERROR."""

    async def world(stage: Stage) -> None:
        await stage.open(*(small(f"h{number}") for number in range(5)))
        stage.schedule("s1")
        stage.schedule("s2")
        await asyncio.sleep(2)
        await stage.accept(*builds(8))
        await asyncio.sleep(20)

        instances = (await stage.instances() | await stage.instances("west")).values()
        placed = [each for each in instances if each.host]
        failed = [each for each in instances if each.vm_state is VmState.ERROR]
        assert (len(placed), len(failed)) == (5, 3)
        assert len({each.host for each in placed}) == 5
        assert await stage.builds() == {}

    play(world, seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_two_schedulers_claim_every_build_once(seed: int) -> None:
    async def world(stage: Stage) -> None:
        await stage.open(*(host(f"h{number}") for number in range(4)))
        stage.schedule("s1")
        stage.schedule("s2")
        await asyncio.sleep(2)
        await stage.accept(*builds(60))
        await asyncio.sleep(20)

        instances = await stage.instances()
        assert len(instances) == 60
        assert sum(use.instances for use in (await stage.uses()).values()) == 60
        assert await stage.builds() == {}

    play(world, seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_claim_whose_answer_is_lost_is_made_once(seed: int) -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("h1"), host("h2"))
        running = stage.schedule()
        lost: list[Txn] = []

        def loses(txn: Txn) -> bool:
            if len(lost) < 6 and any(key.startswith("assignment/") for key in txn.put):
                lost.append(txn)
                return True
            return False

        running.to_cell["east"].loses = loses
        await asyncio.sleep(2)
        await stage.accept(*builds(50))
        await asyncio.sleep(10)

        assert lost
        assert len(await stage.instances()) == 50
        assert sum(use.instances for use in (await stage.uses()).values()) == 50
        assert await stage.builds() == {}

    play(world, seed=seed)


def test_no_room_anywhere_is_an_error_that_says_why() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(*(small(f"h{number}", room=2) for number in range(3)))
        stage.schedule()
        await asyncio.sleep(2)
        await stage.accept(build("i-0", BIG, create_time_ms=WALL_MS))
        await asyncio.sleep(2)

        (instance,) = (await stage.instances()).values()
        assert (instance.vm_state, instance.task, instance.host) == (VmState.ERROR, TaskState.NONE, "")
        assert instance.fault is not None
        assert instance.fault.code == "NO_VALID_HOST"
        assert instance.fault.message == "0 of 3 hosts fit: 3 short of memory"
        assert instance.decision is not None
        assert instance.decision.refusals[0].examples
        assert (
            instance.decision.suggestion
            == "a flavor with at most 2 vCPUs and 1024 MiB of memory and 2 GiB of disk would fit"
        )
        assert await stage.builds() == {}

    play(world)


def test_a_host_that_was_just_disabled_gets_nothing() -> None:
    """The scheduler has not heard of it yet: the claim compares the host's inventory, and loses."""

    async def world(stage: Stage) -> None:
        await stage.open(host("e1"), small("e2"))
        running = stage.schedule()
        await asyncio.sleep(3)
        running.to_cell["east"].stop_watches()
        await stage.put(stage.cells["east"], keys.HOST.at("e1"), host("e1", enabled=False))
        await stage.accept(*builds(1))
        await asyncio.sleep(2)

        (instance,) = (await stage.instances()).values()
        assert instance.host == "e2"

    play(world)


def test_a_host_without_a_session_gets_nothing() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        session = Session(host="e1", epoch=2, state=SessionState.UNREACHABLE)
        await stage.put(stage.cells["east"], keys.SESSION.at("e1"), session)
        stage.schedule()
        await asyncio.sleep(2)
        await stage.accept(*builds(1))
        await asyncio.sleep(2)

        (instance,) = (await stage.instances()).values()
        assert instance.fault is not None
        assert instance.fault.message == "0 of 1 hosts fit: 1 down or disabled"
        assert instance.decision is not None
        assert instance.decision.suggestion == "it would fit when 1 host is back"

    play(world)


def test_a_global_store_that_is_away_stops_nothing_for_good() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        running = stage.schedule()
        await asyncio.sleep(2)
        running.to_global.away()
        await stage.accept(*builds(3))
        await asyncio.sleep(60)
        running.to_global.away(False)
        await asyncio.sleep(10)

        assert len(await stage.instances()) == 3
        assert await stage.builds() == {}

    play(world)


def test_one_broken_record_holds_up_nobody_else() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        for key in (keys.INSTANCE.at("i-1"), keys.OVER.at("i-1")):
            await stage.cells["east"].commit(Txn(put={key: b"\xff no record"}))
        stage.schedule()
        await stage.accept(*(replace(each, cancelled=each.instance_id == "i-1") for each in builds(3)))
        await asyncio.sleep(5)

        orders = await stage.held(keys.ASSIGNMENT)
        assert orders == {"assignment/e1/i-0", "assignment/e1/i-2"}
        await stage.cells["east"].commit(Txn(delete=(keys.INSTANCE.at("i-1"), keys.OVER.at("i-1"))))

    play(world)


def test_a_store_of_a_schema_from_the_future_is_left_alone() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"), host("w1", cell="west"))
        await stage.cells["east"].commit(Txn(put={"schema": b"999"}))
        stage.schedule()
        await stage.accept(
            build("i-e", create_time_ms=WALL_MS), build("i-w", cell="west", create_time_ms=WALL_MS)
        )
        await asyncio.sleep(5)

        assert await stage.instances() == {}
        assert set(await stage.instances("west")) == {"i-w"}

    play(world)


def test_what_a_cell_can_take_is_published_when_it_changes() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(small("e1", room=3), small("e2", room=2), host("w1", cell="west"))
        stage.schedule("s1")
        stage.schedule("s2")
        await asyncio.sleep(10)
        before = (await stage.globe.get(keys.CAPACITY.at("east"))).entries[keys.CAPACITY.at("east")]
        await stage.accept(build("i-0", Resources(vcpus=3, ram_mib=512, disk_gib=1), create_time_ms=WALL_MS))
        await asyncio.sleep(10)
        after = (await stage.globe.get(keys.CAPACITY.at("east"))).entries[keys.CAPACITY.at("east")]
        await asyncio.sleep(60)
        later = (await stage.globe.get(keys.CAPACITY.at("east"))).entries[keys.CAPACITY.at("east")]

        first, second = (codec.decode(CellCapacity, entry.value) for entry in (before, after))
        assert (first.hosts, first.free.vcpus, first.largest.vcpus, first.zones) == (2, 5, 3, ("z1",))
        assert (second.free.vcpus, second.largest.vcpus) == (2, 2)
        assert later.mod_revision == after.mod_revision

    play(world)


def test_an_instance_record_is_what_the_conductor_expects() -> None:
    """Field by field as the create flow is written down: 600 s, attempt 1, epoch 1, two alternates at most."""

    async def world(stage: Stage) -> Instance:
        await stage.open(*(host(f"h{number}") for number in range(5)))
        stage.schedule()
        await asyncio.sleep(2)
        await stage.accept(*builds(1))
        await asyncio.sleep(1)
        return (await stage.instances())["i-0"]

    instance = play(world)

    assert len(instance.alternates) == 2
    assert instance.host not in instance.alternates
    assert (instance.attempt, instance.placement_epoch, instance.generation) == (1, 1, 1)
    assert instance.task_deadline_ms - instance.task_start_ms == 600_000
    assert instance.op_id.startswith("s1-")


def test_nobody_is_given_up_for_room_that_was_only_counted_on() -> None:
    """The first build of the batch turns out to be done with, so the host that it was to have is free for the second."""

    async def world(stage: Stage) -> None:
        await stage.open(small("e1"))
        first, second = builds(2)
        done = Instance(id="i-0", request=first.request, vm_state=VmState.ERROR)
        await stage.put(stage.cells["east"], keys.INSTANCE.at("i-0"), done)
        await stage.accept(first, second)
        stage.schedule()
        await asyncio.sleep(5)

        assert (await stage.instances())["i-1"].host == "e1"
        assert await stage.builds() == {}

    play(world)
