"""What is put right without anybody asking: tasks that overran, deletions that no host will confirm, books that do not balance.

Any conductor of the cell may do it, because every repair compares what it was decided on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fabric.conductor.core.draft import Draft, Ref, ref
from fabric.conductor.core.fence import LIVE
from fabric.conductor.core.flow import let_go, write
from fabric.lifecycle.core import begin, expired, failed
from fabric.model.host import Resources, Session, Use
from fabric.model.instance import Assignment, Fault, Instance, Tombstone
from fabric.model.states import Action, TaskState, Want
from fabric.store.keys import ASSIGNMENT, INSTANCE, SESSION, TOMBSTONE, USE

TASK_TIMEOUT: Final = "TASK_TIMEOUT"
"""The fault of what was not done by its deadline. Not among the words of hosts: only the control plane says it."""

AGAIN_MS: Final = 15_000
"""How long after a deletion has failed it is ordered anew."""


# -- deadlines ------------------------------------------------------------------------------------


def is_due(now: Instance, session: Session | None, *, now_ms: int) -> bool:
    """Whether somebody must look at this instance."""
    return bool(now.host) and (expired(now, now_ms=now_ms) or _is_left(now, session, now_ms=now_ms))


def overdue_reads(host: str, instance_id: str) -> tuple[Ref, ...]:
    """What `end_overdue` looks at."""
    return (
        ref(INSTANCE, instance_id),
        ref(SESSION, host),
        ref(ASSIGNMENT, host, instance_id),
        ref(USE, host),
        ref(TOMBSTONE, host, instance_id),
    )


def end_overdue(draft: Draft, host: str, instance_id: str, *, now_ms: int, op_id: str) -> bool:
    """End what has overrun its deadline. Keys as in `overdue_reads`, for the host that the instance was thought to be on.

    A task becomes a fault (`want` stays, so what comes about late is still taken in). A deletion is ordered anew, with the fault shown
    meanwhile, until its host confirms it. One whose host cannot be reached is carried out in the records, with a tombstone: the host cleans
    up before it is UP again (R8).
    """
    now = draft.get(INSTANCE, instance_id)
    session = draft.get(SESSION, host)
    if now is None or now.host != host or not is_due(now, session, now_ms=now_ms):
        return False
    draft.rely_on(SESSION, host)
    if now.want is Want.ABSENT and not _is_live(session):
        let_go(draft, now, now_ms=now_ms, op_id=op_id)
        draft.put(
            TOMBSTONE,
            host,
            instance_id,
            value=Tombstone(instance_id=instance_id, placement_epoch=now.placement_epoch),
        )
        return True
    after = now
    if now.task is not TaskState.NONE:
        fault = Fault(
            code=TASK_TIMEOUT,
            message=f"{now.task.name.lower().replace('_', ' ')} was not done by its deadline",
            host=host,
            time_ms=now_ms,
        )
        after = failed(now, fault, now_ms=now_ms, op_id=op_id)
    if now.want is Want.ABSENT:
        after = begin(
            after,
            Action.DELETE,
            now_ms=now_ms,
            op_id=op_id,
            request_id=now.task_request_id,
            user_id=now.task_by,
            is_admin=True,
        )
    write(draft, now, after)
    return True


def _is_left(now: Instance, session: Session | None, *, now_ms: int) -> bool:
    """A deletion that failed: it has no deadline any more, but must end all the same, by its host or without it."""
    if now.want is not Want.ABSENT or now.task is not TaskState.NONE:
        return False
    return not _is_live(session) or now_ms - now.update_time_ms > AGAIN_MS


def _is_live(session: Session | None) -> bool:
    return session is not None and session.state in LIVE


# -- books ----------------------------------------------------------------------------------------


def is_even(use: Use | None, assignments: Iterable[Assignment]) -> bool:
    """Whether what is claimed of a host is what is assigned to it."""
    claimed, instances = _sum(assignments)
    book = use or Use(host="")
    return (book.claimed, book.instances, len(book.slots)) == (claimed, instances, instances)


def recounted(
    host: str, assignments: Iterable[Assignment], instances: Iterable[Instance], *, op_id: str
) -> Use:
    """The host's book made anew from what is assigned to it, with the address slots of those instances."""
    claimed, count = _sum(assignments)
    slots = {each.slot for each in instances if each.host == host}
    return Use(host=host, claimed=claimed, instances=count, slots=tuple(sorted(slots)), op_id=op_id)


def _sum(assignments: Iterable[Assignment]) -> tuple[Resources, int]:
    claimed, count = Resources(), 0
    for assignment in assignments:
        claimed, count = claimed + assignment.guest.resources(), count + 1
    return claimed, count
