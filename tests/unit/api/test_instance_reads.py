from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, NoReturn
from unittest import mock

import pytest

from fabric.errors import InvalidRequest, TooMuch
from fabric.lifecycle.table import SHOWN
from fabric.model.host import Session, SessionState
from fabric.model.instance import Instance
from fabric.model.states import VmState
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import BUILD, INSTANCE, LOCATION, SESSION
from tests.unit.api.test_instances import WHO, World, in_a_world


@in_a_world
async def test_a_conductor_that_is_silent_hides_nothing_that_another_says(world: World) -> None:
    """They were asked one after the other within one short time, so the first that hung kept all others from being asked."""
    here, there = await world.placed("a"), await world.placed("b")
    record: Instance = await world.read(world.cells["c1"], INSTANCE, there)
    session = Session(host="h2", epoch=1, state=SessionState.UP, conductor="127.0.0.1:7621")
    await world.cells["c1"].commit(
        Txn(
            put={
                INSTANCE.at(there): encode(dataclasses.replace(record, host="h2")),
                SESSION.at("h2"): encode(session),
            },
            delete=(f"assignment/h1/{there}",),
        )
    )
    await world.stop(here)
    await world.stop(there)
    world.consoles.silent = frozenset({"127.0.0.1:7620"})

    listed = await world.handlers.list_instances(pb.ListInstancesRequest(), WHO)

    assert {each.name: each.status.progress for each in listed.instances} == {"a": "", "b": "image 40 %"}


@in_a_world
async def test_a_conductor_that_refuses_to_say_how_far_it_is_keeps_nobody_from_their_server(
    world: World,
) -> None:
    """Only silence was expected: a conductor with too much to do, whose answer is an error of ours, failed every show and every list."""
    server = await world.placed()
    await world.stop(server)
    world.consoles.failure = TooMuch("too much is being asked of this conductor")

    shown = await world.get(server)

    assert (shown.status.task_state, shown.status.progress) == ("powering_off", "")


@in_a_world
async def test_a_project_is_shown_its_servers_without_a_look_at_everybody_elses(world: World) -> None:
    """Every list and every look by name went through the servers of all projects: a project with one server paid for the largest."""
    server = await world.placed("a")

    def everybody(_: Any) -> NoReturn:
        raise AssertionError("everybody's servers were looked at")

    with mock.patch.object(type(world.catalogue.locations), "values", everybody):
        listed = await world.handlers.list_instances(pb.ListInstancesRequest(), WHO)
        shown = await world.handlers.get_instance(pb.GetInstanceRequest(instance="a"), WHO)

    assert [each.id for each in listed.instances] == [shown.instance.id] == [server]


async def listed(world: World) -> dict[str, str]:
    answer = await world.handlers.list_instances(pb.ListInstancesRequest(), WHO)
    return {each.name: each.status.state for each in answer.instances}


@in_a_world
async def test_a_server_is_listed_as_soon_as_it_is_accepted(world: World) -> None:
    """The index was brought up to now and what waits for a host was not: a list right after a create, through a server whose watch was
    late, did not have it.
    """
    world.store.lags_s = {BUILD.under(): 5.0}

    await world.create("a")

    assert await listed(world) == {"a": "BUILD"}


@in_a_world
async def test_a_server_is_listed_while_it_is_being_claimed(world: World) -> None:
    """It waits for a host when the list begins; when the slowest cell answers it has one, in a cell that was looked at already."""
    made = await world.create("a")
    build = await world.read(world.store, BUILD, "c1", made.id)
    row = await world.read(world.store, LOCATION, made.id)
    elsewhere = dataclasses.replace(row, instance_id="b", name="b", cell="c2")
    await world.store.commit(Txn(put={LOCATION.at("b"): encode(elsewhere)}))
    world.cells["c1"].lags_s = {INSTANCE.under(): 5.0}
    world.cells["c2"].is_silent = True

    listing = asyncio.create_task(listed(world))
    await asyncio.sleep(0.3)
    record = Instance(id=made.id, request=build.request, vm_state=VmState.ACTIVE, host="h1")
    await world.cells["c1"].commit(Txn(put={INSTANCE.at(made.id): encode(record)}))
    await world.store.commit(Txn(delete=(BUILD.at("c1", made.id),)))

    assert (await listing).get("a") == "BUILD"


@in_a_world
async def test_a_server_is_listed_while_it_moves_to_another_cell(world: World) -> None:
    made = await world.create("a")
    build = await world.read(world.store, BUILD, "c1", made.id)
    row = await world.read(world.store, LOCATION, made.id)
    world.store.lags_s = {LOCATION.under(): 5.0}
    there = dataclasses.replace(build, cell="c2", tried_cells=("c1",))
    await world.store.commit(
        Txn(
            put={
                BUILD.at("c2", made.id): encode(there),
                LOCATION.at(made.id): encode(dataclasses.replace(row, cell="c2")),
            },
            delete=(BUILD.at("c1", made.id),),
        )
    )
    await asyncio.sleep(0.1)

    assert await listed(world) == {"a": "BUILD"}


@in_a_world
async def test_a_state_that_nothing_can_be_in_is_refused_and_every_other_is_taken(world: World) -> None:
    """A misspelt state was answered by an empty list: nothing is in ERR, and nobody looks."""
    await world.placed("a")

    with pytest.raises(InvalidRequest, match="there is no state ERR; there are ACTIVE, BUILD"):
        await world.handlers.list_instances(pb.ListInstancesRequest(state="ERR"), WHO)

    listed = [await world.handlers.list_instances(pb.ListInstancesRequest(state=word), WHO) for word in SHOWN]
    assert sum(len(each.instances) for each in listed) == 1
