"""Intents: from what somebody may ask of a server and what was read, to the one transaction in the server's cell.

An intent moves the record and its assignment together: a host follows its assignment, never the record. Beside them goes the answer to the
request_id, which is also the mark by which a write whose answer was lost is settled (R12).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fabric.errors import Conflict, Reason
from fabric.lifecycle.core import begin
from fabric.model.instance import Answered, Assignment, Build, Instance, Over, Refund
from fabric.model.states import Action
from fabric.store import codec
from fabric.store.base import Snapshot, Txn
from fabric.store.keys import ACTED, ANSWERED, ASSIGNMENT, BUILD, INSTANCE, LOCATION, OVER, REFUND

DEFAULT_STOP_TIMEOUT_S = 60
"""How long a guest may take to shut down, as in the reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What is asked of one server, by whom, under which request_id."""

    action: Action
    answered: Answered
    stop_timeout_s: int = DEFAULT_STOP_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Written:
    """The transaction, the key that tells whether it was applied, and the record it leaves (None: none)."""

    txn: Txn
    mark: str
    after: Instance | None


def replayed(stored: bytes | None, answered: Answered) -> Answered | None:
    """The earlier answer to this request_id, None for a new one. Raises Conflict when it came with another body."""
    if stored is None:
        return None
    earlier = codec.decode(Answered, stored)
    if (earlier.method, earlier.body_sha256) != (answered.method, answered.body_sha256):
        raise Conflict(
            f"request_id {answered.request_id} was used before, for another {earlier.method}: make a new one",
            reason=Reason.REQUEST_ID_MISMATCH,
            request_id=answered.request_id,
        )
    return earlier


def keys_of(instance: Instance, answered: Answered) -> tuple[str, ...]:
    """What `written` must have read."""
    keys = (INSTANCE.at(instance.id), ACTED.at(answered.project_id, answered.request_id))
    return (*keys, ASSIGNMENT.at(instance.host, instance.id)) if instance.host else keys


def written(seen: Snapshot, instance: Instance, intent: Intent, *, now_ms: int, op_id: str) -> Written:
    """The transaction that makes the intent durable. Raises WrongState where the lifecycle forbids it.

    A server that never had a host has nobody to confirm its end: its delete ends it at once.
    """
    answer_key = ACTED.at(intent.answered.project_id, intent.answered.request_id)
    instance_key = INSTANCE.at(instance.id)
    guest_timeout_s = intent.stop_timeout_s if intent.action is Action.STOP else 0
    after = begin(
        instance,
        intent.action,
        now_ms=now_ms,
        op_id=op_id,
        request_id=intent.answered.request_id,
        guest_timeout_s=guest_timeout_s,
    )
    unchanged = {instance_key: seen.seen(instance_key), answer_key: seen.seen(answer_key)}
    put = {answer_key: codec.encode(intent.answered)}
    if intent.action is Action.DELETE and not instance.host:
        ended = _ended(instance, now_ms=now_ms)
        return Written(
            Txn(
                unchanged={**unchanged, **dict.fromkeys(ended, 0)},
                put={**put, **ended},
                delete=(instance_key,),
            ),
            answer_key,
            None,
        )
    put[instance_key] = codec.encode(after)
    if instance.host and after is not instance:
        key = ASSIGNMENT.at(instance.host, instance.id)
        unchanged[key] = seen.seen(key)
        stored = seen.value(key)
        if stored is not None:
            assignment = replace(
                codec.decode(Assignment, stored),
                generation=after.generation,
                want=after.want,
                action=after.action,
                stop_timeout_s=intent.stop_timeout_s,
            )
            put[key] = codec.encode(assignment)
    return Written(Txn(unchanged=unchanged, put=put), answer_key, after)


def cancelled(seen: Snapshot, build: Build, answered: Answered, *, op_id: str) -> Txn:
    """The transaction that ends a create before it was claimed. It compares the index row too, so that nobody moves it meanwhile.

    `answered` is kept under the project's global request_ids, the mark of this write.
    """
    build_key, location_key = BUILD.at(build.cell, build.instance_id), LOCATION.at(build.instance_id)
    answer_key = ANSWERED.at(answered.project_id, answered.request_id)
    return Txn(
        unchanged={
            build_key: seen.seen(build_key),
            location_key: seen.seen(location_key),
            answer_key: seen.seen(answer_key),
        },
        put={
            build_key: codec.encode(replace(build, cancelled=True, op_id=op_id)),
            answer_key: codec.encode(answered),
        },
    )


def _ended(instance: Instance, *, now_ms: int) -> dict[str, bytes]:
    over = Over(instance_id=instance.id, over_time_ms=now_ms)
    refund = Refund(instance_id=instance.id, project_id=instance.request.guest.project_id)
    return {OVER.at(instance.id): codec.encode(over), REFUND.at(instance.id): codec.encode(refund)}
