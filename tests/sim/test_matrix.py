"""Every cell of action by state that the table allows comes about: the whole fabric, on machines that do what they are told.

Each cell is a world of its own: a server is led into the state by actions, asked for one more, and must come to rest where its row says.
The cells are the table's, and an action is asked for by its own method: one that is added is tried here. What is refused is
`tests/unit/api/test_matrix.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Final

import pytest

from fabric.errors import NotFound
from fabric.lifecycle.core import allowed_actions
from fabric.lifecycle.table import BY_ACTION
from fabric.model.host import Resources
from fabric.model.identity import Principal
from fabric.model.quota import Charge
from fabric.model.states import Action, TaskState, VmState
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from hostd.driver.fake import Delays
from tests.history.invariants import Violation
from tests.sim.loop import SimLoop, graveyard
from tests.sim.run import unlogged
from tests.sim.world import Topology, World
from tests.unit.api import test_matrix as matrix

NEVER_S: Final = -1.0
ROOM: Final = Resources(vcpus=32, ram_mib=65536, disk_gib=200)
REST_S: Final = 300.0

FIELDS: Final[Mapping[str, Mapping[str, Any]]] = {
    **matrix.FIELDS,
    Action.RESIZE: {"flavor": "large"},
    Action.REBUILD: {"image": "tiny"},
}

LEADS_TO: Final[Mapping[Action, VmState]] = {
    # What these end in is not in their rows.
    Action.RESET_STATE: VmState.ERROR,
    Action.DELETE: VmState.SOFT_DELETED,
}
"""Where a request leads that is not the row's final state: as it is asked for here, where deleted servers are kept."""

STAYS: Final = frozenset({Action.CREATE_IMAGE, Action.CREATE_BACKUP, Action.REBUILD})


def _ways() -> dict[VmState, tuple[Action, ...]]:
    """The shortest way from a server that runs into each state, by what can be asked for."""
    ways: dict[VmState, tuple[Action, ...]] = {VmState.ACTIVE: ()}
    queue = [VmState.ACTIVE]
    while queue:
        state = queue.pop(0)
        for action in matrix.SERVED:
            onto = LEADS_TO.get(action, BY_ACTION[action].final)
            if onto is None or onto in ways or action not in allowed_actions(state, TaskState.NONE):
                continue
            ways[onto] = (*ways[state], action)
            queue.append(onto)
    return ways


WAYS: Final = _ways()


def _cells() -> Iterator[tuple[VmState, Action]]:
    for state in sorted(WAYS):
        for action in matrix.SERVED:
            if action in allowed_actions(state, TaskState.NONE):
                yield state, action


CELLS: Final = list(_cells())


def _ends_in(action: Action, state: VmState) -> frozenset[VmState | None]:
    """Where a server may come to rest. None: it is gone."""
    if action is Action.DELETE:
        return frozenset({None})
    rule = BY_ACTION[action]
    if rule.final is not None:
        return frozenset({rule.final})
    if action is Action.RESET_STATE:
        return frozenset({VmState.ERROR})
    if action in {Action.CONFIRM_RESIZE, Action.REVERT_RESIZE}:
        return frozenset({VmState.ACTIVE})
    if action is Action.REBUILD and state is VmState.ERROR:
        # What is wanted of it is what it then is.
        return frozenset({VmState.ACTIVE, VmState.STOPPED})
    return frozenset({state})


class Life:
    """One server's."""

    def __init__(self, loop: SimLoop, *, reclaim_s: float = 1e9) -> None:
        self.world = World(
            loop,
            0,
            Topology(
                hosts_per_cell=2,
                apis=1,
                schedulers=1,
                conductors_per_cell=1,
                projects=1,
                quota=Charge(instances=20, vcpus=40, ram_mib=65536),
                host_capacity=ROOM,
                shelve_offload_s=NEVER_S,
                reclaim_s=reclaim_s,
            ),
        )
        self.world.network.lose_answers = self.world.network.double_frames = 0.0
        self.world.set_delays(Delays())
        self._who: Principal = replace(self.world.principals()[0], system_admin=True)
        self._asked = 0

    async def begin(self) -> str:
        await self.world.furnish()
        self.world.populate()
        await asyncio.sleep(3.0)
        request = pb.CreateInstanceRequest(
            request_id="create", name="web", flavor="small", image="tiny", network="default"
        )
        made = await self.world.call("api0", "create_instance", request, self._who)
        self.world.checker.accepted.add(made.instance.id)
        return str(made.instance.id)

    async def ask(self, action: Action, server: str, *, for_good: bool = False) -> None:
        self._asked += 1
        method = matrix.SERVED[action]
        fields = {"request_id": f"{action}-{self._asked}", "instance": server, **FIELDS.get(action, {})}
        if action is Action.DELETE:
            fields["force"] = for_good
            if for_good:
                self.world.checker.deleted.add(server)
        await self.world.call("api0", method.attribute, method.request(**fields), self._who)

    async def state(self, server: str) -> tuple[VmState | None, str]:
        try:
            answer = await self.world.call(
                "api0", "get_instance", pb.GetInstanceRequest(instance=server), self._who
            )
        except NotFound:
            return None, ""
        status = answer.instance.status
        if status.state == "DELETED":
            return None, ""
        return VmState[status.vm_state.upper()], status.fault.code

    async def rest(self) -> None:
        """Until nothing is under way, nor anything left behind."""
        until_s = self.world.loop.time() + REST_S
        await asyncio.sleep(1.0)
        while (left := self.world.unsettled()) is not None:
            if self.world.violation is not None:
                raise self.world.violation
            assert self.world.loop.time() < until_s, left
            await asyncio.sleep(1.0)


async def _live(life: Life, state: VmState, action: Action) -> tuple[VmState | None, str]:
    server = await life.begin()
    await life.rest()
    for step in WAYS[state]:
        await life.ask(step, server)
        await life.rest()
    assert (await life.state(server))[0] is state
    await life.ask(action, server, for_good=True)
    await life.rest()
    return await life.state(server)


def test_every_state_that_is_in_the_table_can_be_reached() -> None:
    assert set(WAYS) == set(matrix.STATES) - {VmState.BUILDING}


@pytest.mark.parametrize(
    ("state", "action"), CELLS, ids=[f"{state.name.lower()}-{action}" for state, action in CELLS]
)
def test_what_is_allowed_comes_about(state: VmState, action: Action) -> None:
    ended, fault, violation = _story(state, action)

    assert violation is None
    assert ended in _ends_in(action, state)
    assert fault == ("STATE_RESET" if ended is VmState.ERROR else "")


def _story(state: VmState, action: Action) -> tuple[VmState | None, str, BaseException | None]:
    """How it ended, with which fault, and what may never happen, if it has."""
    with unlogged(), graveyard():
        return _told(state, action)


def _told(state: VmState, action: Action) -> tuple[VmState | None, str, BaseException | None]:
    loop = SimLoop(Random(0))
    life = Life(loop)
    try:
        return (*loop.run_world(_live(life, state, action)), life.world.violation)
    except Violation as broken:
        return None, "", broken


def test_a_deleted_server_is_kept_until_its_time_is_over_and_no_longer() -> None:
    with unlogged(), graveyard():
        told = _reclaimed()

    assert told == (VmState.SOFT_DELETED, None, None)


def _reclaimed() -> tuple[VmState | None, VmState | None, BaseException | None]:
    """What a deleted server is at first, and when its time is over; and what may never happen, if it has."""
    loop = SimLoop(Random(0))
    life = Life(loop, reclaim_s=60.0)
    return (*loop.run_world(_wait_for_the_end(life)), life.world.violation)


async def _wait_for_the_end(life: Life) -> tuple[VmState | None, VmState | None]:
    server = await life.begin()
    await life.rest()
    await life.ask(Action.DELETE, server)
    await life.rest()
    kept, _ = await life.state(server)
    life.world.checker.deleting.add(server)
    await asyncio.sleep(120.0)
    life.world.checker.deleted.add(server)
    await life.rest()
    gone, _ = await life.state(server)
    return kept, gone
