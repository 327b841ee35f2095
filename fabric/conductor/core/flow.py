"""What becomes of what a host says: one decision per message, each written into a draft that others may share.

The lifecycle says what a record becomes; here is what else has to change in the same transaction: the assignment that follows an
intent, the claim that goes with a placement, the tombstone a placement leaves behind. Each decision relies on the host's session, so
nothing is written for a host by a conductor that has lost it (R1), and touches only that host's keys, the instance placed on it, and
where a placement moves, the next host's claim (I6).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from fabric.conductor.core.devices import device_reads, drop_devices, end_volume, free_volumes, leave_ports
from fabric.conductor.core.draft import Draft, Ref, ref
from fabric.conductor.core.fence import holds
from fabric.conductor.core.placement import drop_left, other_reads, unclaim
from fabric.lifecycle.core import Freed, Gone, Refused, Said, ordered, settle
from fabric.lifecycle.events import closed, left_behind, reopened, slot, stepped
from fabric.lifecycle.moves import is_waiting, offloading, place_of
from fabric.lifecycle.timers import dated, due
from fabric.model.event import Event, EventStep, StepName
from fabric.model.faults import FAULT_TEXT, FaultCode
from fabric.model.host import Use
from fabric.model.instance import Assignment, Instance, MoveWanted, Over, Refund, Tombstone
from fabric.model.session import HostState, Order, Release, Released, Status
from fabric.model.states import Action, PowerState, TaskState, VmState, Want
from fabric.network.addresses import ports_at
from fabric.network.claims import slot_on
from fabric.store.keys import (
    ASSIGNMENT,
    EVENT,
    HOST,
    INSTANCE,
    MOVE,
    OVER,
    REFUND,
    SESSION,
    TOMBSTONE,
    USE,
    VOLUME,
)

ATTEMPTS_LIMIT: Final = 3
"""Placements tried in all before a create ends in ERROR."""


class Verdict(enum.Enum):
    """What to tell the host."""

    ACCEPTED = enum.auto()
    REFUSED = enum.auto()
    LOST = enum.auto()
    """Nothing: the session is not ours any more."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was decided about one message, and why where the answer is no."""

    verdict: Verdict
    why: str = ""


ACCEPTED: Final = Outcome(Verdict.ACCEPTED)
LOST: Final = Outcome(Verdict.LOST)


# -- orders ---------------------------------------------------------------------------------------


def order_of(assignment: Assignment, epoch: int) -> Order:
    """An assignment as it is told to its host."""
    return Order(
        epoch=epoch,
        placement_epoch=assignment.placement_epoch,
        generation=assignment.generation,
        want=assignment.want,
        action_seq=assignment.action.seq,
        action=assignment.action.kind,
        action_image_id=assignment.action.image_id,
        stop_timeout_s=assignment.stop_timeout_s,
        guest=assignment.guest,
    )


def release_of(tombstone: Tombstone, epoch: int) -> Release:
    """A tombstone as it is told to its host."""
    return Release(
        epoch=epoch,
        instance_id=tombstone.instance_id,
        placement_epoch=tombstone.placement_epoch,
        directory=tombstone.directory,
    )


# -- statuses -------------------------------------------------------------------------------------


def status_reads(host: str, status: Status) -> tuple[Ref, ...]:
    """What `take_status` looks at first."""
    return (
        ref(SESSION, host),
        ref(INSTANCE, status.instance_id),
        ref(ASSIGNMENT, host, status.instance_id),
        ref(USE, host),
    )


def move_reads(draft: Draft, status: Status) -> tuple[Ref, ...]:
    """What `take_status` looks at besides: where the instance is on its way to another host, that one; when its first placement has failed,
    the alternates, and what is left of them.
    """
    now = draft.get(INSTANCE, status.instance_id)
    if now is None or status.state is not HostState.ERROR or not _is_being_placed(now):
        return (*other_reads(now), *device_reads(now))
    return device_reads(now) + tuple(
        each for name in now.alternates for each in (ref(SESSION, name), ref(HOST, name), ref(USE, name))
    )


NO_TIMERS: Final[Mapping[str, float]] = MappingProxyType({})
"""Nothing begins by itself."""


def take_status(
    draft: Draft,
    host: str,
    epoch: int,
    status: Status,
    *,
    now_ms: int,
    op_id: str,
    timers_s: Mapping[str, float] = NO_TIMERS,
) -> Outcome:
    """Write what a host's word changes. Keys as in `status_reads` and `move_reads`; `timers_s` sets the lifecycle's timers."""
    if not holds(draft.get(SESSION, host), epoch):
        return LOST
    now = draft.get(INSTANCE, status.instance_id)
    if now is None:
        # Its end was written, and the answer lost: what it says is so. Anything else about it is not.
        if status.state is HostState.ABSENT and draft.get(ASSIGNMENT, host, status.instance_id) is None:
            return ACCEPTED
        return Outcome(Verdict.REFUSED, "there is no such instance")
    after = settle(now, _said(host, status, now_ms=now_ms), now_ms=now_ms, op_id=op_id)
    if isinstance(after, Refused):
        return ACCEPTED if after is Refused.KNOWN else Outcome(Verdict.REFUSED, after.value)
    draft.rely_on(SESSION, host)
    if isinstance(after, Gone):
        let_go(draft, now, now_ms=now_ms, op_id=op_id, steps=_steps(host, status, now_ms=now_ms))
    elif isinstance(after, Freed):
        write(draft, now, after.after, gone_from=host)
    elif status.state is HostState.ERROR and _is_being_placed(now):
        _place_again(draft, now, after, now_ms=now_ms, op_id=op_id)
    else:
        write(draft, now, _going_on(now, after, timers_s, now_ms=now_ms, op_id=op_id))
        if is_waiting(after) and not after.host:
            look_again = MoveWanted(
                instance_id=now.id, request=after.request, excluded=now.host, create_time_ms=now_ms
            )
            draft.create(MOVE, now.id, value=look_again)
    return ACCEPTED


def _going_on(
    now: Instance, after: Instance, timers_s: Mapping[str, float], *, now_ms: int, op_id: str
) -> Instance:
    """The record, or where the next phase of the same action is to begin at once, that."""
    if now.task is not TaskState.SHELVING or after.vm_state is not VmState.SHELVED:
        return after
    if due(dated(now, after), timers_s, now_ms=now_ms) is not Action.SHELVE_OFFLOAD:
        return after
    return offloading(after, now_ms=now_ms, op_id=op_id)


def write(draft: Draft, now: Instance, after: Instance, *, gone_from: str = "") -> None:
    """Put the record, and its assignment where the intent has changed: a host follows its assignment, never the record.

    What the record does not name any more is let go of; `gone_from` is the host that has said that its copy is gone.
    """
    drop_left(draft, now, after, gone_from=gone_from, op_id=after.op_id)
    drop_devices(draft, now, after, is_gone=True, now_ms=after.update_time_ms, op_id=after.op_id)
    leave_ports(draft, now, after)
    draft.put(INSTANCE, after.id, value=dated(now, after))
    keep(draft, left_behind(now, after, now_ms=after.update_time_ms))
    if not after.host or (now.host, now.generation, now.want, now.action) == (
        after.host,
        after.generation,
        after.want,
        after.action,
    ):
        return
    assignment = draft.get(ASSIGNMENT, after.host, after.id)
    if assignment is not None:
        draft.put(ASSIGNMENT, after.host, after.id, value=ordered(assignment, after))


def keep(draft: Draft, events: Sequence[Event]) -> None:
    """Keep actions that their record does not carry any more. Who writes the record compares it, so nobody else writes these keys."""
    for event in events:
        draft.create(EVENT, event.instance_id, slot(event), value=event)


def let_go(
    draft: Draft,
    now: Instance,
    *,
    now_ms: int,
    op_id: str,
    steps: Sequence[EventStep] = (),
    is_gone: bool = True,
) -> tuple[str, ...]:
    """End an instance: its record, its assignments and its claims go; what stops late claims and starts the refund comes.

    Its host has said that its copy is gone; where it has another, that one is told. `steps` are its host's last. Where it has not said so
    (`is_gone`), the volumes are returned that its copy may still write to.
    """
    event = None if now.event is None else closed(stepped(now.event, steps), now_ms=now_ms)
    keep(draft, left_behind(replace(now, event=event), None, now_ms=now_ms))
    draft.delete(INSTANCE, now.id)
    drop_left(draft, now, None, gone_from=now.host, op_id=op_id)
    held = drop_devices(draft, now, None, is_gone=is_gone, now_ms=now_ms, op_id=op_id)
    draft.create(OVER, now.id, value=Over(instance_id=now.id, over_time_ms=now_ms))
    draft.create(REFUND, now.id, value=Refund(instance_id=now.id, project_id=now.request.guest.project_id))
    return held


# -- a placement that failed ----------------------------------------------------------------------


def _is_being_placed(now: Instance) -> bool:
    return now.task is TaskState.SPAWNING and now.want is Want.RUN


def _place_again(draft: Draft, now: Instance, failed: Instance, *, now_ms: int, op_id: str) -> None:
    """Move a failed placement to its next alternate that is up and has room; with none left, or no attempt, it stays in ERROR.

    Only the host's own word leads here, and a host that has said ERROR of a placement does not start it any more in that session
    (docs/concepts/host-protocol.md): so at no time may two hosts run it (I1). A host that is silent is never moved away from.
    """
    if failed.attempt < ATTEMPTS_LIMIT:
        for place, name in enumerate(failed.alternates):
            slot = _room(draft, failed, name)
            if slot is not None:
                rest = failed.alternates[place + 1 :]
                # The create's deadline stands: with one for each host it could take three times as long.
                onward = replace(
                    failed, want=Want.RUN, task_deadline_ms=now.task_deadline_ms, alternates=rest
                )
                _move(draft, onward, name, slot, now_ms=now_ms, op_id=op_id)
                return
    # Nothing is left half-made running: the failure has told the host to stop. A hard reboot or a delete works from here.
    write(draft, now, replace(failed, alternates=()))


def _room(draft: Draft, instance: Instance, name: str) -> int | None:
    """The address slot that the instance could have on this host; None where it does not fit or the host is not up."""
    use = draft.get(USE, name) or Use(host=name)
    return slot_on(draft.get(HOST, name), draft.get(SESSION, name), use, instance.request)


def _move(draft: Draft, failed: Instance, name: str, slot: int, *, now_ms: int, op_id: str) -> None:
    inventory = draft.get(HOST, name)
    use = draft.get(USE, name) or Use(host=name)
    if inventory is None:
        return
    guest = failed.request.guest
    ports = ports_at(inventory, slot, instance_id=failed.id, request=failed.request)
    moved = replace(
        failed,
        host=name,
        placement_epoch=failed.placement_epoch + 1,
        attempt=failed.attempt + 1,
        slot=slot,
        ports=ports,
        vm_state=VmState.BUILDING,
        task=TaskState.SPAWNING,
        power=PowerState.NOSTATE,
        event=None if failed.event is None else reopened(failed.event),
        update_time_ms=now_ms,
        op_id=op_id,
    )
    assignment = draft.get(ASSIGNMENT, failed.host, failed.id)
    draft.put(INSTANCE, moved.id, value=moved)
    draft.delete(ASSIGNMENT, failed.host, failed.id)
    draft.create(
        TOMBSTONE,
        failed.host,
        failed.id,
        value=Tombstone(instance_id=failed.id, placement_epoch=failed.placement_epoch),
    )
    unclaim(draft, place_of(failed), op_id=op_id)
    draft.rely_on(SESSION, name)
    draft.rely_on(HOST, name)
    draft.put(USE, name, value=use.plus(guest.resources(), slot, op_id=op_id))
    draft.create(
        ASSIGNMENT,
        name,
        moved.id,
        value=Assignment(
            instance_id=moved.id,
            placement_epoch=moved.placement_epoch,
            generation=moved.generation,
            want=Want.RUN,
            action=moved.action,
            guest=replace(guest, ports=ports, availability_zone=inventory.zone),
            stop_timeout_s=60 if assignment is None else assignment.stop_timeout_s,
        ),
    )


# -- releases -------------------------------------------------------------------------------------


def release_reads(host: str, released: Released) -> tuple[Ref, ...]:
    """What `take_released` looks at."""
    return (
        ref(SESSION, host),
        ref(USE, host),
        ref(TOMBSTONE, host, released.instance_id),
        ref(VOLUME, released.instance_id),
    )


def freed_reads(draft: Draft, host: str, released: Released) -> tuple[Ref, ...]:
    """What `take_released` looks at besides: the volumes that the copy had."""
    tombstone = draft.get(TOMBSTONE, host, released.instance_id)
    return () if tombstone is None else tuple(ref(VOLUME, each) for each in tombstone.volumes)


def take_released(
    draft: Draft, host: str, epoch: int, released: Released, *, now_ms: int, op_id: str
) -> Outcome:
    """Drop a tombstone whose copies are gone, and free what they had. Keys as in `release_reads` and `freed_reads`."""
    if not holds(draft.get(SESSION, host), epoch):
        return LOST
    tombstone = draft.get(TOMBSTONE, host, released.instance_id)
    if tombstone is None:
        return ACCEPTED
    if released.placement_epoch < tombstone.placement_epoch:
        return Outcome(Verdict.REFUSED, "a later copy is to be forgotten too")
    draft.rely_on(SESSION, host)
    draft.delete(TOMBSTONE, host, released.instance_id)
    free_volumes(draft, released.instance_id, tombstone.volumes, has_ended=True, now_ms=now_ms, op_id=op_id)
    end_volume(draft, host, released.instance_id, now_ms=now_ms, op_id=op_id)
    return ACCEPTED


def _steps(host: str, status: Status, *, now_ms: int) -> tuple[EventStep, ...]:
    """What the host has done, on our clock: it says how long ago, because its own may be wrong."""
    return tuple(
        EventStep(
            name=StepName(step.name) if step.name in _STEP_NUMBERS else StepName.OTHER,
            host=host,
            start_ms=now_ms - step.began_ago_ms,
            finish_ms=now_ms - step.began_ago_ms + step.took_ms,
            fault_code=step.fault_code,
        )
        for step in status.steps
    )


_STEP_NUMBERS: Final = frozenset(name.value for name in StepName)


def _said(host: str, status: Status, *, now_ms: int) -> Said:
    code = status.fault_code
    return Said(
        host=host,
        placement_epoch=status.placement_epoch,
        generation=status.generation,
        action_seq=status.action_seq,
        state=status.state,
        power=status.power,
        fault_code=code,
        # The words are ours: a host's own go into the log, where no tenant reads them.
        fault_message=FAULT_TEXT[FaultCode(code)] if code else "",
        steps=_steps(host, status, now_ms=now_ms),
    )
