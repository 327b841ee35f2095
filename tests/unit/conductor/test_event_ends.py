"""Events of what a conductor ends: the steps of a changed password, and of a server that ends with a device on its way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.conductor.core import flow, passwords
from fabric.conductor.core.draft import Draft, Found
from fabric.lifecycle.core import begin
from fabric.lifecycle.devices import with_port
from fabric.model.event import Event, EventStep, Outcome, StepName
from fabric.model.host import Session, SessionState, Use
from fabric.model.instance import Instance, Request
from fabric.model.network import NO_SLOT, Port
from fabric.model.session import HostState, Status
from fabric.model.states import Action, PowerState, VmState
from fabric.store.keys import ASSIGNMENT, EVENT, INSTANCE, SESSION, USE
from tests.unit.conductor.worlds import EPOCH_MS, assignment_of, guest, instance_id

ONE = instance_id(1)
NOW_MS = EPOCH_MS
LATER_MS = NOW_MS + 700
TENANT = Port(
    id="tenant",
    network_id="t",
    network_name="red",
    mac="fa:16:3e:00:00:aa",
    address="10.0.0.9",
    prefix_length=24,
    gateway="10.0.0.1",
    vni=7,
)
RUNNING = Instance(
    id=ONE,
    request=Request(guest=guest(1), network_id="net"),
    vm_state=VmState.ACTIVE,
    power=PowerState.RUNNING,
    host="h1",
    placement_epoch=1,
    slot=NO_SLOT,
)


def _begun(now: Instance, action: Action, request_id: str) -> Instance:
    return begin(now, action, now_ms=NOW_MS, op_id="op", request_id=request_id, user_id="ann")


def _draft(now: Instance) -> Draft:
    values = {
        SESSION.at("h1"): Session(host="h1", epoch=7, state=SessionState.UP),
        USE.at("h1"): Use(host="h1", claimed=now.request.guest.resources(), instances=1),
        INSTANCE.at(ONE): now,
        ASSIGNMENT.at("h1", ONE): assignment_of(now),
    }
    return Draft({key: Found(value, 5) for key, value in values.items()})


def _event(draft: Draft) -> Event:
    after = draft.get(INSTANCE, ONE)
    assert after is not None
    assert after.event is not None
    return after.event


@pytest.mark.parametrize(
    ("said", "code", "outcome"),
    [
        ({}, "", Outcome.DONE),
        ({"fault_code": "AGENT_FAILED", "message": "why"}, "AGENT_FAILED", Outcome.FAILED),
        ({"message": "nobody answered"}, passwords.UNANSWERED, Outcome.FAILED),
    ],
)
def test_a_changed_password_is_one_step(said: dict[str, str], code: str, outcome: Outcome) -> None:
    """The word for it was in the list of steps, and no event ever had it."""
    draft = _draft(_begun(RUNNING, Action.CHANGE_PASSWORD, "r"))

    words = {"fault_code": "", "message": "", **said}
    passwords.end(draft, "h1", 7, ONE, request_id="r", now_ms=LATER_MS, op_id="op2", **words)

    event = _event(draft)
    assert (event.outcome, event.fault_code) == (outcome, code)
    assert event.steps == (
        EventStep(
            name=StepName.SET_PASSWORD, host="h1", start_ms=NOW_MS, finish_ms=LATER_MS, fault_code=code
        ),
    )


def test_a_record_of_before_events_has_none_of_a_password_either() -> None:
    old = replace(_begun(RUNNING, Action.CHANGE_PASSWORD, "r"), event=None)
    draft = _draft(old)

    passwords.end(
        draft, "h1", 7, ONE, request_id="r", fault_code="", message="", now_ms=LATER_MS, op_id="op2"
    )

    after = draft.get(INSTANCE, ONE)
    assert after is not None
    assert after.event is None


def test_a_server_that_ends_takes_what_was_on_its_way_with_it() -> None:
    """Nobody says any more how that went: something else was asked for before it did."""
    attaching = with_port(_begun(RUNNING, Action.ATTACH_INTERFACE, "in"), TENANT)
    draft = _draft(_begun(attaching, Action.DELETE, "end"))
    now = draft.get(INSTANCE, ONE)
    assert now is not None
    gone = Status(
        epoch=7,
        instance_id=ONE,
        placement_epoch=1,
        generation=now.generation,
        action_seq=0,
        state=HostState.ABSENT,
        power=PowerState.NOSTATE,
    )

    assert flow.take_status(draft, "h1", 7, gone, now_ms=LATER_MS, op_id="op2") is flow.ACCEPTED

    kept = {seq: draft.puts[EVENT.at(ONE, seq)] for seq in ("1", "2")}
    assert {each.request_id: each.outcome for each in kept.values() if isinstance(each, Event)} == {
        "in": Outcome.SUPERSEDED,
        "end": Outcome.DONE,
    }
