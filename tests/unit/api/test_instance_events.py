"""Actions as they are shown, and what people change of a server's record alone, through the handlers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fabric.errors import Conflict, InvalidRequest, NotFound, Unavailable, WrongState
from fabric.lifecycle.core import STATE_RESET, settle
from fabric.lifecycle.events import KEPT
from fabric.model.event import EventStep, Outcome, StepName
from fabric.model.identity import Principal
from fabric.model.instance import Instance
from fabric.model.session import HostState
from fabric.model.states import TaskState, VmState, Want
from fabric.pb.compute.v1 import instance_event_service_pb2 as pb
from fabric.pb.compute.v1 import instance_service_pb2 as instance_pb
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import ASSIGNMENT, BUILD, EVENT, INSTANCE, LOCATION, RENAMED
from tests.unit.api.test_instances import WHO, World, in_a_world
from tests.unit.lifecycle.records import said

ROOT = replace(WHO, system_admin=True)


async def _events(world: World, word: str, who: Principal = WHO) -> list[pb.InstanceEvent]:
    request = pb.ListInstanceEventsRequest(instance=word)
    return [*(await world.events.list_instance_events(request, who)).events]


async def _event(world: World, word: str, request_id: str, who: Principal = WHO) -> pb.InstanceEvent:
    request = pb.GetInstanceEventRequest(instance=word, request_id=request_id)
    return (await world.events.get_instance_event(request, who)).event


async def _act(
    world: World, method: str, word: str, who: Principal = WHO, **fields: Any
) -> instance_pb.Instance:
    kind = getattr(instance_pb, "".join(part.title() for part in method.split("_")) + "Request")
    request = kind(**{"request_id": world.rid(), "instance": word, **fields})
    answer = await getattr(world.handlers, method)(request, who)
    return answer.instance if hasattr(answer, "instance") else instance_pb.Instance()


async def _record(world: World, server: str) -> Instance:
    found: Instance = await world.read(world.cells["c1"], INSTANCE, server)
    return found


async def _host_says(world: World, server: str, state: HostState, **facts: Any) -> None:
    now = await _record(world, server)
    after = settle(now, said(now, state, **facts), now_ms=now.update_time_ms + 1000, op_id="op")
    assert isinstance(after, Instance)
    await world.cells["c1"].commit(Txn(put={INSTANCE.at(server): encode(after)}))


# ------------------------------------------------------------------------------------------ events


@in_a_world
async def test_an_action_is_shown_with_who_asked_and_its_steps(world: World) -> None:
    server = await world.placed()
    await world.stop(server, "my-request")
    step = EventStep(name=StepName.PRESS_POWER, host="h1", start_ms=1, finish_ms=2)
    await _host_says(world, server, HostState.STOPPED, steps=(step,))

    listed = await _events(world, "web")
    shown = await _event(world, "web", "my-request")

    assert [(each.action, each.result, each.user_id, len(each.steps)) for each in listed] == [
        ("stop", "done", "u", 0)
    ]
    assert [(each.name, each.result, each.host) for each in shown.steps] == [("press_power", "done", "")]
    assert (await _event(world, server, "my-request", ROOT)).steps[0].host == "h1"


@in_a_world
async def test_a_failed_step_says_why_in_our_words(world: World) -> None:
    server = await world.placed()
    await world.stop(server, "r")
    step = EventStep(name=StepName.CUT_POWER, host="h1", start_ms=1, finish_ms=2, fault_code="DISK_FULL")
    await _host_says(world, server, HostState.ERROR, steps=(step,))

    shown = await _event(world, server, "r")

    assert (shown.result, shown.fault_code) == ("failed", "DISK_FULL")
    assert (shown.steps[0].result, shown.steps[0].details) == ("failed", "the host's disk is full")


@in_a_world
async def test_an_action_takes_no_transaction_more_for_being_written_down(world: World) -> None:
    server = await world.placed()
    before = world.cells["c1"].revision

    await world.stop(server)
    await _host_says(world, server, HostState.STOPPED)
    await _act(world, "start_instance", server)

    assert world.cells["c1"].revision == before + 3
    assert [each.action for each in await _events(world, server)] == ["start", "stop"]


@in_a_world
async def test_the_last_actions_are_kept_and_the_oldest_make_room(world: World) -> None:
    server = await world.placed()
    for number in range(KEPT + 5):
        await _act(world, "lock_instance", server, reason=str(number))

    events = await _events(world, server)
    keys = await world.cells["c1"].list(EVENT.under(server))

    assert (len(events), len(keys.entries)) == (KEPT + 1, KEPT)
    assert len({each.request_id for each in events}) == KEPT + 1


@in_a_world
async def test_actions_on_a_server_that_is_gone_are_shown_to_its_project(world: World) -> None:
    server = await world.placed()
    await world.stop(server, "r1")
    record = await _record(world, server)
    assert record.event is not None
    kept = replace(record.event, outcome=Outcome.SUPERSEDED)
    await world.cells["c1"].commit(
        Txn(put={EVENT.at(server, "1"): encode(kept)}, delete=(INSTANCE.at(server),))
    )
    await world.store.commit(Txn(delete=(LOCATION.at(server),)))
    await asyncio.sleep(0.1)

    assert [each.action for each in await _events(world, server)] == ["stop"]
    with pytest.raises(NotFound):
        await _events(world, server, replace(WHO, project_id="q"))
    with pytest.raises(NotFound):
        await _events(world, "web")


@in_a_world
async def test_a_cell_that_may_know_and_does_not_answer_is_named(world: World) -> None:
    world.cells["c2"].is_silent = True

    with pytest.raises(Unavailable) as away:
        await _events(world, "00000000-0000-4000-8000-000000000001")

    assert "c2" in away.value.message


@in_a_world
async def test_a_create_that_nobody_has_placed_is_an_action_too(world: World) -> None:
    made = await world.create(request_id="mine")

    events = await _events(world, made.id)

    assert [(each.action, each.request_id, each.result) for each in events] == [("create", "mine", "running")]


@in_a_world
async def test_an_action_that_never_was_is_not_found(world: World) -> None:
    server = await world.placed()

    with pytest.raises(NotFound):
        await _event(world, server, "never")


# ------------------------------------------------------------------------------------------ edits


@in_a_world
async def test_a_new_name_is_the_records_at_once_and_the_indexs_to_do(world: World) -> None:
    server = await world.placed()

    renamed = await _act(world, "rename_instance", server, name="db")

    record = await _record(world, server)
    assert (renamed.name, record.request.guest.name, record.request.guest.hostname) == ("db", "db", "web")
    assert await world.read(world.cells["c1"], RENAMED, server) is not None
    assert (await world.read(world.cells["c1"], ASSIGNMENT, "h1", server)).guest.name == "db"


@in_a_world
async def test_metadata_and_tags_are_set_and_taken_away_and_the_rest_stays(world: World) -> None:
    server = await world.placed()
    await _act(world, "set_instance_metadata", server, set={"a": "1", "b": "2"}, add_tags=["red", "blue"])

    now = await _act(
        world, "set_instance_metadata", server, set={"c": "3"}, unset=["a", "gone"], remove_tags=["red", "no"]
    )

    assert dict(now.spec.metadata) == {"b": "2", "c": "3"}
    assert list(now.tags) == ["blue"]


@in_a_world
async def test_a_guest_hears_of_its_metadata_and_not_of_its_tags(world: World) -> None:
    server = await world.placed()

    tagged = await _act(world, "set_instance_metadata", server, add_tags=["red"])
    described = await _act(world, "set_instance_metadata", server, set={"a": "1"})

    assert (tagged.status.generation, described.status.generation) == (1, 2)
    assert (await world.read(world.cells["c1"], ASSIGNMENT, "h1", server)).generation == 2


@in_a_world
async def test_what_is_too_much_or_no_tag_is_refused_with_its_field(world: World) -> None:
    server = await world.placed()
    await _act(world, "set_instance_metadata", server, set={str(number): "x" for number in range(128)})

    for fields, field in (
        ({"set": {"one more": "x"}}, "set"),
        ({"set": {"": "x"}}, "set"),
        ({"add_tags": ["a/b"]}, "add_tags"),
        ({"add_tags": ["a,b"]}, "add_tags"),
        ({"add_tags": ["x" * 61]}, "add_tags"),
        ({"add_tags": [""]}, "add_tags"),
        ({"add_tags": [str(number) for number in range(51)]}, "add_tags"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            await _act(world, "set_instance_metadata", server, **fields)
        assert refused.value.field == field


@in_a_world
async def test_an_etag_that_is_not_the_records_any_more_changes_nothing(world: World) -> None:
    server = await world.placed()
    etag = (await world.get(server)).etag
    await _act(world, "rename_instance", server, name="one", etag=etag)

    with pytest.raises(Conflict):
        await _act(world, "rename_instance", server, name="two", etag=etag)

    assert (await world.get(server)).name == "one"


@in_a_world
async def test_a_locked_server_says_who_may_change_it_and_why_not(world: World) -> None:
    server = await world.placed()
    locked = await _act(world, "lock_instance", server, reason="billing")

    with pytest.raises(WrongState) as refused:
        await world.stop(server)

    assert (locked.locked, locked.locked_reason, locked.locked_by_admin) == (True, "billing", False)
    assert "locked: billing" in refused.value.message
    assert "unlock" in refused.value.message
    assert not (await _act(world, "unlock_instance", server)).locked
    await world.stop(server)


@in_a_world
async def test_an_administrators_lock_is_no_members_to_undo(world: World) -> None:
    server = await world.placed()
    await _act(world, "lock_instance", server, ROOT, reason="abuse")

    again = await _act(world, "lock_instance", server, reason="mine")
    with pytest.raises(WrongState) as refused:
        await _act(world, "unlock_instance", server)

    assert (again.locked_by_admin, again.locked_reason) == (True, "abuse")
    assert "an administrator has locked the server: abuse" in refused.value.message
    assert not (await _act(world, "unlock_instance", server, ROOT)).locked


@in_a_world
async def test_a_server_said_to_be_in_error_stays_so_until_an_action_ends_it(world: World) -> None:
    server = await world.placed()
    shown = await _act(world, "reset_instance_state", server, ROOT, state=instance_pb.RESET_TO_ERROR)
    await _host_says(world, server, HostState.ACTIVE)

    record = await _record(world, server)

    assert (shown.status.state, shown.status.fault.code) == ("ERROR", STATE_RESET)
    assert (record.vm_state, record.want) == (VmState.ERROR, Want.RUN)
    await _act(world, "reboot_instance", server, kind=instance_pb.REBOOT_KIND_HARD)


@in_a_world
async def test_a_server_said_to_be_active_is_wanted_to_run(world: World) -> None:
    server = await world.placed()
    await world.stop(server)

    await _act(world, "reset_instance_state", server, ROOT, state=instance_pb.RESET_TO_ACTIVE)

    record, order = (
        await _record(world, server),
        await world.read(world.cells["c1"], ASSIGNMENT, "h1", server),
    )
    assert (record.vm_state, record.task, record.want) == (VmState.ACTIVE, TaskState.NONE, Want.RUN)
    assert (order.want, order.generation) == (Want.RUN, record.generation)


# ------------------------------------------------------------------------------------------ soft delete


class Keeping(World):
    """A fabric that keeps deleted servers for a while."""

    reclaim_s = 3600.0


def in_a_keeping_world(claim: Any) -> Any:
    return in_a_world(claim, kind=Keeping)


@in_a_keeping_world
async def test_a_deleted_server_is_kept_off_and_can_be_restored(world: World) -> None:
    server = await world.placed()
    await world.delete(server)
    deleting = await _record(world, server)
    await _host_says(world, server, HostState.STOPPED)

    await world.delete(server)
    kept = await _record(world, server)
    await _act(world, "restore_instance", server)

    assert (deleting.task, deleting.want) == (TaskState.SOFT_DELETING, Want.STOP)
    assert (kept.vm_state, kept.task) == (VmState.SOFT_DELETED, TaskState.NONE)
    assert kept.purge_time_ms == deleting.task_start_ms + 3_600_000
    assert (await _record(world, server)).task is TaskState.RESTORING
    assert await world.used() == 1


@in_a_keeping_world
async def test_a_delete_by_force_does_not_wait(world: World) -> None:
    server = await world.placed()

    await _act(world, "delete_instance", server, force=True)

    after = await _record(world, server)
    assert (after.want, after.purge_time_ms) == (Want.ABSENT, 0)


@in_a_keeping_world
async def test_until_when_a_deleted_server_can_be_restored_is_shown(world: World) -> None:
    server = await world.placed()
    before = await world.get(server)

    await world.delete(server)

    assert not before.status.HasField("purge_time")
    kept = await _record(world, server)
    assert (await world.get(server)).status.purge_time.ToMilliseconds() == kept.purge_time_ms


@in_a_keeping_world
async def test_what_has_nothing_to_keep_is_deleted_at_once(world: World) -> None:
    made = await world.create()

    await world.delete(made.id)

    assert (await world.read(world.store, BUILD, "c1", made.id)).cancelled
