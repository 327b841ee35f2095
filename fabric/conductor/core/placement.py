"""What a record's placements are made of beside the record: orders, claims, and what is owed when they go.

A record that does not name a placement any more has let go of it in the same transaction: its order, its claim, and, where its host has not
said that it is gone, a tombstone.
"""

from __future__ import annotations

from dataclasses import replace

from fabric.conductor.core.draft import Draft, Ref, ref
from fabric.lifecycle.devices import added_slots
from fabric.lifecycle.moves import dues, left, places
from fabric.model.host import SessionState
from fabric.model.instance import Discard, Instance, Place, Recharge, Tombstone
from fabric.model.network import NO_SLOT
from fabric.store.keys import ASSIGNMENT, DISCARD, RECHARGE, SESSION, TOMBSTONE, USE


def other_reads(now: Instance | None) -> tuple[Ref, ...]:
    """What letting go of placements looks at that the record names beside its host."""
    if now is None or now.move is None:
        return ()
    host = now.move.other.host
    return (ref(SESSION, host), ref(ASSIGNMENT, host, now.id), ref(USE, host))


def drop_left(draft: Draft, now: Instance, after: Instance | None, *, gone_from: str, op_id: str) -> None:
    """Let go of every placement that `after` does not name any more, and leave the reconciler what it has to do.

    `gone_from` is the host that has said that its copy is gone, or empty. Keys as in `status_reads` of the record's host and in
    `other_reads`.
    """
    for place in left(now, after):
        draft.delete(ASSIGNMENT, place.host, now.id)
        unclaim(draft, place, op_id=op_id)
        if place.host != gone_from:
            bury(draft, now.id, place, op_id=op_id)
    due = dues(now, after)
    project_id = now.request.guest.project_id
    if due.discard_id:
        discard = Discard(image_id=due.discard_id, instance_id=now.id, project_id=project_id)
        draft.create(DISCARD, due.discard_id, value=discard)
    if due.recharge:
        draft.create(RECHARGE, now.id, value=Recharge(instance_id=now.id, project_id=project_id))


def bury(draft: Draft, instance_id: str, place: Place, *, op_id: str) -> None:
    """Have the host forget its copy. One that is just joining must not come up before it has (R8): its session is touched, so that
    whoever was about to lift the barrier looks once more.
    """
    session = draft.get(SESSION, place.host)
    if session is not None and session.state is SessionState.JOIN:
        draft.put(SESSION, place.host, value=replace(session, op_id=op_id))
    else:
        draft.rely_on(SESSION, place.host)
    tombstone = Tombstone(instance_id=instance_id, placement_epoch=place.placement_epoch)
    draft.create(TOMBSTONE, place.host, instance_id, value=tombstone)


def unclaim(draft: Draft, place: Place, *, op_id: str) -> None:
    """Give back what is claimed for a placement.

    Where the books are wrong (nobody has its slot), they are left to the audit, which counts them anew: an instance must be able to end
    all the same.
    """
    use = draft.get(USE, place.host)
    if use is not None and use.has(place.slot):
        less = use.minus(place.request.guest.resources(), place.slot, op_id=op_id)
        draft.put(USE, place.host, value=less)


def slots_on(host: str, now: Instance) -> frozenset[int]:
    """The address slots that the instance has on a host."""
    placed = frozenset(place.slot for place in places(now) if place.host == host and place.slot != NO_SLOT)
    return placed | frozenset(added_slots(now)) if now.host == host else placed
