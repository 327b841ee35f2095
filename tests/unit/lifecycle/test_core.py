"""Every cell of the table, and what a host's word does in each."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

import pytest

from fabric.errors import WrongState
from fabric.lifecycle.core import Gone, Refused, allowed_actions, begin, expired, failed, settle
from fabric.lifecycle.table import BY_ACTION, BY_TASK, HOST_WORDS, RULES, Rule, shown
from fabric.model.instance import ActionMark, Fault, Instance, OneShot
from fabric.model.session import HostState
from fabric.model.states import Action, PowerState, TaskState, VmState, Want
from tests.unit.lifecycle.records import NOW_MS, instance, said

STATES = (VmState.BUILDING, VmState.ACTIVE, VmState.STOPPED, VmState.ERROR)
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
    "launch_time_ms",
    "update_time_ms",
    "op_id",
}
"""What a host's word may change of a record (I6); drift adds the intent that follows it."""


def _begin(now: Instance, action: Action, **facts: int) -> Instance:
    return begin(now, action, now_ms=LATER_MS, op_id="op", request_id="request", **facts)


def _settle(now: Instance, state: HostState, **facts: object) -> Instance | Gone | Refused:
    return settle(now, said(now, state, **facts), now_ms=LATER_MS, op_id="op")


def _settled(now: Instance, state: HostState, **facts: object) -> Instance:
    after = _settle(now, state, **facts)
    assert isinstance(after, Instance)
    return after


# -- begin ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "vm_state", "task"), list(product(Action, STATES, TaskState)))
def test_an_action_may_start_exactly_where_its_row_says(
    action: Action, vm_state: VmState, task: TaskState
) -> None:
    rule = BY_ACTION[action]
    may = vm_state in rule.allowed and (task is TaskState.NONE or task in rule.preempts)
    now = instance(vm_state, task)

    assert (action in allowed_actions(vm_state, task)) is may
    if may:
        after = _begin(now, action)
        assert (after.task, after.want, after.generation) == (rule.task, rule.want, now.generation + 1)
        assert after.vm_state is vm_state
        assert after.task_deadline_ms == LATER_MS + rule.deadline_s * 1000
        assert (after.task_request_id, after.op_id) == ("request", "op")
    elif action is Action.DELETE:
        assert _begin(now, action) is now
    else:
        with pytest.raises(WrongState) as refused:
            _begin(now, action)
        assert action in refused.value.message
        assert all(allowed in refused.value.message for allowed in allowed_actions(vm_state, task))


def test_a_one_shot_action_counts_up_and_a_plain_one_does_not() -> None:
    rebooted = _begin(instance(), Action.REBOOT_SOFT)
    harder = _begin(rebooted, Action.REBOOT_HARD)
    stopped = _begin(replace(harder, task=TaskState.NONE), Action.STOP)

    assert rebooted.action == ActionMark(seq=1, kind=OneShot.REBOOT_SOFT)
    assert harder.action == ActionMark(seq=2, kind=OneShot.REBOOT_HARD)
    assert stopped.action == harder.action


@pytest.mark.parametrize("action", sorted(set(Action) - {Action.DELETE, Action.CREATE}))
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
        }
        if more <= reached:
            break
        reached |= more

    assert reached == set(VmState) - {VmState.UNSPECIFIED}


def test_every_state_but_the_last_has_a_way_out() -> None:
    assert {state for rule in RULES for state in rule.allowed} == set(STATES)


def test_every_task_belongs_to_an_action_with_a_deadline() -> None:
    assert BY_TASK.keys() == set(TaskState) - {TaskState.NONE}
    assert all(rule.deadline_s > 0 for rule in RULES)


def test_every_action_has_a_row_and_a_host_has_words_for_every_want() -> None:
    assert BY_ACTION.keys() == set(Action)
    for want in {rule.want for rule in RULES}:
        assert any(want in word.wants and word.word is not HostState.ERROR for word in HOST_WORDS.values())


def test_delete_preempts_everything_else() -> None:
    for task in set(TaskState) - {TaskState.DELETING}:
        assert Action.DELETE in allowed_actions(VmState.ACTIVE, task)


@pytest.mark.parametrize(("vm_state", "task"), list(product(STATES, TaskState)))
def test_every_cell_has_a_word_for_people(vm_state: VmState, task: TaskState) -> None:
    assert shown(vm_state, task) != "UNKNOWN"


# -- settle ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "vm_state", "want", "power"),
    list(product(HostState, STATES, (Want.RUN, Want.STOP, Want.ABSENT), PowerState)),
)
def test_a_host_may_say_exactly_what_its_row_allows(
    state: HostState, vm_state: VmState, want: Want, power: PowerState
) -> None:
    row = HOST_WORDS.get(state)
    may = row is not None and vm_state in row.from_states and want in row.wants and power in row.powers
    now = instance(vm_state, want=want)

    after = settle(
        now, replace(said(now, HostState.ABSENT), state=state, power=power), now_ms=LATER_MS, op_id="op"
    )

    assert (after is not Refused.ILLEGAL) is may


@pytest.mark.parametrize(
    ("rule", "vm_state"),
    [
        (rule, state)
        for rule in RULES
        for state in sorted(rule.allowed or {VmState.BUILDING})
        if rule.action is not Action.DELETE
    ],
)
def test_what_was_asked_for_and_done_is_final(rule: Rule, vm_state: VmState) -> None:
    action = rule.action
    now = (
        instance(VmState.BUILDING, TaskState.SPAWNING)
        if action is Action.CREATE
        else _begin(instance(vm_state), action)
    )
    state = HostState.ACTIVE if now.want is Want.RUN else HostState.STOPPED

    after = _settled(now, state)

    assert (after.vm_state, after.task, after.task_deadline_ms) == (
        BY_ACTION[action].final,
        TaskState.NONE,
        0,
    )
    assert (after.observed_generation, after.observed_action) == (now.generation, now.action.seq)
    assert after.fault is None


@pytest.mark.parametrize("vm_state", STATES)
def test_a_deletion_confirmed_is_the_end(vm_state: VmState) -> None:
    assert _settle(_begin(instance(vm_state), Action.DELETE), HostState.ABSENT) is Gone.GONE


@pytest.mark.parametrize("task", set(TaskState) - {TaskState.NONE})
def test_what_failed_ends_where_its_row_says_with_its_fault(task: TaskState) -> None:
    rule = BY_TASK[task]
    now = instance(VmState.STOPPED, task, want=rule.want)

    after = _settled(now, HostState.ERROR)

    assert after.vm_state is (rule.on_failure or VmState.STOPPED)
    assert after.task is TaskState.NONE
    # What was to run is told to stay off, as a new intent; what was to stop, or to be gone, is still to.
    assert after.want is (Want.STOP if rule.want is Want.RUN else rule.want)
    assert after.generation == now.generation + (rule.want is Want.RUN)
    assert after.fault == Fault(
        code="DISK_FULL", message="the host's disk is full", host="h1", time_ms=LATER_MS
    )


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
    ("state", "vm_state", "task", "want"),
    list(product(HostState, STATES, TaskState, (Want.RUN, Want.STOP, Want.ABSENT))),
)
def test_a_host_changes_status_and_nothing_else(
    state: HostState, vm_state: VmState, task: TaskState, want: Want
) -> None:
    if state is HostState.UNSPECIFIED:
        return
    now = instance(vm_state, task, want=want)

    after = _settle(now, state)

    if isinstance(after, Instance):
        changed = {each.name for each in fields(now) if getattr(now, each.name) != getattr(after, each.name)}
        stays_off = want is Want.RUN and state in {HostState.STOPPED, HostState.ERROR}
        assert changed <= STATUS_FIELDS | ({"want", "generation"} if stays_off else set())
        assert after.want is not Want.RUN or now.want is Want.RUN


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
