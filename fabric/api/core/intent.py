"""Intents: from what somebody may ask of a server and what was read, to the one transaction in the server's cell.

An intent moves the record and its assignment together: a host follows its assignment, never the record. Beside them goes the answer to the
request_id, which is also the mark by which a write whose answer was lost is settled (R12).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fabric.api.core.devices import Beside, Known
from fabric.api.core.moves import Work, errands, left_behind_keys, let_go
from fabric.errors import Conflict, Reason
from fabric.lifecycle.core import begin, ending, ordered
from fabric.lifecycle.events import closed, left_behind, slot
from fabric.lifecycle.moves import confirmed
from fabric.lifecycle.table import BY_ACTION
from fabric.lifecycle.timers import dated
from fabric.model.event import Event
from fabric.model.host import Session, Use
from fabric.model.instance import Answered, Assignment, Build, Instance, Over, Refund, Renamed
from fabric.model.states import Action, VmState, Want
from fabric.store.base import Snapshot
from fabric.store.keys import (
    ACTED,
    ANSWERED,
    ASSIGNMENT,
    BUILD,
    EVENT,
    INSTANCE,
    LOCATION,
    OVER,
    REFUND,
    RENAMED,
)

REQUEST_ID_KEPT_MS = 24 * 3600 * 1000
"""How long a request_id is remembered (host protocol, section 6)."""

DEFAULT_STOP_TIMEOUT_S = 60
"""How long a guest may take to shut down, as in the reference."""


Change = Callable[[Instance], Instance]
"""What an action changes of the record beside its state: a rule, which raises InvalidRequest or WrongState where it cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What is asked of one server, by whom, under which request_id.

    `change` is applied to the record that is there when it is written; `image_id` is the image that a snapshot hands in. `also` are
    keys that are put in the same transaction, where they are absent, and so are those that `work` makes of the record. `etag` is what the
    record must still have, empty for anything. `beside` is what else the action changes in the same transaction. A delete with `keep_s` is
    a soft one wherever there is something to keep, which is kept for so long.
    """

    action: Action
    answered: Answered
    stop_timeout_s: int = DEFAULT_STOP_TIMEOUT_S
    user_id: str = ""
    is_admin: bool = False
    change: Change | None = None
    image_id: str = ""
    also: Mapping[str, object] = field(default_factory=dict)
    work: Work | None = None
    etag: str = ""
    keep_s: float = 0.0
    beside: Beside | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One transaction, as values: what it compares, the records it puts, and the key that tells whether it was applied (R12)."""

    mark: str
    unchanged: Mapping[str, int]
    put: Mapping[str, object]
    delete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What is to be written, and the record that it leaves (None: none)."""

    write: Write
    after: Instance | None


def replayed(earlier: Answered, answered: Answered) -> Answered:
    """The earlier answer to this request_id. Raises Conflict when it came with another body, or to another method."""
    if (earlier.method, earlier.body_sha256) != (answered.method, answered.body_sha256):
        raise Conflict(
            f"request_id {answered.request_id} was used before, for another request; make a new one for each",
            reason=Reason.REQUEST_ID_MISMATCH,
            request_id=answered.request_id,
        )
    return earlier


def keys_of(instance: Instance, answered: Answered) -> tuple[str, ...]:
    """What `written` must have read."""
    placed = (ASSIGNMENT.at(instance.host, instance.id),) if instance.host else ()
    other = () if instance.move is None else left_behind_keys(instance.move.other, instance.id)
    return (INSTANCE.at(instance.id), ACTED.at(answered.project_id, answered.request_id), *placed, *other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """What is known of the second host that a server has a claim on."""

    use: Use | None = None
    session: Session | None = None


NO_OTHER = Other()

NOTHING_KNOWN = Known({}, {})


def ends_at_once(intent: Intent, instance: Instance) -> bool:
    """Whether a server's end needs nobody else: it is on no host."""
    return intent.action is Action.DELETE and not instance.host


def written(
    seen: Snapshot,
    instance: Instance,
    assignment: Assignment | None,
    intent: Intent,
    *,
    now_ms: int,
    op_id: str,
    other: Other = NO_OTHER,
    known: Known = NOTHING_KNOWN,
) -> Written:
    """The transaction that makes the intent durable. `seen` has the revisions of `keys_of`; the values are in `instance`, `assignment` and
    `other`, and in `known` those that `intent.beside` reads.

    A server that never had a host has nobody to confirm its end: its delete ends it at once.

    Raises:
        WrongState: the lifecycle forbids it now.
        Conflict: the record has not the etag any more that the intent was formed on.
    """
    answer_key = ACTED.at(intent.answered.project_id, intent.answered.request_id)
    instance_key = INSTANCE.at(instance.id)
    if intent.etag not in {"", str(seen.seen(instance_key))}:
        raise Conflict(
            f"the server has changed since its etag was {intent.etag}; read it again",
            instance=instance.id,
            etag=str(seen.seen(instance_key)),
        )
    action = _softened(intent, instance)
    after = begin(
        instance,
        action,
        now_ms=now_ms,
        op_id=op_id,
        request_id=intent.answered.request_id,
        user_id=intent.user_id,
        guest_timeout_s=intent.stop_timeout_s if BY_ACTION[action].want is Want.STOP else 0,
        image_id=intent.image_id,
        keep_s=intent.keep_s,
        is_admin=intent.is_admin,
    )
    if intent.change is not None and after is not instance:
        after = _changed(intent.change, after, before=instance)
    if action is Action.CONFIRM_RESIZE:
        after = confirmed(after)
    beside = None if intent.beside is None else intent.beside.write(known, after, now_ms, op_id)
    after = dated(instance, after if beside is None else beside.after)
    unchanged = {instance_key: seen.seen(instance_key), answer_key: seen.seen(answer_key)}
    put: dict[str, object] = {answer_key: intent.answered}
    put |= _kept(left_behind(instance, after, now_ms=now_ms))
    if ends_at_once(intent, instance):
        ended = _ended(instance, now_ms=now_ms)
        done = None if after.event is None else closed(after.event, now_ms=now_ms)
        if beside is not None:
            unchanged |= beside.unchanged
            put |= beside.put
        write = Write(
            mark=answer_key,
            unchanged={**unchanged, **dict.fromkeys(ended, 0)},
            put={
                **put,
                **ended,
                **_kept(left_behind(replace(after, event=done), None, now_ms=now_ms)),
                **errands(instance, None),
            },
            delete=(instance_key,),
        )
        return Written(write, None)
    put[instance_key] = after
    if after.request.guest.name != instance.request.guest.name:
        put[RENAMED.at(instance.id)] = Renamed(instance_id=instance.id)
    also = {**intent.also, **(intent.work(after) if intent.work is not None else {})}
    unchanged |= dict.fromkeys(also, 0)
    put |= also
    put |= errands(instance, after)
    if beside is not None:
        unchanged |= beside.unchanged
        put |= beside.put
    deleted: tuple[str, ...] = () if beside is None else tuple(beside.delete)
    if action is Action.CONFIRM_RESIZE and instance.move is not None:
        place = instance.move.other
        unchanged |= {key: seen.seen(key) for key in left_behind_keys(place, instance.id)}
        gone, orders = let_go(place, instance.id, use=other.use, session=other.session, op_id=op_id)
        put |= gone
        deleted += orders
    if instance.host and after is not instance:
        key = ASSIGNMENT.at(instance.host, instance.id)
        unchanged[key] = seen.seen(key)
        if assignment is not None and after.generation != instance.generation:
            put[key] = replace(ordered(assignment, after), stop_timeout_s=intent.stop_timeout_s)
    return Written(Write(mark=answer_key, unchanged=unchanged, put=put, delete=deleted), after)


def _softened(intent: Intent, instance: Instance) -> Action:
    """The action that is begun. What has nothing to keep is deleted at once: a create on its way, what was put away or never had a host."""
    soft = BY_ACTION[Action.SOFT_DELETE]
    has_something = bool(instance.host) and (
        instance.vm_state in soft.allowed or instance.vm_state is VmState.SOFT_DELETED
    )
    is_soft = (
        intent.action is Action.DELETE and intent.keep_s > 0 and has_something and ending(instance) is None
    )
    return Action.SOFT_DELETE if is_soft else intent.action


def _changed(change: Change, after: Instance, *, before: Instance) -> Instance:
    """The record with what the action changes of it. Where that is the guest, its host must hear of it: a new generation."""
    changed = change(after)
    is_news = changed.request.guest != before.request.guest and changed.generation == before.generation
    return replace(changed, generation=changed.generation + 1) if is_news else changed


def cancelled(seen: Snapshot, build: Build, answered: Answered, *, user_id: str, op_id: str) -> Write:
    """The transaction that ends a create before it was claimed. It compares the index row too, so that nobody moves it meanwhile.

    `answered` is kept under the project's global request_ids, the mark of this write.
    """
    build_key, location_key = BUILD.at(build.cell, build.instance_id), LOCATION.at(build.instance_id)
    answer_key = ANSWERED.at(answered.project_id, answered.request_id)
    ended = replace(
        build, cancelled=True, cancelled_by=user_id, cancel_request_id=answered.request_id, op_id=op_id
    )
    return Write(
        mark=answer_key,
        unchanged={key: seen.seen(key) for key in (build_key, location_key, answer_key)},
        put={build_key: ended, answer_key: answered},
    )


def _kept(events: Sequence[Event]) -> dict[str, object]:
    """Earlier actions' keys. Who writes the record compares it, so nobody else writes these."""
    return {EVENT.at(each.instance_id, slot(each)): each for each in events}


def _ended(instance: Instance, *, now_ms: int) -> dict[str, object]:
    over = Over(instance_id=instance.id, over_time_ms=now_ms)
    refund = Refund(instance_id=instance.id, project_id=instance.request.guest.project_id)
    return {OVER.at(instance.id): over, REFUND.at(instance.id): refund}
