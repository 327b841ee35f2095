"""What is written down of plugging things in and out: it goes on until the host has said how it went, and never longer.

These actions have no task, so their events said "done" in the very write that asked for them: before the host had heard of it, without
steps, and also of a volume that could not be plugged in and was taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fabric.lifecycle.core import begin, failed, settle
from fabric.lifecycle.devices import with_port, with_volume, without_volume
from fabric.lifecycle.events import DRIFT, KEPT, left_behind, written_down
from fabric.model.event import Event, EventStep, Outcome, StepName
from fabric.model.faults import FaultCode
from fabric.model.instance import Fault, Instance
from fabric.model.session import HostState
from fabric.model.states import Action, TaskState, VmState, Want
from tests.unit.lifecycle.records import NOW_MS, instance, said
from tests.unit.lifecycle.test_devices import ADDED, RUNNING, VOLUME

LATER_MS = NOW_MS + 5_000
ATTACHED = EventStep(name=StepName.ATTACH, host="h1", start_ms=NOW_MS + 1, finish_ms=NOW_MS + 2)
DETACHED = replace(ATTACHED, name=StepName.DETACH)
FAILED = replace(ATTACHED, fault_code=FaultCode.VOLUME_ATTACH_FAILED)


def _begun(now: Instance, action: Action, request_id: str) -> Instance:
    return begin(now, action, now_ms=NOW_MS, op_id="op", request_id=request_id, user_id="ann")


def _attaching(now: Instance = RUNNING, request_id: str = "in") -> Instance:
    return with_volume(_begun(now, Action.ATTACH_VOLUME, request_id), VOLUME)


def _adding(now: Instance, request_id: str = "port") -> Instance:
    return with_port(_begun(now, Action.ATTACH_INTERFACE, request_id), ADDED)


def _detaching(now: Instance, request_id: str = "out") -> Instance:
    return without_volume(_begun(now, Action.DETACH_VOLUME, request_id), VOLUME.id)


def _told(now: Instance, *steps: EventStep, fault: str = "", state: HostState = HostState.ACTIVE) -> Instance:
    word = said(now, state, steps=steps, fault_code=fault, fault_message="why")
    after = settle(now, word, now_ms=LATER_MS, op_id="op2")
    assert isinstance(after, Instance)
    return after


def _event(now: Instance, request_id: str) -> Event:
    (found,) = (each for each in written_down(now) if each.request_id == request_id)
    return found


def _outcomes(now: Instance) -> dict[str, Outcome]:
    return {each.request_id: each.outcome for each in written_down(now)}


def test_attaching_is_done_when_the_host_has_said_so_and_has_its_steps() -> None:
    asked = _attaching()
    assert (_event(asked, "in").outcome, _event(asked, "in").finish_ms) == (Outcome.RUNNING, 0)

    event = _event(_told(asked, ATTACHED), "in")

    assert (event.outcome, event.finish_ms, event.steps) == (Outcome.DONE, LATER_MS, (ATTACHED,))


def test_what_could_not_be_plugged_in_has_failed_and_taking_it_back_is_nobodys_request() -> None:
    after = _told(_attaching(), FAILED, fault=FaultCode.VOLUME_ATTACH_FAILED)
    gone = _told(after, DETACHED)

    event = _event(after, "in")
    assert (event.outcome, event.fault_code, event.message) == (
        Outcome.FAILED,
        "VOLUME_ATTACH_FAILED",
        "why",
    )
    assert event.steps == (FAILED,)
    assert (gone.plugs, _event(gone, "in")) == ((), event)


def test_what_the_guest_keeps_has_failed_and_letting_go_late_does_not_change_that() -> None:
    had = _told(_attaching())
    kept = _told(_detaching(had), fault=FaultCode.DEVICE_HELD)
    again = _told(kept)

    assert _event(kept, "out").fault_code == FaultCode.DEVICE_HELD
    assert len(kept.plugs) == 1
    assert (again.plugs, again.fault, _event(again, "out").outcome) == ((), None, Outcome.FAILED)


def test_a_server_that_fails_itself_leaves_no_device_going_on() -> None:
    after = _told(_attaching(), state=HostState.ERROR, fault=FaultCode.DISK_FULL)

    assert _outcomes(after)["in"] is Outcome.FAILED
    assert after.event is not None
    assert after.event.action == DRIFT


def test_a_guest_that_goes_off_meanwhile_is_written_down_beside() -> None:
    asked = _attaching()

    after = _told(asked, ATTACHED, state=HostState.STOPPED)

    assert (after.event or _event(after, "in")).action == DRIFT
    assert (_event(after, "in").outcome, _event(after, "in").steps) == (Outcome.DONE, (ATTACHED,))
    assert left_behind(asked, after, now_ms=LATER_MS) == ()
    renamed = _begun(after, Action.RENAME, "name")
    assert {each.request_id: each.outcome for each in left_behind(after, renamed, now_ms=LATER_MS)} == {
        "in": Outcome.DONE,
        "op2": Outcome.DONE,
    }
    assert _outcomes(renamed) == {"name": Outcome.DONE}


def test_several_on_their_way_end_together_each_as_its_own() -> None:
    asked = _adding(_attaching())
    assert _outcomes(asked) == {"in": Outcome.RUNNING, "port": Outcome.RUNNING}
    assert left_behind(_attaching(), asked, now_ms=NOW_MS) == ()

    assert _outcomes(_told(asked)) == {"in": Outcome.DONE, "port": Outcome.DONE}


def test_a_fault_is_of_what_was_to_come_in_and_what_is_to_go_goes_on() -> None:
    had = _told(_attaching())
    after = _told(_adding(_detaching(had)), fault=FaultCode.INTERFACE_ATTACH_FAILED)

    assert _outcomes(after)["port"] is Outcome.FAILED
    assert _outcomes(after)["out"] is Outcome.RUNNING
    assert _outcomes(_told(after)) == _outcomes(after) | {"out": Outcome.DONE}


@pytest.mark.parametrize("later", [_adding, _detaching])
def test_what_is_taken_back_is_not_taken_for_the_latest_action(later: Callable[[Instance], Instance]) -> None:
    """It leaves by a plug of its own, which must not keep the event of whoever asked last for something else."""
    had = replace(_told(_attaching()), event=None)
    other = replace(VOLUME, id="00000000-0000-7000-8000-000000000022")
    arriving = with_volume(_begun(had, Action.ATTACH_VOLUME, "in"), other)

    after = _told(later(arriving), fault=FaultCode.VOLUME_ATTACH_FAILED)

    back = [each for each in after.plugs if each.volume_id == other.id]
    assert [(each.is_leaving, each.event_seq) for each in back] == [(True, 0)]
    assert _outcomes(after)["in"] is Outcome.FAILED


def test_a_detachment_asked_for_once_more_supersedes_the_first() -> None:
    first = _detaching(_told(_attaching()))
    again = _detaching(first, "again")

    (left,) = left_behind(first, again, now_ms=LATER_MS)

    assert (left.request_id, left.outcome) == ("out", Outcome.SUPERSEDED)
    assert _outcomes(again) == {"again": Outcome.RUNNING}


def test_an_action_begun_meanwhile_ends_neither_and_has_its_own_steps() -> None:
    cut = replace(ATTACHED, name=StepName.CUT_POWER)
    stopping = _begun(_attaching(), Action.STOP, "off")
    assert _outcomes(stopping) == {"off": Outcome.RUNNING, "in": Outcome.RUNNING}

    after = _told(stopping, ATTACHED, cut, state=HostState.STOPPED)

    assert _outcomes(after) == {"off": Outcome.DONE, "in": Outcome.DONE}
    assert (_event(after, "in").steps, len(_event(after, "off").steps)) == ((ATTACHED,), 2)


def test_a_task_that_overruns_fails_alone() -> None:
    stopping = _begun(_attaching(), Action.STOP, "off")
    fault = Fault(code="TASK_TIMEOUT", message="too late", host="h1", time_ms=LATER_MS)

    after = failed(stopping, fault, now_ms=LATER_MS, op_id="op2")

    assert _outcomes(after) == {"off": Outcome.FAILED, "in": Outcome.RUNNING}


@pytest.mark.parametrize("action", [Action.DELETE, Action.REBUILD])
def test_a_device_on_its_way_does_not_outlive_its_server(action: Action) -> None:
    ending = _begun(_attaching(), action, "end")

    left = {each.request_id: each.outcome for each in left_behind(ending, None, now_ms=LATER_MS)}

    assert left == {"end": Outcome.SUPERSEDED, "in": Outcome.SUPERSEDED}


def test_one_that_goes_on_for_longer_than_its_place_is_kept_is_not_written_over_a_newer_one() -> None:
    now = _attaching()
    for number in range(KEPT + 3):
        now = _begun(now, Action.RENAME, str(number))
    assert _outcomes(now)["in"] is Outcome.RUNNING

    left = left_behind(now, None, now_ms=LATER_MS)

    assert [each.request_id for each in left] == [str(KEPT + 2)]


def test_a_record_of_before_has_plugs_that_no_event_waits_for() -> None:
    """Written by an older program: the event had ended when it was asked for, and the plug names none."""
    asked = _attaching()
    old = replace(
        asked,
        event=replace(_event(asked, "in"), outcome=Outcome.DONE),
        plugs=tuple(replace(each, event_seq=0) for each in asked.plugs),
    )

    after = _told(old, FAILED, fault=FaultCode.VOLUME_ATTACH_FAILED)

    assert _outcomes(after) == {"in": Outcome.DONE}
    assert _outcomes(_begun(after, Action.RENAME, "name")) == {"name": Outcome.DONE}


def test_a_stopped_server_has_it_when_its_host_has_said_so() -> None:
    off = instance(VmState.STOPPED, TaskState.NONE, want=Want.STOP)

    asked = _attaching(off)

    assert _outcomes(asked) == {"in": Outcome.RUNNING}
    assert _outcomes(_told(asked, state=HostState.STOPPED)) == {"in": Outcome.DONE}
