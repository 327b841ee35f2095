"""Every cell of the table, and what a host's word does in each."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest

from fabric.errors import WrongState
from fabric.lifecycle.core import Freed, Gone, Refused, allowed_actions, begin, expired, failed, settle
from fabric.lifecycle.table import BY_ACTION, BY_TASK, FREE_TO_DRIFT, HOST_WORDS, RULES, Rule, shown
from fabric.model.instance import ActionMark, Fault, Instance, OneShot
from fabric.model.session import HostState
from fabric.model.states import Action, PowerState, TaskState, VmState, Want
from tests.unit.lifecycle.records import DONE, IMAGE, NOW_MS, instance, said

STATES = tuple(sorted(set(VmState) - {VmState.UNSPECIFIED, VmState.DELETED}))
UNPLACED = VmState.SHELVED_OFFLOADED
LATER_MS = NOW_MS + 1000

STATUS_FIELDS = {
    "vm_state",
    "task",
    "task_deadline_ms",
    "power",
    "power_seen_ms",
    "observed_generation",
    "observed_action",
    "fault",
    "event",
    "launch_time_ms",
    "update_time_ms",
    "op_id",
    "carrier_id",
}
"""What a host's word may change of a record (I6); drift adds the intent that follows it."""


def _begin(now: Instance, action: Action, **facts: Any) -> Instance:
    return begin(now, action, now_ms=LATER_MS, op_id="op", request_id="request", **facts)


def _settle(now: Instance, state: HostState, **facts: object) -> Instance | Gone | Freed | Refused:
    return settle(now, said(now, state, **facts), now_ms=LATER_MS, op_id="op")


def _settled(now: Instance, state: HostState, **facts: object) -> Instance:
    after = _settle(now, state, **facts)
    assert isinstance(after, Instance)
    return after


# -- begin ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "vm_state"), list(product(Action, STATES)))
def test_an_action_may_start_exactly_where_its_row_says(action: Action, vm_state: VmState) -> None:
    for task in TaskState:
        _check_cell(action, vm_state, task)


def _check_cell(action: Action, vm_state: VmState, task: TaskState) -> None:
    rule = BY_ACTION[action]
    may = vm_state in rule.allowed and (task is TaskState.NONE or task in rule.preempts)
    now = instance(vm_state, task)

    assert (action in allowed_actions(vm_state, task)) is may
    if may:
        after = _begin(now, action)
        asks_host = (
            rule.want is not None or rule.one_shot is not OneShot.NONE or rule.task is TaskState.RESIZE_PREP
        )
        assert (after.task, after.want) == (rule.task, rule.want or now.want)
        assert after.generation == now.generation + asks_host
        assert after.vm_state is vm_state
        assert after.task_deadline_ms == (LATER_MS + rule.deadline_s * 1000 if rule.deadline_s else 0)
        assert (after.task_request_id, after.op_id) == ("request", "op")
    elif action is Action.DELETE or (
        action is Action.SOFT_DELETE
        and (task is TaskState.SOFT_DELETING or (vm_state, task) == (VmState.SOFT_DELETED, TaskState.NONE))
    ):
        # It is what was asked for already.
        assert _begin(now, action) is now
    else:
        with pytest.raises(WrongState) as refused:
            _begin(now, action)
        assert action in refused.value.message
        assert all(allowed in refused.value.message for allowed in allowed_actions(vm_state, task))


def test_a_locked_server_is_changed_by_administrators_alone() -> None:
    locked = instance(locked=True, locked_reason="an audit")

    for action in allowed_actions(VmState.ACTIVE, TaskState.NONE):
        if BY_ACTION[action].despite_lock:
            _begin(locked, action)
        else:
            with pytest.raises(WrongState, match="locked: an audit; allowed now: unlock"):
                _begin(locked, action)
        _begin(locked, action, is_admin=True)


def test_a_server_off_its_host_can_be_asked_only_what_needs_none() -> None:
    away = instance(UNPLACED, host="", want=Want.STOP)

    for action in set(Action) - {Action.CREATE}:
        if BY_ACTION[action].is_unplaced and UNPLACED in BY_ACTION[action].allowed:
            _begin(away, action)
        else:
            with pytest.raises(WrongState, match="allowed now"):
                _begin(away, action)


def test_a_one_shot_action_counts_up_and_a_plain_one_does_not() -> None:
    rebooted = _begin(instance(), Action.REBOOT_SOFT)
    harder = _begin(rebooted, Action.REBOOT_HARD)
    stopped = _begin(replace(harder, task=TaskState.NONE), Action.STOP)

    assert rebooted.action == ActionMark(seq=1, kind=OneShot.REBOOT_SOFT)
    assert harder.action == ActionMark(seq=2, kind=OneShot.REBOOT_HARD)
    assert stopped.action == harder.action


@pytest.mark.parametrize(
    "action",
    sorted(rule.action for rule in RULES if not rule.is_unplaced and rule.action is not Action.CREATE),
)
def test_a_server_that_no_host_took_can_only_be_deleted(action: Action) -> None:
    """Seed 0 of the simulation: stopped, it was powering off for ever, for nobody was there to do it."""
    nowhere = instance(VmState.ERROR, host="", placement_epoch=0, want=Want.STOP)

    with pytest.raises(WrongState, match="never placed on a host"):
        _begin(nowhere, action)
    assert _begin(nowhere, Action.DELETE).task is TaskState.DELETING


def test_the_guests_own_time_is_added_to_the_deadline() -> None:
    assert _begin(instance(), Action.STOP, guest_timeout_s=60).task_deadline_ms == LATER_MS + (90 + 60) * 1000


def test_a_deletion_that_failed_is_begun_anew_and_never_taken_back() -> None:
    deleting = _begin(instance(), Action.DELETE)
    stuck = _settled(deleting, HostState.ERROR)

    again = _begin(stuck, Action.DELETE)

    assert (stuck.vm_state, stuck.task, stuck.want) == (VmState.ERROR, TaskState.NONE, Want.ABSENT)
    assert (again.task, again.generation) == (TaskState.DELETING, stuck.generation + 1)
    for action in set(Action) - {Action.DELETE}:
        with pytest.raises(WrongState, match="being deleted"):
            _begin(stuck, action)


# -- the table ------------------------------------------------------------------------------------


def test_every_state_can_be_reached() -> None:
    reached = {VmState.BUILDING}
    while True:
        more = {
            state
            for rule in RULES
            if rule.action is Action.CREATE or reached & rule.allowed
            for state in (rule.final, rule.on_failure)
            if state is not None
        } | (
            {row.vm_state for row in HOST_WORDS.values() if row.vm_state}
            if VmState.ACTIVE in reached
            else set()
        )
        if more <= reached:
            break
        reached |= more

    assert reached == set(VmState) - {VmState.UNSPECIFIED}


def test_every_state_but_the_last_has_a_way_out() -> None:
    for state in STATES:
        assert {rule for rule in RULES if state in rule.allowed and rule.task is not TaskState.NONE}


def test_every_task_belongs_to_an_action_with_a_deadline() -> None:
    assert BY_TASK.keys() == set(TaskState) - {TaskState.NONE}
    assert all((rule.deadline_s > 0) == (rule.task is not TaskState.NONE) for rule in RULES)


def test_every_action_has_a_row_and_a_host_has_words_for_every_want() -> None:
    assert BY_ACTION.keys() == set(Action)
    for want in {rule.want for rule in RULES if rule.want is not None}:
        assert any(want in word.wants and word.word is not HostState.ERROR for word in HOST_WORDS.values())


def test_delete_preempts_everything_else() -> None:
    for task in set(TaskState) - {TaskState.DELETING}:
        assert Action.DELETE in allowed_actions(VmState.ACTIVE, task)


def test_every_cell_has_a_word_for_people() -> None:
    for vm_state, task in product(STATES, TaskState):
        assert shown(vm_state, task) != "UNKNOWN"


# -- settle ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "vm_state"), list(product(HostState, STATES)))
def test_a_host_may_say_exactly_what_its_row_allows(state: HostState, vm_state: VmState) -> None:
    for want, power in product(tuple(Want)[1:], PowerState):
        _check_word(state, vm_state, want, power)


def _check_word(state: HostState, vm_state: VmState, want: Want, power: PowerState) -> None:
    row = HOST_WORDS.get(state)
    may = row is not None and vm_state in row.from_states and want in row.wants and power in row.powers
    now = instance(vm_state, want=want)

    after = settle(
        now, replace(said(now, HostState.ABSENT), state=state, power=power), now_ms=LATER_MS, op_id="op"
    )
    assert not isinstance(after, Freed) or vm_state in {VmState.SHELVED, VmState.RESIZED}

    assert (after is not Refused.ILLEGAL) is may


@pytest.mark.parametrize(
    ("rule", "vm_state"),
    [
        (rule, state)
        for rule in RULES
        for state in sorted(rule.allowed or {VmState.BUILDING})
        if rule.want is not Want.ABSENT
        and rule.task not in {TaskState.NONE, TaskState.RESIZE_PREP}
        and state is not UNPLACED
    ],
)
def test_what_was_asked_for_and_done_is_final(rule: Rule, vm_state: VmState) -> None:
    action = rule.action
    now = (
        instance(VmState.BUILDING, TaskState.SPAWNING)
        if action is Action.CREATE
        else _begin(instance(vm_state, want=WANTED.get(vm_state, Want.RUN)), action, image_id="image-2")
    )

    after = _settled(replace(now, uploaded=replace(IMAGE, id=now.action.image_id)), DONE[now.want])

    assert after.vm_state is (
        rule.final or vm_state if vm_state is not VmState.ERROR else rule.final or after.vm_state
    )
    assert (after.task, after.task_deadline_ms) == (TaskState.NONE, 0)
    assert (after.observed_generation, after.observed_action) == (now.generation, now.action.seq)
    assert after.fault is None


WANTED = {
    VmState.STOPPED: Want.STOP,
    VmState.PAUSED: Want.PAUSE,
    VmState.SUSPENDED: Want.SUSPEND,
    VmState.SHELVED: Want.STOP,
    VmState.SOFT_DELETED: Want.STOP,
}
"""What is wanted of a server at rest in a state."""


def test_a_host_let_go_of_a_shelved_server_which_lives_on_without_it() -> None:
    freed = _settle(
        _begin(instance(VmState.SHELVED, want=Want.STOP), Action.SHELVE_OFFLOAD), HostState.ABSENT
    )

    assert isinstance(freed, Freed)
    assert (freed.after.vm_state, freed.after.task) == (VmState.SHELVED_OFFLOADED, TaskState.NONE)
    assert (freed.after.host, freed.after.want) == ("", Want.STOP)


def test_a_shelved_server_is_not_deleted_because_its_host_fails_to_let_go_of_it() -> None:
    """Seed 325 of the simulation: the second failure made it look like a deletion, and the server was gone."""
    offloading = _begin(instance(VmState.SHELVED, want=Want.STOP), Action.SHELVE_OFFLOAD)
    once = _settled(offloading, HostState.ERROR)
    twice = _settled(replace(once, fault=None), HostState.ERROR)

    assert (once.vm_state, twice.vm_state) == (VmState.SHELVED, VmState.SHELVED)
    for now in (once, twice):
        freed = _settle(now, HostState.ABSENT)
        assert isinstance(freed, Freed)
        assert freed.after.vm_state is VmState.SHELVED_OFFLOADED


def test_what_could_not_be_done_is_said_and_what_is_wanted_follows_what_is() -> None:
    pausing = _begin(instance(), Action.PAUSE)

    after = _settled(pausing, HostState.ACTIVE, fault_code="DOMAIN_PAUSE_FAILED", fault_message="no")

    assert (after.vm_state, after.task, after.want) == (VmState.ACTIVE, TaskState.NONE, Want.RUN)
    assert after.generation == pausing.generation + 1
    assert after.fault is not None
    still = _settled(after, HostState.ACTIVE)
    assert still.fault == after.fault
    assert _settle(still, HostState.ACTIVE) is Refused.KNOWN


def test_a_server_that_cannot_be_resumed_stays_suspended_and_says_why() -> None:
    resuming = _begin(instance(VmState.SUSPENDED, want=Want.SUSPEND), Action.RESUME)

    after = _settled(resuming, HostState.SUSPENDED, fault_code="DOMAIN_START_FAILED", fault_message="no")

    assert (after.vm_state, after.task, after.want) == (VmState.SUSPENDED, TaskState.NONE, Want.SUSPEND)
    assert after.fault is not None
    assert Action.RESUME in allowed_actions(after.vm_state, after.task)


def test_a_guest_paused_by_hand_is_paused_and_one_let_go_on_is_active() -> None:
    paused = _settled(instance(), HostState.PAUSED)
    resumed = _settled(instance(VmState.PAUSED, want=Want.PAUSE), HostState.ACTIVE)

    assert (paused.vm_state, paused.want, paused.generation) == (VmState.PAUSED, Want.PAUSE, 4)
    assert (resumed.vm_state, resumed.want, resumed.generation) == (VmState.ACTIVE, Want.RUN, 4)


@pytest.mark.parametrize("vm_state", sorted(set(STATES) - {UNPLACED}))
def test_a_deletion_confirmed_is_the_end(vm_state: VmState) -> None:
    assert _settle(_begin(instance(vm_state), Action.DELETE), HostState.ABSENT) is Gone.GONE


@pytest.mark.parametrize("task", set(TaskState) - {TaskState.NONE})
def test_what_failed_ends_where_its_row_says_with_its_fault(task: TaskState) -> None:
    rule = BY_TASK[task]
    want = rule.want or Want.RUN
    now = instance(VmState.STOPPED, task, want=want)

    after = _settled(now, HostState.ERROR)

    assert after.vm_state is (rule.on_failure or VmState.STOPPED)
    assert after.task is TaskState.NONE
    # What was to be in memory is told to stay off, as a new intent; what was to stop, or to be gone, is still to.
    given_up = want not in {Want.STOP, Want.ABSENT}
    assert after.want is (Want.STOP if given_up else want)
    assert after.generation == now.generation + given_up
    assert after.fault == Fault(
        code="DISK_FULL", message="the host's disk is full", host="h1", time_ms=LATER_MS
    )


@pytest.mark.parametrize(
    "task", [TaskState.NONE, TaskState.IMAGE_SNAPSHOT_PENDING, TaskState.UPDATING_PASSWORD]
)
@pytest.mark.parametrize("vm_state", sorted(FREE_TO_DRIFT))
def test_a_server_that_its_host_has_given_up_does_not_look_as_if_it_ran(
    vm_state: VmState, task: TaskState
) -> None:
    given_up = _settled(instance(vm_state, task), HostState.ERROR)

    after = _settled(
        given_up, HostState.STOPPED, fault_code="DISK_FULL", fault_message="the host's disk is full"
    )

    assert (given_up.vm_state, given_up.task, given_up.want) == (VmState.ERROR, TaskState.NONE, Want.STOP)
    assert (after.vm_state, after.observed_generation) == (VmState.ERROR, given_up.generation)
    assert after.fault is not None


def test_a_known_fault_under_a_newer_generation_is_news() -> None:
    fault = Fault(code="DISK_FULL", message="the host's disk is full", host="h1", time_ms=NOW_MS)
    now = instance(VmState.STOPPED, want=Want.STOP, fault=fault, observed_generation=2)
    words = {"fault_code": fault.code, "fault_message": fault.message}

    after = _settled(now, HostState.STOPPED, **words)

    assert (after.vm_state, after.observed_generation) == (VmState.STOPPED, now.generation)
    assert _settle(after, HostState.STOPPED, **words) is Refused.KNOWN


def test_only_its_own_host_at_its_own_placement_is_heard() -> None:
    now = instance(VmState.BUILDING, TaskState.SPAWNING)

    assert _settle(now, HostState.ACTIVE, host="h2") is Refused.NOT_YOURS
    assert _settle(now, HostState.ACTIVE, placement_epoch=2) is Refused.NOT_YOURS
    assert _settle(now, HostState.ACTIVE, placement_epoch=0) is Refused.NOT_YOURS


def test_a_late_word_changes_nothing_and_an_early_one_is_a_lie() -> None:
    now = _begin(instance(), Action.REBOOT_HARD)

    assert _settle(now, HostState.ACTIVE, generation=now.generation - 1) is Refused.STALE
    assert _settle(now, HostState.ACTIVE, action_seq=0) is Refused.STALE
    assert _settle(now, HostState.ACTIVE, generation=now.generation + 1) is Refused.FROM_THE_FUTURE
    assert _settle(now, HostState.ACTIVE, action_seq=2) is Refused.FROM_THE_FUTURE


def test_the_same_state_under_a_newer_generation_is_news() -> None:
    """Hole 1 of the protocol's draft: comparing states alone left the observed generation behind for ever."""
    running = instance(power=PowerState.RUNNING, observed_generation=2)

    after = _settled(running, HostState.ACTIVE)

    assert after.observed_generation == 3
    assert _settle(after, HostState.ACTIVE) is Refused.KNOWN


def test_a_fault_repeated_is_stale_or_known_and_another_is_news() -> None:
    now = instance(VmState.BUILDING, TaskState.SPAWNING)
    first = _settled(now, HostState.ERROR)

    assert _settle(first, HostState.ERROR, generation=now.generation) is Refused.STALE
    again = _settled(first, HostState.ERROR)
    assert _settle(again, HostState.ERROR) is Refused.KNOWN
    assert _settled(first, HostState.ERROR, fault_code="DISK_FAILED").fault != first.fault


def test_a_guest_that_went_off_by_itself_is_stopped_and_ordered_to_stay_so() -> None:
    after = _settled(instance(), HostState.STOPPED)

    assert (after.vm_state, after.want, after.power) == (VmState.STOPPED, Want.STOP, PowerState.SHUTDOWN)
    assert (after.generation, after.observed_generation) == (4, 3)


def test_a_guest_that_is_off_while_it_is_being_started_or_rebooted_is_no_drift() -> None:
    for action, vm_state in ((Action.START, VmState.STOPPED), (Action.REBOOT_HARD, VmState.ACTIVE)):
        assert _settle(_begin(instance(vm_state), action), HostState.STOPPED) is Refused.STALE


def test_being_off_does_not_end_an_error() -> None:
    fault = Fault(code="DOMAIN_START_FAILED", message="it did not start", host="h1")
    for now in (instance(VmState.ERROR, fault=fault), instance(VmState.STOPPED, fault=fault)):
        after = _settled(now, HostState.STOPPED)
        assert (after.vm_state, after.fault, after.want) == (now.vm_state, fault, Want.RUN)
        assert after.power is PowerState.SHUTDOWN
        assert _settle(after, HostState.STOPPED) is Refused.KNOWN


def test_a_failed_build_that_was_told_to_stop_stays_an_error() -> None:
    fault = Fault(code="DISK_FULL", message="the host's disk is full", host="h1")
    failed_build = instance(VmState.ERROR, fault=fault, want=Want.STOP, launch_time_ms=0)

    after = _settled(failed_build, HostState.STOPPED)

    assert (after.vm_state, after.fault, after.observed_generation) == (VmState.ERROR, fault, 3)
    assert _settle(after, HostState.STOPPED) is Refused.KNOWN
    stopped = _settled(_begin(after, Action.STOP), HostState.STOPPED)
    assert (stopped.vm_state, stopped.fault) == (VmState.STOPPED, None)


def test_what_comes_about_after_its_deadline_is_still_taken_in() -> None:
    starting = _begin(instance(VmState.STOPPED), Action.START)
    fault = Fault(code="TASK_TIMEOUT", message="too late", host="h1")
    given_up = failed(starting, fault, now_ms=LATER_MS, op_id="op")

    after = _settled(given_up, HostState.ACTIVE)

    assert (given_up.vm_state, given_up.task, given_up.want) == (VmState.STOPPED, TaskState.NONE, Want.RUN)
    assert (after.vm_state, after.fault) == (VmState.ACTIVE, None)


@pytest.mark.parametrize(
    ("state", "vm_state"), list(product(sorted(set(HostState) - {HostState.UNSPECIFIED}), STATES))
)
def test_a_host_changes_status_and_nothing_else(state: HostState, vm_state: VmState) -> None:
    for task, want in product((TaskState.NONE, *(rule.task for rule in RULES)), tuple(Want)[1:]):
        _check_change(state, vm_state, task, want)


def _check_change(state: HostState, vm_state: VmState, task: TaskState, want: Want) -> None:
    now = instance(vm_state, task, want=want)

    after = _settle(now, state)

    if isinstance(after, Instance):
        changed = {each.name for each in fields(now) if getattr(now, each.name) != getattr(after, each.name)}
        follows = state is HostState.ERROR or DONE[want] is not state
        if vm_state is VmState.RESIZED or task in {TaskState.UNSHELVING, TaskState.SHELVING}:
            # What becomes of a placement that failed, or of an image that was not handed in: test_moves.py.
            return
        assert changed <= STATUS_FIELDS | ({"want", "generation"} if follows else set())
        # Nothing that a host says makes a guest run that was not to hold memory before.
        assert after.want is not Want.RUN or now.want in {Want.RUN, Want.PAUSE, Want.SUSPEND}


@pytest.mark.parametrize(
    ("deadline_ms", "task", "is_over"),
    [
        (LATER_MS, TaskState.SPAWNING, True),
        (LATER_MS + 1, TaskState.SPAWNING, False),
        (LATER_MS, TaskState.NONE, False),
        (0, TaskState.SPAWNING, False),
    ],
)
def test_a_deadline_counts_while_something_is_under_way(
    deadline_ms: int, task: TaskState, is_over: bool
) -> None:
    assert expired(instance(task=task, task_deadline_ms=deadline_ms), now_ms=LATER_MS) is is_over
