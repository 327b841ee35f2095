"""What is put right without anybody asking: tasks that overran, deletions that no host will confirm, books that do not balance.

Any conductor of the cell may do it, because every repair compares what it was decided on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from fabric.conductor.core.devices import device_reads
from fabric.conductor.core.draft import Draft, Ref, ref
from fabric.conductor.core.fence import LIVE
from fabric.conductor.core.flow import let_go, write
from fabric.conductor.core.placement import other_reads, slots_on
from fabric.lifecycle.core import begin, ending, expired, failed
from fabric.lifecycle.moves import confirmed, is_waiting, overdue, settled_down
from fabric.lifecycle.timers import due
from fabric.model.host import Resources, Session, Use
from fabric.model.instance import Assignment, Discard, Fault, Instance, Tombstone
from fabric.model.states import Action, TaskState, VmState, Want
from fabric.store.keys import ASSIGNMENT, DISCARD, INSTANCE, MOVE, SESSION, TOMBSTONE, USE

TASK_TIMEOUT: Final = "TASK_TIMEOUT"
"""The fault of what was not done by its deadline. Not among the words of hosts: only the control plane says it."""

AGAIN_MS: Final = 15_000
"""How long after a deletion has failed it is ordered anew."""


# -- deadlines ------------------------------------------------------------------------------------


def is_due(now: Instance, session: Session | None, *, now_ms: int) -> bool:
    """Whether somebody must look at this instance."""
    if not now.host:
        return is_waiting(now) and expired(now, now_ms=now_ms)
    return (
        expired(now, now_ms=now_ms)
        or _is_buried(now, session)
        or _is_left(now, session, now_ms=now_ms)
        or _is_astray(now)
    )


def overdue_reads(host: str, instance_id: str) -> tuple[Ref, ...]:
    """What `end_overdue` looks at first. `host` is empty for an instance that waits for one."""
    about = (ref(INSTANCE, instance_id), ref(MOVE, instance_id))
    if not host:
        return about
    return (
        *about,
        ref(SESSION, host),
        ref(ASSIGNMENT, host, instance_id),
        ref(USE, host),
        ref(TOMBSTONE, host, instance_id),
    )


def further_reads(draft: Draft, instance_id: str) -> tuple[Ref, ...]:
    """What `end_overdue` and `begin_timed` look at besides: the other host of an instance on its way, and its volumes."""
    now = draft.get(INSTANCE, instance_id)
    return (*other_reads(now), *device_reads(now))


def end_overdue(draft: Draft, host: str, instance_id: str, *, now_ms: int, op_id: str) -> bool:
    """End what has overrun its deadline. Keys as in `overdue_reads`, for the host that the instance was thought to be on, and in
    `further_reads`.

    A task becomes a fault (`want` stays, so what comes about late is still taken in); a move goes back where that is safe. What is to leave
    its host is ordered to anew, with the fault shown meanwhile, until its host confirms it. A deletion whose host cannot be reached is
    carried out in the records, with a tombstone: the host cleans up before it is UP again (R8). Nothing else is taken from a silent host.
    """
    now = draft.get(INSTANCE, instance_id)
    session = draft.get(SESSION, host) if host else None
    if now is None or now.host != host or not is_due(now, session, now_ms=now_ms):
        return False
    if host:
        draft.rely_on(SESSION, host)
    if _is_buried(now, session):
        volumes = let_go(draft, now, now_ms=now_ms, op_id=op_id, is_gone=False)
        draft.put(
            TOMBSTONE,
            host,
            instance_id,
            value=Tombstone(instance_id=instance_id, placement_epoch=now.placement_epoch, volumes=volumes),
        )
        return True
    after = _late(now, host, now_ms=now_ms, op_id=op_id)
    again = ending(after)
    if again is not None and after.task is TaskState.NONE and _is_live(session):
        after = begin(
            after,
            again,
            now_ms=now_ms,
            op_id=op_id,
            request_id=now.task_request_id,
            user_id=now.task_by,
            is_admin=True,
        )
    write(draft, now, after)
    if is_waiting(now):
        _call_off(draft, now)
    return True


def _late(now: Instance, host: str, *, now_ms: int, op_id: str) -> Instance:
    """The record after what was in flight has overrun its deadline, or after somebody said that nothing is in flight."""
    if now.task is TaskState.NONE:
        return now if not _is_astray(now) else settled_down(now, now_ms=now_ms, op_id=op_id)
    fault = Fault(
        code=TASK_TIMEOUT,
        message=f"{now.task.name.lower().replace('_', ' ')} was not done by its deadline",
        host=host,
        time_ms=now_ms,
    )
    return overdue(now, fault, now_ms=now_ms, op_id=op_id) or failed(now, fault, now_ms=now_ms, op_id=op_id)


def _call_off(draft: Draft, now: Instance) -> None:
    """Take away the work that nobody has done, with the image that was made for it."""
    work = draft.get(MOVE, now.id)
    if work is None:
        return
    draft.delete(MOVE, now.id)
    if work.image_id:
        discard = Discard(image_id=work.image_id, instance_id=now.id, project_id=now.request.guest.project_id)
        draft.create(DISCARD, work.image_id, value=discard)


def _is_left(now: Instance, session: Session | None, *, now_ms: int) -> bool:
    """Leaving its host has failed: it has no deadline any more, but must end all the same, by its host."""
    if now.want is not Want.ABSENT or now.task is not TaskState.NONE or not _is_live(session):
        return False
    return now_ms - now.update_time_ms > AGAIN_MS


def _is_buried(now: Instance, session: Session | None) -> bool:
    """It is to be deleted, and nobody is there who could confirm it: that is not waited for, as little as in Nova (its local delete)."""
    return not _is_live(session) and ending(now) is Action.DELETE


def _is_astray(now: Instance) -> bool:
    """An operator has said what state it is in, while it was between two hosts."""
    return (
        now.move is not None
        and now.task is TaskState.NONE
        and now.want is not Want.ABSENT
        and (not now.move.has_switched or now.vm_state not in {VmState.RESIZED, VmState.ERROR})
    )


def _is_live(session: Session | None) -> bool:
    return session is not None and session.state in LIVE


# -- what begins by itself ------------------------------------------------------------------------


def timed_reads(host: str, instance_id: str) -> tuple[Ref, ...]:
    """What `begin_timed` looks at first."""
    return overdue_reads(host, instance_id)


def begin_timed(
    draft: Draft, host: str, instance_id: str, timers_s: Mapping[str, float], *, now_ms: int, op_id: str
) -> Action | None:
    """Begin what an instance's time has come for; None where there is nothing. Keys as in `timed_reads` and `further_reads`."""
    now = draft.get(INSTANCE, instance_id)
    action = None if now is None or now.host != host else due(now, timers_s, now_ms=now_ms)
    if now is None or action is None:
        return None
    after = begin(now, action, now_ms=now_ms, op_id=op_id, is_admin=True)
    write(draft, now, confirmed(after) if action is Action.CONFIRM_RESIZE else after)
    return action


# -- books ----------------------------------------------------------------------------------------


def is_even(use: Use | None, assignments: Iterable[Assignment]) -> bool:
    """Whether what is claimed of a host is what is assigned to it, as far as that can be told without the records.

    Each port of a guest on its host's own network has a slot; those that guests have not let go of yet are in their records only.
    """
    assigned = tuple(assignments)
    claimed, instances = _sum(assigned)
    book = use or Use(host="")
    ports = sum(sum(port.is_host_local for port in each.guest.ports) for each in assigned)
    return (book.claimed, book.instances, len(book.slots)) == (claimed, instances, ports)


def recounted(
    host: str,
    assignments: Iterable[Assignment],
    instances: Iterable[Instance],
    *,
    op_id: str,
    volumes_gib: int = 0,
) -> Use:
    """The host's book made anew from what is assigned to it, with the address slots of those instances. What volumes take is kept."""
    claimed, count = _sum(assignments)
    slots = {slot for each in instances for slot in slots_on(host, each)}
    return Use(
        host=host,
        claimed=claimed,
        instances=count,
        slots=tuple(sorted(slots)),
        op_id=op_id,
        volumes_gib=volumes_gib,
    )


def _sum(assignments: Iterable[Assignment]) -> tuple[Resources, int]:
    claimed, count = Resources(), 0
    for assignment in assignments:
        claimed, count = claimed + assignment.guest.resources(), count + 1
    return claimed, count
