"""What becomes of a build, as a function of what is known: row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.model.event import Event, Outcome
from fabric.model.instance import Assignment, Build, Instance, Location, Over, Refund
from fabric.model.placement import Decision
from fabric.model.quota import Charge, Quota
from fabric.model.states import Action, TaskState, VmState, Want
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.claim import Chosen, claim
from fabric.scheduler.core.picture import HostPicture, Seen
from fabric.scheduler.core.saga import (
    Found,
    Move,
    Owed,
    Stay,
    Traces,
    Turn,
    cancel,
    found,
    leave,
    move,
    onwards,
    settle_refunds,
    sweepable,
    turn,
    without_room,
)
from fabric.scheduler.settings import SchedulerSettings
from tests.unit.scheduler.worlds import build, host, picture

SETTINGS = SchedulerSettings()
BUILD = build("i-1", create_time_ms=1_000_000)
OVER = Seen(Over(instance_id="i-1", over_time_ms=1), 5, 5)
REFUND = Seen(Refund(instance_id="i-1", project_id="p-1"), 6, 6)
NOWHERE = Decision(considered=3)
WEST = Decision(considered=3, host="w1", cell="west")


def cells(*, enabled: str = "east west", reachable: str = "east west") -> HostPicture:
    return picture([], enabled=enabled.split(), reachable=reachable.split())


def placed() -> tuple[Instance, Assignment]:
    decision = Decision(considered=1, host="h", cell="east")
    put = claim(
        picture([host("h")]),
        "east",
        [Chosen(build=BUILD, decision=decision)],
        now_ms=1,
        op_id="op-1",
        deadline_s=600,
    ).change.put
    instance, order = put["instance/i-1"], put["assignment/h/i-1"]
    assert isinstance(instance, Instance)
    assert isinstance(order, Assignment)
    return instance, order


def traces(
    *,
    instance: Seen[Instance] | None = None,
    over: Seen[Over] | None = None,
    refund: Seen[Refund] | None = None,
) -> Traces:
    return Traces(instance=instance or Seen(), over=over or Seen(), refund=refund or Seen())


@pytest.mark.parametrize(
    ("changed", "age_ms", "expected"),
    [
        (BUILD, 0, Turn.PLACE),
        (BUILD, 599_999, Turn.PLACE),
        (BUILD, 600_000, Turn.EXPIRE),
        (replace(BUILD, cancelled=True), 0, Turn.CANCEL),
        (replace(BUILD, cancelled=True), 600_000, Turn.CANCEL),
        # A clock set back must not expire anything.
        (BUILD, -5_000_000, Turn.PLACE),
    ],
)
def test_what_a_build_waits_for(changed: Build, age_ms: int, expected: Turn) -> None:
    assert turn(changed, now_ms=BUILD.create_time_ms + age_ms, settings=SETTINGS) is expected


@pytest.mark.parametrize(
    ("anywhere", "hosts", "is_provisional", "waited_s", "expected"),
    [
        (WEST, cells(), False, 0.0, Move("west")),
        (NOWHERE, cells(), False, 0.0, Stay.FAIL),
        (NOWHERE, cells(), True, 0.0, Stay.WAIT),
        (NOWHERE, cells(reachable="east"), False, 9.9, Stay.WAIT),
        (NOWHERE, cells(reachable="east"), False, 10.0, Stay.FAIL),
        # A closed cell is not waited for.
        (NOWHERE, cells(reachable="east", enabled="east"), False, 0.0, Stay.FAIL),
    ],
)
def test_what_becomes_of_a_build_without_room(
    anywhere: Decision, hosts: HostPicture, is_provisional: bool, waited_s: float, expected: Move | Stay
) -> None:
    assert (
        without_room(
            BUILD,
            anywhere,
            hosts,
            is_provisional=is_provisional,
            waited_s=waited_s,
            settings=SETTINGS,
        )
        == expected
    )


def test_a_cell_that_was_left_is_not_waited_for() -> None:
    tried = replace(BUILD, tried_cells=("west",))

    verdict = without_room(
        tried,
        NOWHERE,
        cells(reachable="east"),
        is_provisional=False,
        waited_s=0,
        settings=SETTINGS,
    )

    assert verdict is Stay.FAIL


@pytest.mark.parametrize(
    ("anywhere", "hosts", "expected"),
    [
        (WEST, cells(), Move("west")),
        # Its end can be recorded there, and only there: this cell is closed to it.
        (NOWHERE, cells(), Move("west")),
        (NOWHERE, cells(reachable="east"), Stay.WAIT),
        (NOWHERE, cells(enabled="east"), Stay.WAIT),
    ],
)
def test_a_build_that_has_left_goes_onwards(
    anywhere: Decision, hosts: HostPicture, expected: Move | Stay
) -> None:
    assert onwards(BUILD, anywhere, hosts) == expected


def test_what_the_traces_of_a_server_say() -> None:
    instance = Seen(placed()[0], 4, 4)

    assert found(traces()) is Found.NOTHING
    assert found(traces(instance=instance)) is Found.PLACED
    assert found(traces(over=OVER)) is Found.LEFT
    assert found(traces(over=OVER, refund=REFUND)) is Found.ENDED


def test_leaving_a_cell_closes_it_to_the_server() -> None:
    change = leave(BUILD, now_ms=9)

    assert change.unchanged == {"instance/i-1": 0, "over/i-1": 0}
    assert change.put == {"over/i-1": Over(instance_id="i-1", over_time_ms=9)}


LOCATION = Location(
    instance_id="i-1",
    project_id="p-1",
    user_id="u-1",
    name="i-1",
    cell="east",
    charge=Charge(instances=1, vcpus=2, ram_mib=512),
)


def test_a_move_takes_index_and_build_along_in_one_write() -> None:
    change = move(Seen(BUILD, 7, 7), Seen(LOCATION, 8, 8), "west", op_id="op-2")

    assert change == Change(
        unchanged={"build/east/i-1": 7, "build/west/i-1": 0, "location/i-1": 8},
        put={
            "build/west/i-1": replace(BUILD, cell="west", tried_cells=("east",), op_id="op-2"),
            "location/i-1": replace(LOCATION, cell="west", op_id="op-2"),
        },
        delete=("build/east/i-1",),
    )


@pytest.mark.parametrize("location", [Seen(), Seen(replace(LOCATION, cell="north"), 8, 8)])
def test_what_is_gone_or_elsewhere_is_not_moved(location: Seen[Location]) -> None:
    assert move(Seen(BUILD, 7, 7), location, "west", op_id="op-2") is None


# ---------------------------------------------------------------------- cancelled

ENDS = {
    "over/i-1": Over(instance_id="i-1", over_time_ms=9),
    "refund/i-1": Refund(instance_id="i-1", project_id="p-1"),
}


def cancelled(known: Traces, assignment: Seen[Assignment] | None = None) -> Change | None:
    return cancel(BUILD, known, assignment or Seen(), now_ms=9, op_id="op-2")


def test_cancelling_what_nobody_claimed_ends_it() -> None:
    change = cancelled(traces())

    assert change is not None
    assert change.unchanged == {"instance/i-1": 0, "over/i-1": 0, "refund/i-1": 0}
    assert _without_events(change) == ENDS


def test_both_actions_of_a_cancelled_create_are_written_down() -> None:
    change = cancelled(traces())

    assert change is not None
    create, delete = change.put["event/i-1/1"], change.put["event/i-1/2"]
    assert isinstance(create, Event)
    assert isinstance(delete, Event)
    assert (create.action, create.outcome) == (Action.CREATE, Outcome.SUPERSEDED)
    assert (delete.action, delete.outcome) == (Action.DELETE, Outcome.DONE)


def test_cancelling_what_has_left_still_owes_its_charge() -> None:
    change = cancelled(traces(over=OVER))

    assert change is not None
    assert change.unchanged == {"instance/i-1": 0, "over/i-1": 5, "refund/i-1": 0}
    assert set(_without_events(change)) == {"refund/i-1"}


def test_cancelling_what_never_had_a_host_takes_its_record_away() -> None:
    failed = replace(placed()[0], host="", vm_state=VmState.ERROR, task=TaskState.NONE, want=Want.STOP)

    change = cancelled(traces(instance=Seen(failed, 4, 4)))

    assert change is not None
    assert change.unchanged["instance/i-1"] == 4
    assert change.delete == ("instance/i-1",)
    assert _without_events(change) == ENDS


def _without_events(change: Change) -> dict[str, object]:
    return {key: value for key, value in change.put.items() if not key.startswith("event/")}


def test_cancelling_what_was_claimed_is_a_delete() -> None:
    instance, order = placed()

    change = cancelled(traces(instance=Seen(instance, 4, 4)), Seen(order, 4, 4))

    assert change is not None
    assert change.unchanged == {"instance/i-1": 4, "assignment/h/i-1": 4}
    after, told = change.put["instance/i-1"], change.put["assignment/h/i-1"]
    assert isinstance(after, Instance)
    assert isinstance(told, Assignment)
    assert (after.want, after.task, after.generation) == (Want.ABSENT, TaskState.DELETING, 2)
    assert (told.want, told.generation) == (Want.ABSENT, 2)


def test_cancelling_twice_changes_nothing() -> None:
    instance, order = placed()
    going = Seen(replace(instance, want=Want.ABSENT), 4, 4)

    assert cancelled(traces(over=OVER, refund=REFUND)) is None
    assert cancelled(traces(instance=going), Seen(order, 4, 4)) is None


# ---------------------------------------------------------------------- the end


@given(
    st.lists(
        st.tuples(st.sampled_from(["p-1", "p-2"]), st.integers(1, 9), st.sampled_from("egn")), max_size=30
    )
)
def test_refunds_give_back_exactly_what_the_removed_locations_were_charged(
    rows: list[tuple[str, int, str]],
) -> None:
    """e: here; g: paid back already; n: the server lives in another cell by now."""
    owed = [
        Owed(
            refund=Refund(instance_id=f"i-{number}", project_id=project),
            location=Seen()
            if where == "g"
            else Seen(
                replace(
                    LOCATION,
                    instance_id=f"i-{number}",
                    project_id=project,
                    cell="east" if where == "e" else "north",
                    charge=Charge(instances=1, vcpus=vcpus, ram_mib=vcpus),
                ),
                number + 1,
                number + 1,
            ),
            build=Seen(BUILD, 3, 3) if number % 2 else Seen(),
        )
        for number, (project, vcpus, where) in enumerate(rows)
    ]
    full = Charge(instances=100, vcpus=1000, ram_mib=1000)
    quotas = {name: Seen(Quota(project_id=name, limit=full, used=full), 2, 2) for name in ("p-1", "p-2")}

    settled = settle_refunds("east", owed, quotas, op_id="op-9")
    change = settled.change

    for name in quotas:
        back = [vcpus for project, vcpus, where in rows if project == name and where == "e"]
        quota = change.put.get(f"quota/{name}")
        assert (quota is None) == (not back)
        if isinstance(quota, Quota):
            assert quota.used == full - Charge(instances=len(back), vcpus=sum(back), ram_mib=sum(back))
            assert quota.op_id == "op-9"
            assert change.unchanged[f"quota/{name}"] == 2
    removed = {key for key in change.delete if key.startswith("location/")}
    assert removed == {f"location/i-{number}" for number, row in enumerate(rows) if row[2] == "e"}
    # What is deleted, and what was looked for in vain, is compared.
    assert set(change.delete) <= change.unchanged.keys()
    assert {key.replace("location/", "build/east/") for key in removed} <= change.unchanged.keys()


def test_thirty_refunds_fit_one_transaction() -> None:
    owed = [
        Owed(
            refund=Refund(instance_id=f"i-{number}", project_id=f"p-{number}"),
            location=Seen(replace(LOCATION, instance_id=f"i-{number}", project_id=f"p-{number}"), 1, 1),
            build=Seen(BUILD, 1, 1),
        )
        for number in range(30)
    ]
    quotas = {
        f"p-{number}": Seen(Quota(project_id=f"p-{number}", limit=Charge()), 1, 1) for number in range(30)
    }

    settled = settle_refunds("east", owed, quotas, op_id="op")
    change = settled.change

    assert len(settled.instances) == 30

    assert len(change.unchanged) <= 128
    assert len(change.put) + len(change.delete) <= 128


def test_only_what_is_old_and_not_being_built_is_forgotten() -> None:
    day_ms = 24 * 3600 * 1000
    overs = [
        Seen(Over(instance_id="old", over_time_ms=0), 1, 1),
        Seen(Over(instance_id="young", over_time_ms=1), 1, 1),
        Seen(Over(instance_id="building", over_time_ms=0), 1, 1),
    ]

    old = sweepable(overs, {"building"}, now_ms=day_ms, settings=SETTINGS)

    assert [over.value.instance_id for over in old if over.value is not None] == ["old"]
