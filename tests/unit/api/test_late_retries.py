"""Requests about servers that are sent again long after they were done, and requests about servers that have just ended."""

from __future__ import annotations

import asyncio

import pytest

from fabric.errors import NotFound
from fabric.model.instance import Over, Refund
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import ASSIGNMENT, BUILD, INSTANCE, LOCATION, OVER, REFUND
from tests.unit.api.test_instances import World, in_a_world


@in_a_world
async def test_a_late_retry_of_a_delete_is_answered_as_the_first(world: World) -> None:
    server = await world.placed()
    await world.delete(server, "same")
    cell = world.cells["c1"]
    await cell.commit(Txn(delete=(INSTANCE.at(server), ASSIGNMENT.at("h1", server))))
    await world.store.commit(Txn(delete=(LOCATION.at(server),)))
    await asyncio.sleep(0.1)

    await world.delete(server, "same")
    with pytest.raises(NotFound):
        await world.delete(server, "another")


@in_a_world
async def test_a_server_that_has_ended_is_gone_though_its_charge_is_still_to_be_given_back(
    world: World,
) -> None:
    """Its index row stays until then, which without a scheduler is for ever: whoever named it heard that many were changing it, its own
    delete sent again among them.
    """
    server = await world.placed()
    await world.delete(server, "same")
    over, refund = Over(instance_id=server, over_time_ms=1), Refund(instance_id=server, project_id="p")
    await world.cells["c1"].commit(
        Txn(
            put={OVER.at(server): encode(over), REFUND.at(server): encode(refund)},
            delete=(INSTANCE.at(server), ASSIGNMENT.at("h1", server)),
        )
    )

    await world.delete(server, "same")
    with pytest.raises(NotFound):
        await world.delete(server, "another")
    with pytest.raises(NotFound):
        await world.stop("web")


@in_a_world
async def test_a_retry_of_a_delete_is_answered_while_the_index_is_behind(world: World) -> None:
    server = await world.placed()
    await world.delete(server, "same")
    await world.cells["c1"].commit(Txn(delete=(INSTANCE.at(server), ASSIGNMENT.at("h1", server))))
    # In the picture still, and in the store no more.
    await world.store.commit(Txn(delete=(LOCATION.at(server),)))

    await world.delete(server, "same")


@in_a_world
async def test_a_create_sent_again_after_the_servers_end_says_that_it_is_deleted(world: World) -> None:
    made = await world.create(request_id="same")
    # As it is in the moment between the end and the watch that tells of it: in the picture still, in the store no more.
    await world.store.commit(Txn(delete=(LOCATION.at(made.id), BUILD.at("c1", made.id))))

    again = await world.create(request_id="same")

    assert (again.id, again.status.state) == (made.id, "DELETED")


@in_a_world
async def test_a_late_retry_by_name_leaves_a_new_server_of_that_name_alone(world: World) -> None:
    first = await world.create()
    await world.delete("web", "same")  # while it has no host: remembered in the global store
    await world.store.commit(Txn(delete=(LOCATION.at(first.id), BUILD.at("c1", first.id))))
    second = await world.placed()

    await world.delete("web", "same")

    assert (await world.get(second)).status.task_state == ""
