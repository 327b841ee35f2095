"""What is written down of every action, as rules on values: who asked, when, each step, and how it ended.

The record of a server carries its latest action. One that a later action, or the server's end, leaves behind is kept under a key of its
own, of which there are `KEPT` for each server: the oldest makes room. So an action is written down by the transactions that it takes
anyhow, and nothing has to be read for it: `left_behind` says from the record before and after what is to be put.

Plugging something in or out has no task, and other actions may be begun meanwhile: its event goes on in the record, beside the latest one,
until the host has said how it went (`Instance.plugging`; a plug names its event). It ends with its plug, whatever becomes of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from fabric.model.event import Event, EventStep, Outcome, StepName
from fabric.model.instance import Build, Fault, Instance
from fabric.model.states import Action, TaskState
from fabric.model.volume import Plug

KEPT: Final = 32
"""How many actions of one server are kept, beside the latest; when the server is gone, as long as what tells that it is over."""

STEPS_LIMIT: Final = 24
"""Steps kept of one action: the last."""

MESSAGE_LIMIT: Final = 255

DRIFT: Final = "drift"
"""The action of a guest that went its own way, or came late to what was wanted of it. Several in a row are written down as one."""


def slot(event: Event) -> str:
    """The last field of the event's key."""
    return str(event.seq % KEPT)


def opened(now: Instance, action: Action, *, request_id: str, user_id: str, now_ms: int, op_id: str) -> Event:
    """The event of an action that begins. Begun again under the same request id it is the same one, going on."""
    before = now.event
    if before is not None and request_id and before.request_id == request_id:
        return reopened(before)
    return Event(
        seq=1 if before is None else before.seq + 1,
        instance_id=now.id,
        project_id=now.request.guest.project_id,
        action=action,
        request_id=request_id or op_id,
        user_id=user_id,
        start_ms=now_ms,
    )


def accepted(build: Build) -> Event:
    """The event of a create that nobody has placed yet."""
    return Event(
        seq=1,
        instance_id=build.instance_id,
        project_id=build.project_id,
        action=Action.CREATE,
        request_id=build.request_id,
        user_id=build.request.guest.user_id,
        start_ms=build.create_time_ms,
    )


def created(build: Build, *, now_ms: int, host: str = "", fault: Fault | None = None) -> Event:
    """The event of a create, as whoever places the server begins it: with a host, or with the fault that there is none."""
    step = EventStep(
        name=StepName.SCHEDULE,
        host=host,
        start_ms=build.create_time_ms,
        finish_ms=now_ms,
        fault_code="" if fault is None else fault.code,
    )
    event = replace(accepted(build), steps=(step,))
    return event if fault is None else closed(event, fault=fault, now_ms=now_ms)


def cancelled(build: Build, create: Event, *, now_ms: int) -> Event:
    """The delete that ended a create before any host had it, begun and done at once."""
    return Event(
        seq=create.seq + 1,
        instance_id=build.instance_id,
        project_id=build.project_id,
        action=Action.DELETE,
        request_id=build.cancel_request_id,
        user_id=build.cancelled_by,
        start_ms=now_ms,
        finish_ms=now_ms,
        outcome=Outcome.DONE,
    )


def closed(event: Event, *, now_ms: int, fault: Fault | None = None, outcome: Outcome | None = None) -> Event:
    """The event as it ended. One that has ended already ended then."""
    if event.outcome is not Outcome.RUNNING:
        return event
    return replace(
        event,
        finish_ms=max(event.start_ms, now_ms),
        outcome=outcome or (Outcome.DONE if fault is None else Outcome.FAILED),
        fault_code="" if fault is None else fault.code,
        message="" if fault is None else fault.message[:MESSAGE_LIMIT],
    )


def reopened(event: Event) -> Event:
    """The event of an action that goes on after all: on another host, or once more."""
    return replace(event, finish_ms=0, outcome=Outcome.RUNNING, fault_code="", message="")


def stepped(event: Event, steps: Iterable[EventStep]) -> Event:
    """The event with more steps, none of them before the action or the one before it had begun."""
    every = [*event.steps]
    for step in steps:
        start_ms = max(step.start_ms, every[-1].start_ms if every else event.start_ms)
        every.append(replace(step, start_ms=start_ms, finish_ms=max(step.finish_ms, start_ms)))
    return replace(event, steps=tuple(every[-STEPS_LIMIT:]))


_OF_DEVICES: Final = frozenset({StepName.ATTACH, StepName.DETACH})
"""Steps that belong to devices, also where they were taken towards something else."""


def noted(
    before: Instance,
    after: Instance,
    steps: Sequence[EventStep],
    *,
    now_ms: int,
    op_id: str,
    fault: Fault | None = None,
) -> Instance:
    """The record with what its host's word means for its events: the latest action ends with its task, that of a device with its plug;
    drift is one of its own. `fault` is what the host says that it could not do.
    """
    after = _plugs_noted(before, after, steps, fault, now_ms=now_ms)
    if before.task is not TaskState.NONE:
        event = before.event if after.event is None else after.event
        if event is None:
            return after
        event = stepped(event, steps)
        return replace(after, event=closed(event, now_ms=now_ms) if after.task is TaskState.NONE else event)
    if after.vm_state is before.vm_state:
        return after
    drift = _drifted(before, after, now_ms=now_ms, op_id=op_id)
    return replace(after, event=drift, plugging=behind(after, drift, before.plugs))


def _plugs_noted(
    before: Instance, after: Instance, steps: Sequence[EventStep], fault: Fault | None, *, now_ms: int
) -> Instance:
    """The record with those events ended whose devices are not on their way any more. Ended, they stay until the next action begins."""
    over = {each.event_seq for each in before.plugs} - {each.event_seq for each in after.plugs}
    if not over:
        return after
    if before.task is not TaskState.NONE:
        steps = [each for each in steps if each.name in _OF_DEVICES]

    def ended(event: Event) -> Event:
        if event.seq not in over or event.outcome is not Outcome.RUNNING:
            return event
        return closed(stepped(event, steps), now_ms=now_ms, fault=fault)

    return replace(
        after,
        event=None if after.event is None else ended(after.event),
        plugging=tuple(map(ended, after.plugging)),
    )


def behind(now: Instance, latest: Event, plugs: Iterable[Plug]) -> tuple[Event, ...]:
    """The events that go on beside the one that is to be the latest: those of the plugs."""
    on_their_way = {each.event_seq for each in plugs}
    every = now.plugging if now.event is None else (*now.plugging, now.event)
    return tuple(each for each in every if each.seq in on_their_way and each.seq != latest.seq)


def _drifted(before: Instance, after: Instance, *, now_ms: int, op_id: str) -> Event:
    latest = before.event
    is_more = latest is not None and latest.action == DRIFT
    return Event(
        seq=1 if latest is None else latest.seq if is_more else latest.seq + 1,
        instance_id=after.id,
        project_id=after.request.guest.project_id,
        action=DRIFT,
        request_id=latest.request_id if latest is not None and is_more else op_id,
        start_ms=latest.start_ms if latest is not None and is_more else now_ms,
        finish_ms=now_ms,
        outcome=Outcome.DONE if after.fault is None else Outcome.FAILED,
        fault_code="" if after.fault is None else after.fault.code,
        message=f"from {before.vm_state.name.lower()} to {after.vm_state.name.lower()}, by itself",
    )


def left_behind(before: Instance, after: Instance | None, *, now_ms: int) -> tuple[Event, ...]:
    """The events that `after` does not carry any more (None: there is no record any more), as they are to be kept.

    One that has gone on for so long that a later one has its place is not.
    """
    carried = set() if after is None else {each.seq for each in written_down(after)}
    newest = max((each.seq for each in written_down(after or before)), default=0)
    return tuple(
        closed(each, now_ms=now_ms, outcome=Outcome.SUPERSEDED)
        for each in written_down(before)
        if each.seq not in carried and each.seq > newest - KEPT
    )


def written_down(now: Instance) -> tuple[Event, ...]:
    """The events that the record itself carries, the latest first."""
    return now.plugging if now.event is None else (now.event, *now.plugging)
