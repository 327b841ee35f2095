"""What is written down of actions: by whom, which steps, how each ended, and what is kept of those before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.lifecycle.core import begin, failed, settle
from fabric.lifecycle.events import (
    DRIFT,
    KEPT,
    MESSAGE_LIMIT,
    STEPS_LIMIT,
    closed,
    left_behind,
    slot,
    stepped,
)
from fabric.model.event import Event, EventStep, Outcome, StepName
from fabric.model.instance import Fault, Instance
from fabric.model.session import HostState
from fabric.model.states import Action, TaskState, VmState, Want
from tests.unit.lifecycle.records import NOW_MS, instance, said

LATER_MS = NOW_MS + 5_000
FAULT = Fault(code="DISK_FULL", message="the host's disk is full", host="h1", time_ms=LATER_MS)


def _begun(now: Instance, action: Action, *, request_id: str = "r1", user_id: str = "ann") -> Instance:
    return begin(now, action, now_ms=NOW_MS, op_id="op", request_id=request_id, user_id=user_id)


def _settled(now: Instance, state: HostState, **facts: object) -> Instance:
    after = settle(now, said(now, state, **facts), now_ms=LATER_MS, op_id="op2")
    assert isinstance(after, Instance)
    return after


def _event(now: Instance) -> Event:
    assert now.event is not None
    return now.event


def test_an_action_says_who_asked_and_when_and_that_it_is_under_way() -> None:
    event = _event(_begun(instance(VmState.STOPPED), Action.START))

    assert (event.action, event.request_id, event.user_id, event.start_ms) == ("start", "r1", "ann", NOW_MS)
    assert (event.outcome, event.finish_ms, event.seq) == (Outcome.RUNNING, 0, 1)


def test_an_action_that_is_done_when_it_is_written_has_ended() -> None:
    event = _event(_begun(instance(), Action.LOCK))

    assert (event.outcome, event.finish_ms) == (Outcome.DONE, NOW_MS)


def test_an_action_ends_with_its_task_and_has_the_steps_that_led_to_it() -> None:
    step = EventStep(name=StepName.START, host="h1", start_ms=NOW_MS + 1, finish_ms=NOW_MS + 2)

    event = _event(_settled(_begun(instance(VmState.STOPPED), Action.START), HostState.ACTIVE, steps=(step,)))

    assert (event.outcome, event.finish_ms, event.steps) == (Outcome.DONE, LATER_MS, (step,))


def test_an_action_that_fails_says_how() -> None:
    after = failed(_begun(instance(VmState.STOPPED), Action.START), FAULT, now_ms=LATER_MS, op_id="op2")

    event = _event(after)
    assert (event.outcome, event.fault_code, event.message) == (Outcome.FAILED, FAULT.code, FAULT.message)


def test_an_action_that_takes_over_leaves_the_other_behind_as_superseded() -> None:
    rebooting = _begun(instance(), Action.REBOOT_SOFT)
    harder = _begun(rebooting, Action.REBOOT_HARD, request_id="r2")

    (left,) = left_behind(rebooting, harder, now_ms=NOW_MS)

    assert (left.action, left.outcome, left.finish_ms) == ("reboot-soft", Outcome.SUPERSEDED, NOW_MS)
    assert _event(harder).seq == left.seq + 1


def test_nothing_is_left_behind_while_an_action_goes_on_or_ends() -> None:
    starting = _begun(instance(VmState.STOPPED), Action.START)

    assert left_behind(starting, _settled(starting, HostState.ACTIVE), now_ms=LATER_MS) == ()
    assert left_behind(instance(), starting, now_ms=NOW_MS) == ()


def test_an_action_begun_again_under_its_request_id_is_the_same_one() -> None:
    deleting = _begun(instance(), Action.DELETE)
    given_up = failed(deleting, FAULT, now_ms=LATER_MS, op_id="op")

    again = _event(_begun(given_up, Action.DELETE))

    assert (again.seq, again.outcome, again.fault_code) == (_event(deleting).seq, Outcome.RUNNING, "")


def test_what_nobody_asked_for_has_a_request_id_all_the_same() -> None:
    event = _event(_begun(instance(), Action.DELETE, request_id="", user_id=""))

    assert (event.request_id, event.user_id) == ("op", "")


def test_a_guest_that_goes_off_by_itself_is_written_down() -> None:
    event = _event(_settled(instance(), HostState.STOPPED))

    assert (event.action, event.outcome, event.user_id) == (DRIFT, Outcome.DONE, "")
    assert event.message == "from active to stopped, by itself"


def test_a_host_that_flaps_costs_the_history_one_place() -> None:
    asked = _settled(_begun(instance(VmState.STOPPED), Action.START), HostState.ACTIVE)
    paused = _settled(asked, HostState.PAUSED)

    again = _settled(replace(paused, want=Want.PAUSE), HostState.ACTIVE)

    assert (_event(paused).action, _event(again).action) == (DRIFT, DRIFT)
    assert _event(again).seq == _event(paused).seq == _event(asked).seq + 1
    assert left_behind(paused, again, now_ms=LATER_MS) == ()


def test_a_state_that_is_only_seen_again_is_no_event() -> None:
    asked = _settled(_begun(instance(VmState.STOPPED), Action.START), HostState.ACTIVE)

    after = settle(
        replace(asked, power_seen_ms=0, observed_generation=0),
        said(asked, HostState.ACTIVE),
        now_ms=1,
        op_id="",
    )

    assert isinstance(after, Instance)
    assert after.event == asked.event


def test_steps_are_bounded_and_never_before_what_they_belong_to() -> None:
    event = replace(_event(_begun(instance(), Action.STOP)), start_ms=100)
    long_ago = EventStep(name=StepName.CUT_POWER, host="h1", start_ms=-5, finish_ms=-1)

    after = stepped(event, [long_ago] * (STEPS_LIMIT + 3))

    assert len(after.steps) == STEPS_LIMIT
    assert {(each.start_ms, each.finish_ms) for each in after.steps} == {(100, 100)}


def test_words_are_bounded() -> None:
    event = closed(_event(_begun(instance(), Action.STOP)), now_ms=1, fault=replace(FAULT, message="x" * 999))

    assert len(event.message) == MESSAGE_LIMIT


@pytest.mark.parametrize("seq", [1, KEPT - 1, KEPT, KEPT + 1, 10 * KEPT])
def test_a_server_has_no_more_keys_of_events_than_are_kept(seq: int) -> None:
    event = replace(_event(_begun(instance(), Action.STOP)), seq=seq)

    assert 0 <= int(slot(event)) < KEPT


def test_a_record_of_before_events_were_written_down_gets_its_first_one() -> None:
    old = replace(instance(), event=None, task=TaskState.POWERING_OFF, want=Want.STOP)

    assert left_behind(old, None, now_ms=1) == ()
    assert _settled(old, HostState.STOPPED).event is None
    assert _event(_begun(_settled(old, HostState.STOPPED), Action.START)).seq == 1
