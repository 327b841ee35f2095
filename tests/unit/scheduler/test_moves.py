"""Servers that want another host, and what moves leave to be tidied up: whole schedulers on a virtual clock."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fabric.model.host import Resources
from fabric.model.image import Image, ImageFormat, ImageState
from fabric.model.instance import Discard, Instance, MoveWanted, Recharge
from fabric.model.quota import Charge, Quota
from fabric.model.states import TaskState, VmState, Want
from fabric.store import codec, keys
from fabric.store.base import Txn
from tests.unit.scheduler.stage import LIMIT, WALL_MS, Stage, builds, host, play
from tests.unit.scheduler.worlds import SMALL, request

LARGE = Resources(vcpus=2, ram_mib=1024, disk_gib=2)
CARRIER = "carrier"


async def _server(stage: Stage, *hosts: str, image_id: str = CARRIER) -> Instance:
    """i-0, active on e1, asked to be larger; with the other hosts there are."""
    await stage.open(host("e1"), *(host(name) for name in hosts))
    await stage.accept(*builds(1))
    first = stage.schedule("first")
    await stage.placed()
    await asyncio.sleep(1)
    first.task.cancel()
    await asyncio.gather(first.task, return_exceptions=True)
    stage.running.remove(first)
    placed = (await stage.instances())["i-0"]
    asked = replace(
        placed,
        vm_state=VmState.ACTIVE,
        task=TaskState.RESIZE_PREP,
        task_deadline_ms=WALL_MS + 3_600_000,
        generation=2,
    )
    work = MoveWanted(
        instance_id="i-0",
        request=request(LARGE, instance_id="i-0"),
        image_id=image_id,
        create_time_ms=WALL_MS,
    )
    await stage.cells["east"].commit(
        Txn(put={keys.INSTANCE.at("i-0"): codec.encode(asked), keys.MOVE.at("i-0"): codec.encode(work)})
    )
    return asked


@pytest.mark.parametrize("seed", range(4))
def test_a_move_is_claimed_and_charged_once_by_however_many_schedulers_whose_answers_are_lost(
    seed: int,
) -> None:
    async def world(stage: Stage) -> None:
        before = await _server(stage, "e2", "e3")
        one, two = stage.schedule("s1"), stage.schedule("s2")
        count = 0

        def loses(_: Txn) -> bool:
            nonlocal count
            count += 1
            return count % 2 == 0

        for running in (one, two):
            running.to_global.loses = running.to_cell["east"].loses = loses
        await asyncio.sleep(20)

        after = (await stage.instances())["i-0"]
        assert after.move is not None
        assert (after.host, after.task, after.want) == (before.host, TaskState.RESIZE_MIGRATING, Want.STOP)
        assert after.move.other.host in {"e1", "e2", "e3"} - {before.host}
        assert (after.move.other.placement_epoch, after.carrier_id) == (2, CARRIER)
        assert await stage.held(keys.MOVE) == set()
        assert (await stage.quota()).used == Charge(instances=1, vcpus=2, ram_mib=1024)
        image = codec.decode(
            Image, (await stage.globe.get(keys.IMAGE.at(CARRIER))).entries[keys.IMAGE.at(CARRIER)].value
        )
        assert (image.state, image.hidden) == (ImageState.QUEUED, True)

    play(world, seed=seed)


def test_the_new_host_is_told_to_have_nothing_yet() -> None:
    async def world(stage: Stage) -> None:
        await _server(stage, "e2")
        stage.schedule()
        await asyncio.sleep(3)
        after = (await stage.instances())["i-0"]
        assert after.move is not None
        key = keys.ASSIGNMENT.at(after.move.other.host, "i-0")
        order = codec.decode(keys.ASSIGNMENT.record, (await stage.cells["east"].get(key)).entries[key].value)

        assert (order.want, order.action.kind, order.placement_epoch) == (Want.STOP, 0, 2)
        assert order.action.seq == after.action.seq

    play(world)


def test_a_server_that_cannot_be_paid_for_stays_what_it_is() -> None:
    async def world(stage: Stage) -> None:
        await _server(stage, "e2")
        poor = Quota(
            project_id="p-1", limit=replace(LIMIT, vcpus=1), used=Charge(instances=1, vcpus=1, ram_mib=512)
        )
        await stage.put(stage.globe, keys.QUOTA.at("p-1"), poor)
        stage.schedule()
        await asyncio.sleep(3)

        after = (await stage.instances())["i-0"]
        assert (after.vm_state, after.task, after.move) == (VmState.ACTIVE, TaskState.NONE, None)
        assert after.fault is not None
        assert after.fault.code == "QUOTA_EXCEEDED"
        assert (await stage.quota()).used.vcpus == 1
        assert await stage.held(keys.MOVE) == set()

    play(world)


def test_a_server_without_another_host_stays_where_it_is_with_the_decision() -> None:
    async def world(stage: Stage) -> None:
        await _server(stage)
        stage.schedule()
        await asyncio.sleep(3)

        after = (await stage.instances())["i-0"]
        assert (after.host, after.task, after.generation) == ("e1", TaskState.NONE, 3)
        assert after.fault is not None
        assert after.fault.code == "NO_VALID_HOST"
        assert after.decision is not None
        assert "the one it is to leave" in after.decision.explain()

    play(world)


def test_work_of_a_server_that_is_gone_is_taken_away() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("e1"))
        work = MoveWanted(instance_id="i-9", request=request(LARGE, instance_id="i-9"), image_id=CARRIER)
        await stage.put(stage.cells["east"], keys.MOVE.at("i-9"), work)
        stage.schedule()
        await asyncio.sleep(3)

        assert await stage.held(keys.MOVE) == set()
        assert await stage.held(keys.DISCARD) == set()

    play(world)


def test_a_discarded_image_goes_with_its_name_and_no_other() -> None:
    async def world(stage: Stage) -> None:
        await stage.open()
        for image_id, name in (("im-1", "web-shelved"), ("im-2", "db-shelved")):
            image = Image(id=image_id, name=name, project_id="p-1", format=ImageFormat.QCOW2)
            await stage.put(stage.globe, keys.IMAGE.at(image_id), image)
            await stage.put(stage.globe, keys.IMAGE_NAME.at("p-1", name), image_id)
        discard = Discard(image_id="im-1", instance_id="i-0", project_id="p-1")
        await stage.put(stage.cells["east"], keys.DISCARD.at("im-1"), discard)
        stage.schedule("s1")
        stage.schedule("s2")
        await asyncio.sleep(5)

        left = {*(await stage.globe.list(keys.IMAGE.under())).entries}
        names = {*(await stage.globe.list("image-name/")).entries}
        assert (left, names) == ({keys.IMAGE.at("im-2")}, {keys.IMAGE_NAME.at("p-1", "db-shelved")})
        assert await stage.held(keys.DISCARD) == set()

    play(world)


@pytest.mark.parametrize(
    ("task", "is_charged_less"), [(TaskState.NONE, True), (TaskState.RESIZE_PREP, False)]
)
def test_a_charge_follows_a_server_only_while_no_move_of_it_is_under_way(
    task: TaskState, is_charged_less: bool
) -> None:
    async def world(stage: Stage) -> None:
        now = await _server(stage, image_id="")
        large = Charge(instances=1, vcpus=2, ram_mib=1024)
        (key, location), *_ = (await stage.locations()).items()
        await stage.put(stage.globe, key, replace(location, charge=large))
        await stage.put(stage.globe, keys.QUOTA.at("p-1"), Quota(project_id="p-1", limit=LIMIT, used=large))
        east = stage.cells["east"]
        await east.commit(
            Txn(
                put={
                    keys.INSTANCE.at("i-0"): codec.encode(replace(now, task=task)),
                    keys.RECHARGE.at("i-0"): codec.encode(Recharge(instance_id="i-0", project_id="p-1")),
                },
                delete=[keys.MOVE.at("i-0")],
            )
        )
        stage.schedule()
        await asyncio.sleep(4)

        small = Charge(instances=1, vcpus=SMALL.vcpus, ram_mib=SMALL.ram_mib)
        assert (await stage.quota()).used == (small if is_charged_less else large)
        assert await stage.held(keys.RECHARGE) == set()

    play(world)
