"""Every cell of action by state, through the handlers: what the table allows is begun, all else refused with the whole reason.

The rows are the table's and the calls the service's own: an action that gets a method is here without being named. Only what its request
needs beside the server is in `FIELDS`. That what is begun also comes about is `tests/sim/test_matrix.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from fabric.errors import FabricError, WrongState
from fabric.lifecycle.core import allowed_actions
from fabric.lifecycle.table import BY_ACTION, RULES, shown
from fabric.model.flavor import Flavor
from fabric.model.identity import Principal
from fabric.model.instance import Instance, Move, Place
from fabric.model.states import Action, TaskState, VmState, Want
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.rpc.method import Method, methods
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import ASSIGNMENT, EVENT, FLAVOR, INSTANCE
from tests.unit.api.test_instances import WHO, World, in_a_world

ROOT = replace(WHO, system_admin=True)

FIELDS: dict[str, dict[str, Any]] = {
    Action.REBOOT_SOFT: {"kind": pb.REBOOT_KIND_SOFT},
    Action.REBOOT_HARD: {"kind": pb.REBOOT_KIND_HARD},
    Action.RENAME: {"name": "other"},
    Action.SET_METADATA: {"set": {"key": "value"}},
    Action.RESET_STATE: {"state": pb.RESET_TO_ERROR},
    Action.RESIZE: {"flavor": "m2"},
    Action.CREATE_IMAGE: {"name": "copy"},
    Action.CREATE_BACKUP: {"name": "backup", "backup_type": "daily", "rotation": 1},
    Action.REBUILD: {"image": "linux"},
}
"""What the requests of some actions need beside the server."""

OF_ITS_OWN: dict[str, tuple[Action, ...]] = {
    "DeleteInstance": (Action.DELETE,),
    "RebootInstance": (Action.REBOOT_SOFT, Action.REBOOT_HARD),
}
"""Methods that are not one row of the table, and which rows they are."""

ELSEWHERE = {
    # The method that makes a server; what a delete becomes where servers are kept; and what is asked of the guest's agent or written by
    # a service of its own, each with a test of its own.
    Action.CREATE,
    Action.SOFT_DELETE,
    Action.CHANGE_PASSWORD,
    Action.ATTACH_INTERFACE,
    Action.DETACH_INTERFACE,
    Action.ATTACH_VOLUME,
    Action.DETACH_VOLUME,
}

STATES = sorted(frozenset(VmState) - {VmState.UNSPECIFIED, VmState.DELETED})
WANTS = {
    VmState.STOPPED: Want.STOP,
    VmState.PAUSED: Want.PAUSE,
    VmState.SUSPENDED: Want.SUSPEND,
    VmState.SOFT_DELETED: Want.STOP,
    VmState.SHELVED: Want.STOP,
    VmState.SHELVED_OFFLOADED: Want.STOP,
}


def served() -> Iterator[tuple[Action, Method]]:
    for method in methods(pb.DESCRIPTOR.services_by_name["InstanceService"]):
        for action in (Action(method.action),) if method.action else OF_ITS_OWN.get(method.name, ()):
            if action not in ELSEWHERE:
                yield action, method


SERVED = dict(served())


def test_every_row_of_the_table_is_served_or_tested_elsewhere() -> None:
    assert set(SERVED) | ELSEWHERE == {rule.action for rule in RULES}
    assert not set(SERVED) & ELSEWHERE


async def _put(world: World, server: str, like: Instance, state: VmState, task: TaskState) -> Instance:
    """The server as it would be in this state, with nothing left of what was asked before."""
    cell = world.cells["c1"]
    is_placed = state is not VmState.SHELVED_OFFLOADED
    elsewhere = Place(host="h2", placement_epoch=0, slot=1, request=like.request)
    record = replace(
        like,
        vm_state=state,
        task=task,
        want=WANTS.get(state, Want.RUN),
        host="h1" if is_placed else "",
        move=Move(other=elsewhere, want=Want.RUN, vm_state=VmState.ACTIVE, has_switched=True)
        if state is VmState.RESIZED
        else None,
        uploaded=like.request.guest.image if state in {VmState.SHELVED, VmState.SHELVED_OFFLOADED} else None,
    )
    kept = (await cell.list("")).entries
    passing = [
        key
        for key in kept
        if key.split("/")[0] in {"event", "acted", "renamed", "move", "discard", "recharge"}
    ]
    await cell.commit(Txn(put={INSTANCE.at(server): encode(record)}, delete=tuple(passing)))
    return record


async def _ask(world: World, action: Action, server: str, who: Principal = ROOT) -> FabricError | None:
    """How it was refused; None where it was accepted."""
    method = SERVED[action]
    request = method.request(**{"request_id": world.rid(), "instance": server, **FIELDS.get(action, {})})
    try:
        await getattr(world.handlers, method.attribute)(request, who)
    except FabricError as refused:
        return refused
    return None


def _may(action: Action, state: VmState, task: TaskState) -> bool:
    has_host = state is not VmState.SHELVED_OFFLOADED
    return action in allowed_actions(state, task) and (has_host or BY_ACTION[action].is_unplaced)


def _is_whole(refusal: FabricError | None, action: Action, state: VmState, task: TaskState) -> bool:
    """Whether it names the action, the state and what would be allowed."""
    if not isinstance(refusal, WrongState):
        return False
    names_state = (
        shown(state, TaskState.NONE) in refusal.message
        if state is not VmState.SHELVED_OFFLOADED
        else "no host" in refusal.message or shown(state, TaskState.NONE) in refusal.message
    )
    names_task = task is TaskState.NONE or task.name.lower() in refusal.message
    allowed = [each for each in allowed_actions(state, task) if _may(each, state, task)]
    says_what_may = "allowed now: " in refusal.message and all(
        each in refusal.message.partition("allowed now: ")[2] for each in allowed
    )
    facts = refusal.facts
    return (
        f"cannot {action}" in refusal.message
        and names_state
        and names_task
        and says_what_may
        and (facts["action"], facts["vm_state"], facts["task_state"])
        == (action, state.name.lower(), task.name.lower())
    )


async def _wrong(world: World, state: VmState, task: TaskState) -> list[str]:
    larger = Flavor(id="f2", name="m2", vcpus=2, ram_mib=1024, disk_gib=2)
    await world.store.commit(Txn(put={FLAVOR.at("f2"): encode(larger)}))
    server = await world.placed()
    like: Instance = await world.read(world.cells["c1"], INSTANCE, server)
    order = await world.read(world.cells["c1"], ASSIGNMENT, "h1", server)
    wrong: list[str] = []
    for action in SERVED:
        await _put(world, server, like, state, task)
        await world.cells["c1"].commit(Txn(put={ASSIGNMENT.at("h1", server): encode(order)}))
        refusal = await _ask(world, action, server)
        after: Instance | None = await world.read(world.cells["c1"], INSTANCE, server)
        if _may(action, state, task):
            event = None if after is None else after.event
            has_ended = after is None and bool((await world.cells["c1"].list(EVENT.under(server))).entries)
            if refusal is not None or not (has_ended or (event is not None and event.action == action)):
                wrong.append(f"{action} is allowed, and was not begun: {refusal and refusal.message}")
        elif action is Action.DELETE and task is TaskState.DELETING:
            if refusal is not None:
                wrong.append(f"a delete that was asked for again was refused: {refusal.message}")
        elif not _is_whole(refusal, action, state, task):
            wrong.append(f"{action} is not allowed; it was answered: {refusal and refusal.message}")
        if after is None:
            await world.cells["c1"].commit(Txn(delete=(f"over/{server}", f"refund/{server}")))
    return wrong


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name.lower())
def test_every_action_is_begun_or_refused_as_the_table_says(state: VmState) -> None:
    async def claim(world: World) -> None:
        assert await _wrong(world, state, TaskState.NONE) == []

    in_a_world(claim)()


@pytest.mark.parametrize(
    "task", sorted(frozenset(TaskState) - {TaskState.NONE}), ids=lambda task: task.name.lower()
)
def test_what_is_under_way_is_taken_over_by_what_may_or_named(task: TaskState) -> None:
    async def claim(world: World) -> None:
        assert await _wrong(world, VmState.ACTIVE, task) == []

    in_a_world(claim)()
