"""A server's way from one host to another, and into an image and back: functions from a record and a fact to the next record.

A resize and a cold migration are one thing. The server is put into an image on the host where it is (`claimed`), made from it on the other
(`switched`), and then it waits, with its old copy off and untouched, until somebody confirms or reverts. What fails before takes it back.
What must hold, whatever dies in between:

- A record names one host and at most one `other` besides. Only the host it names may run it (I1): the other's order is to be off, and a
  server goes to the other only by the word of the host it is on that it is off there, or that it is gone.
- A host that is silent is never moved away from: it may be running the server.
- What a record no longer names is let go of in the very transaction that stops naming it (`left`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fabric.lifecycle.devices import has_local_volumes
from fabric.lifecycle.events import closed, reopened, stepped
from fabric.lifecycle.table import BY_ACTION, POWERS_WITH_MEMORY
from fabric.model.event import Event, EventStep, StepName
from fabric.model.faults import FAULT_TEXT, FaultCode
from fabric.model.instance import ActionMark, Fault, ImageRef, Instance, Move, OneShot, Place, Request
from fabric.model.placement import Decision
from fabric.model.session import HostState
from fabric.model.states import Action, PowerState, TaskState, VmState, Want

PLACEMENTS_LIMIT: Final = 3
"""Hosts tried for one unshelving before it is given up."""

MOVING: Final = frozenset(
    {TaskState.RESIZE_PREP, TaskState.RESIZE_MIGRATING, TaskState.RESIZE_MIGRATED, TaskState.RESIZE_FINISH}
)
"""The words of a server on its way to another host."""


# -- what is claimed ------------------------------------------------------------------------------


def place_of(now: Instance) -> Place:
    """The placement that the record names. The server must have one."""
    return Place(
        host=now.host,
        placement_epoch=now.placement_epoch,
        slot=now.slot,
        request=now.request,
        ports=now.ports,
        disk=now.disk,
    )


def places(now: Instance) -> tuple[Place, ...]:
    """Every placement that is claimed for the server, the one that may run it first."""
    here = (place_of(now),) if now.host else ()
    return here if now.move is None else (*here, now.move.other)


def left(now: Instance, after: Instance | None) -> tuple[Place, ...]:
    """The placements that the next record does not name any more: their claims and their orders go with it."""
    kept = set() if after is None else {(each.host, each.placement_epoch) for each in places(after)}
    return tuple(each for each in places(now) if (each.host, each.placement_epoch) not in kept)


@dataclass(frozen=True, slots=True)
class Dues:
    """What the reconciler is to be told of beside a write: an image nobody needs any more, a charge that may have changed."""

    discard_id: str = ""
    recharge: bool = False


def dues(now: Instance, after: Instance | None) -> Dues:
    """What follows from a write for others. `after` is None where the server ends: then its whole charge is given back anyway."""
    is_dropped = now.carrier_id and (after is None or after.carrier_id != now.carrier_id)
    was_moving = now.move is not None or now.task is TaskState.RESIZE_PREP
    has_ended = after is not None and after.move is None and after.task not in MOVING
    return Dues(discard_id=now.carrier_id if is_dropped else "", recharge=was_moving and has_ended)


def next_epoch(now: Instance) -> int:
    """The placement epoch of the next claim: above every one there was, also of placements that were given up."""
    return max(now.highest_epoch, *(each.placement_epoch for each in places(now)), now.placement_epoch) + 1


# -- by the scheduler -----------------------------------------------------------------------------


def is_waiting(now: Instance) -> bool:
    """Whether the server waits for a scheduler to find it a host."""
    if now.want is Want.ABSENT or now.move is not None:
        return False
    return now.task is TaskState.RESIZE_PREP or (now.task is TaskState.UNSHELVING and not now.host)


def claimed(
    now: Instance, there: Place, *, carrier_id: str, decision: Decision | None, now_ms: int, op_id: str
) -> Instance:
    """A host was found to move to: the server is to go off, and its disk into the image."""
    return replace(
        now,
        event=_scheduled(now, there.host, now_ms=now_ms),
        task=TaskState.RESIZE_MIGRATING,
        want=Want.STOP,
        generation=now.generation + 1,
        action=ActionMark(seq=now.action.seq + 1, kind=OneShot.SNAPSHOT, image_id=carrier_id),
        move=Move(other=there, want=now.want, vm_state=now.vm_state),
        highest_epoch=there.placement_epoch,
        carrier_id=carrier_id,
        uploaded=None,
        decision=decision,
        update_time_ms=now_ms,
        op_id=op_id,
    )


def raised(now: Instance, there: Place, *, decision: Decision | None, now_ms: int, op_id: str) -> Instance:
    """A host was found for a server that is nowhere: it is to be made there, from its image where it has one."""
    return replace(
        now,
        event=_scheduled(now, there.host, now_ms=now_ms),
        host=there.host,
        placement_epoch=there.placement_epoch,
        slot=there.slot,
        ports=there.ports,
        disk=there.disk,
        highest_epoch=there.placement_epoch,
        power=PowerState.NOSTATE,
        decision=decision,
        update_time_ms=now_ms,
        op_id=op_id,
    )


def nowhere_to_go(
    now: Instance, fault: Fault, decision: Decision | None, *, now_ms: int, op_id: str
) -> Instance:
    """No host was found: the server stays what it is, where it is, and the fault says why."""
    is_shelved = now.task is TaskState.UNSHELVING
    return replace(
        now,
        task=TaskState.NONE,
        task_deadline_ms=0,
        want=Want.STOP if is_shelved else now.want,
        # Its host is asked again how the server is: what it said meanwhile was seen, and ended nothing.
        generation=now.generation + (now.host != ""),
        fault=fault,
        decision=decision if decision is not None else now.decision,
        event=_failed(now, fault, now_ms=now_ms),
        update_time_ms=now_ms,
        op_id=op_id,
    )


# -- by the word of a host ------------------------------------------------------------------------


def carried(now: Instance) -> ImageRef | None:
    """The image that the server's disk is in, where all of it is."""
    return now.uploaded if now.uploaded is not None and now.uploaded.id == now.carrier_id else None


def switched(now: Instance, disk: ImageRef, *, now_ms: int, op_id: str) -> Instance:
    """Its host has said that the server is off there, and its disk is in the image: it is to be made from that on the other host."""
    move = _move_of(now)
    there = move.other
    return replace(
        now,
        host=there.host,
        placement_epoch=there.placement_epoch,
        slot=there.slot,
        ports=there.ports,
        request=_sized(now.request, there.request),
        disk=disk,
        task=TaskState.RESIZE_FINISH,
        want=move.want,
        generation=now.generation + 1,
        action=ActionMark(seq=now.action.seq + 1, kind=OneShot.REBUILD),
        move=replace(move, other=place_of(now), has_switched=True),
        uploaded=None,
        power=PowerState.NOSTATE,
        update_time_ms=now_ms,
        op_id=op_id,
    )


def undone(now: Instance, fault: Fault, *, now_ms: int, op_id: str) -> Instance:
    """It failed before the switch: the server goes on where it always was."""
    move = _move_of(now)
    return replace(
        now,
        vm_state=move.vm_state,
        task=TaskState.NONE,
        task_deadline_ms=0,
        want=move.want,
        generation=now.generation + 1,
        action=replace(now.action, kind=OneShot.NONE, image_id=""),
        move=None,
        carrier_id="",
        uploaded=None,
        fault=fault,
        event=_failed(now, fault, now_ms=now_ms),
        update_time_ms=now_ms,
        op_id=op_id,
    )


def returned(now: Instance, fault: Fault | None, *, now_ms: int, op_id: str) -> Instance:
    """Its host has said that the server is off there, or gone: it goes back to where it came from, with the disk it left there.

    With a fault it failed, and is as it was; without one it was asked for, and is under way until the server is what it was.
    """
    move = _move_of(now)
    back = move.other
    is_asked = fault is None
    rule = BY_ACTION[Action.REVERT_RESIZE]
    return replace(
        now,
        host=back.host,
        placement_epoch=back.placement_epoch,
        slot=back.slot,
        ports=back.ports,
        request=_sized(now.request, back.request),
        disk=back.disk,
        # What is asked for is shown by its task; should it fail now, the server is off, which is what it then says.
        vm_state=VmState.STOPPED if is_asked else move.vm_state,
        task=TaskState.RESIZE_REVERTING if is_asked else TaskState.NONE,
        task_deadline_ms=now_ms + rule.deadline_s * 1000 if is_asked else 0,
        want=move.want,
        generation=now.generation + 1,
        action=replace(now.action, kind=OneShot.NONE, image_id=""),
        move=None,
        carrier_id="",
        uploaded=None,
        power=PowerState.NOSTATE,
        fault=fault,
        event=_failed(now, fault, now_ms=now_ms),
        update_time_ms=now_ms,
        op_id=op_id,
    )


def _sized(request: Request, size: Request) -> Request:
    """The request with the flavor of another: what else has been changed of it since, a name or its metadata, stays."""
    was = size.guest
    return replace(
        request,
        flavor_id=size.flavor_id,
        flavor_name=size.flavor_name,
        required_traits=size.required_traits,
        forbidden_traits=size.forbidden_traits,
        guest=replace(request.guest, vcpus=was.vcpus, ram_mib=was.ram_mib, disk_gib=was.disk_gib),
    )


def taken_back(now: Instance, fault: Fault, *, now_ms: int, op_id: str) -> Instance:
    """It failed after the switch, and the other host may be running the server: it must say first that it does not."""
    rule = BY_ACTION[Action.REVERT_RESIZE]
    return replace(
        now,
        vm_state=VmState.RESIZED,
        task=TaskState.RESIZE_REVERTING,
        task_deadline_ms=now_ms + rule.deadline_s * 1000,
        want=Want.ABSENT,
        generation=now.generation + 1,
        fault=fault,
        event=_failed(now, fault, now_ms=now_ms),
        update_time_ms=now_ms,
        op_id=op_id,
    )


def failed_there(now: Instance, fault: Fault, power: PowerState, *, now_ms: int, op_id: str) -> Instance:
    """The host that the server has moved to has given it up."""
    if power in POWERS_WITH_MEMORY:
        return taken_back(now, fault, now_ms=now_ms, op_id=op_id)
    return returned(now, fault, now_ms=now_ms, op_id=op_id)


def arrived(now: Instance, *, want: Want, now_ms: int) -> Instance:
    """The server is what was asked for, on the other host: it waits to be confirmed or reverted."""
    is_news = want is not now.want
    return replace(
        now,
        vm_state=VmState.RESIZED,
        task=TaskState.NONE,
        task_deadline_ms=0,
        want=want,
        generation=now.generation + 1 if is_news else now.generation,
        carrier_id="",
        fault=None,
        launch_time_ms=now.launch_time_ms or (now_ms if want is Want.RUN else 0),
    )


def not_raised(now: Instance, fault: Fault, *, now_ms: int, op_id: str) -> Instance:
    """The host that was to raise a shelved server has given up, with nothing running: another one is looked for, a few times; but not for
    one whose volumes are files of that host.
    """
    is_over = now.attempt >= PLACEMENTS_LIMIT or has_local_volumes(now)
    return replace(
        now,
        host="",
        slot=0,
        ports=(),
        disk=None,
        highest_epoch=max(now.highest_epoch, now.placement_epoch),
        task=TaskState.NONE if is_over else now.task,
        task_deadline_ms=0 if is_over else now.task_deadline_ms,
        want=Want.STOP if is_over else now.want,
        attempt=1 if is_over else now.attempt + 1,
        power=PowerState.NOSTATE,
        fault=fault,
        event=_failed(now, fault, now_ms=now_ms) if is_over else now.event,
        update_time_ms=now_ms,
        op_id=op_id,
    )


def heard(
    now: Instance, seen: Instance, state: HostState, fault: Fault | None, *, now_ms: int, op_id: str
) -> Instance | None:
    """What the word of the server's host means for a move, or for a server on its way into an image or out of one; None where it means
    what it means for every server.

    `seen` is the record with what the host says to be there; `fault` what it could not do.
    """
    if now.task is TaskState.RESIZE_PREP and now.move is None and fault is None:
        # Nothing was asked of its host yet: what it says is seen, and ends nothing.
        return seen
    if now.task is TaskState.UNSHELVING and now.vm_state is VmState.SHELVED_OFFLOADED and fault is not None:
        if seen.power in POWERS_WITH_MEMORY:
            return None
        return not_raised(seen, fault, now_ms=now_ms, op_id=op_id)
    if now.move is None:
        return None
    if not now.move.has_switched:
        return _heard_before(now, seen, state, fault, now_ms=now_ms, op_id=op_id)
    if now.task not in MOVING:
        return None
    if fault is not None:
        return failed_there(seen, fault, seen.power, now_ms=now_ms, op_id=op_id)
    if state is HostState.ACTIVE and now.want is Want.RUN:
        return arrived(seen, want=Want.RUN, now_ms=now_ms)
    # Wanted to run, it had run and has gone off by itself: it has arrived all the same.
    return arrived(seen, want=Want.STOP, now_ms=now_ms) if state is HostState.STOPPED else None


def _heard_before(
    now: Instance, seen: Instance, state: HostState, fault: Fault | None, *, now_ms: int, op_id: str
) -> Instance | None:
    if now.task not in MOVING:
        return None
    if fault is not None:
        return undone(seen, fault, now_ms=now_ms, op_id=op_id)
    if state is not HostState.STOPPED:
        return None
    disk = carried(seen)
    if disk is None:
        return undone(seen, _not_handed_in(seen, now_ms=now_ms), now_ms=now_ms, op_id=op_id)
    return switched(seen, disk, now_ms=now_ms, op_id=op_id)


def _not_handed_in(seen: Instance, *, now_ms: int) -> Fault:
    code = FaultCode.IMAGE_UPLOAD_FAILED
    return Fault(code=code, message=FAULT_TEXT[code], host=seen.host, time_ms=now_ms)


def offloading(shelved: Instance, *, now_ms: int, op_id: str) -> Instance:
    """The server has just been shelved, and its host is to be freed at once: that is part of the same action."""
    rule = BY_ACTION[Action.SHELVE_OFFLOAD]
    return replace(
        shelved,
        task=rule.task,
        task_deadline_ms=now_ms + rule.deadline_s * 1000,
        want=Want.ABSENT,
        generation=shelved.generation + 1,
        event=None if shelved.event is None else reopened(shelved.event),
        update_time_ms=now_ms,
        op_id=op_id,
    )


# -- by people, or by time ------------------------------------------------------------------------


def confirmed(now: Instance) -> Instance:
    """The server stays what it is now; what was left on the host it came from goes."""
    return replace(
        now,
        vm_state=VmState.ACTIVE if now.want is Want.RUN else VmState.STOPPED,
        move=None,
        fault=None,
    )


def settled_down(now: Instance, *, now_ms: int, op_id: str) -> Instance:
    """Somebody has said that nothing is in flight of a server between two hosts: it is where its record says, and has gone no further."""
    move = _move_of(now)
    if move.has_switched:
        return replace(now, vm_state=VmState.RESIZED, update_time_ms=now_ms, op_id=op_id)
    return replace(
        now,
        want=move.want,
        generation=now.generation + 1,
        action=replace(now.action, kind=OneShot.NONE, image_id=""),
        move=None,
        carrier_id="",
        uploaded=None,
        update_time_ms=now_ms,
        op_id=op_id,
    )


def overdue(now: Instance, fault: Fault, *, now_ms: int, op_id: str) -> Instance | None:
    """What a move becomes that was not done by its deadline; None where it is no move that is under way, or its failure is like any other.

    Before the switch it is undone: only where the server came from can have run it. After, it is taken back, which takes the word of the
    host it went to.
    """
    if now.want is Want.ABSENT:
        return None
    if is_waiting(now):
        return nowhere_to_go(now, fault, None, now_ms=now_ms, op_id=op_id)
    if now.move is None:
        return None
    if not now.move.has_switched:
        return undone(now, fault, now_ms=now_ms, op_id=op_id)
    if now.task in MOVING:
        return taken_back(now, fault, now_ms=now_ms, op_id=op_id)
    return None


def _scheduled(now: Instance, host: str, *, now_ms: int) -> Event | None:
    if now.event is None:
        return None
    step = EventStep(name=StepName.SCHEDULE, host=host, start_ms=now.task_start_ms, finish_ms=now_ms)
    return stepped(now.event, (step,))


def _failed(now: Instance, fault: Fault | None, *, now_ms: int) -> Event | None:
    return now.event if now.event is None or fault is None else closed(now.event, now_ms=now_ms, fault=fault)


def _move_of(now: Instance) -> Move:
    if now.move is None:
        raise ValueError(f"server {now.id} is not on its way to another host")
    return now.move
