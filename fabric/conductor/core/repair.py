"""What is put right without anybody asking: tasks that overran, deletions that no host will confirm, books that do not balance, and
records that have served their time. Any conductor of the cell may do it, because every repair compares what it was decided on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fabric.conductor.core.draft import Draft, Ref, ref
from fabric.conductor.core.fence import LIVE
from fabric.conductor.core.flow import let_go, write
from fabric.lifecycle.core import expired, failed
from fabric.model.host import Resources, Session, Use
from fabric.model.instance import Answered, Assignment, Fault, Instance, Over, Tombstone
from fabric.model.states import TaskState, Want
from fabric.store.keys import ASSIGNMENT, INSTANCE, SESSION, TOMBSTONE, USE

TASK_TIMEOUT: Final = "TASK_TIMEOUT"
"""The fault of what was not done by its deadline. Not among the words of hosts: only the control plane says it."""

OVER_KEPT_MS: Final = 24 * 3600 * 1000
"""How long `over` stands in the way of late claims: a build is given up after ten minutes, its last retry long before this."""


# -- deadlines ------------------------------------------------------------------------------------


def is_due(now: Instance, session: Session | None, *, now_ms: int) -> bool:
    """Whether somebody must look at this instance."""
    return bool(now.host) and (expired(now, now_ms=now_ms) or _waits_in_vain(now, session))


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

    A task becomes a fault (`want` stays, so what comes about late is still taken in). A deletion whose host cannot be reached is carried
    out in the records, with a tombstone: the host cleans up before it is UP again (R8).
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
    fault = Fault(
        code=TASK_TIMEOUT,
        message=f"{now.task.name.lower().replace('_', ' ')} was not done by its deadline",
        host=host,
        time_ms=now_ms,
    )
    write(draft, now, failed(now, fault, now_ms=now_ms, op_id=op_id))
    return True


def _waits_in_vain(now: Instance, session: Session | None) -> bool:
    """A deletion that failed, and whose host has gone away since: it has no deadline any more, and nobody who would confirm it."""
    return now.want is Want.ABSENT and now.task is TaskState.NONE and not _is_live(session)


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


# -- what has served its time ---------------------------------------------------------------------


def has_served(record: Over | Answered, *, now_ms: int) -> bool:
    """Whether nobody will ask for this record any more."""
    if isinstance(record, Over):
        return now_ms - record.over_time_ms > OVER_KEPT_MS
    return now_ms > record.expire_time_ms
