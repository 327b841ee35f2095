"""What becomes of a server that wants another host, or one at all: from its work item and its record to the one transaction of its cell.

Exactly once, whatever dies or repeats: a claim takes the work item away that it was made for, and compares it, the record and everything
that it claims. What a larger flavor costs more is charged before the claim, and never less than both flavors need until the move is over
(`prepared`), so that a project is at no time charged for less than it has; what is too much is given back when it is (`recharged`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from fabric.images.core.snapshots import queued
from fabric.lifecycle.core import guest_at, ordered
from fabric.lifecycle.devices import volumes_of
from fabric.lifecycle.moves import (
    MOVING,
    carried,
    claimed,
    dues,
    is_waiting,
    next_epoch,
    nowhere_to_go,
    raised,
)
from fabric.model.host import Host, Session, Use
from fabric.model.image import Image
from fabric.model.instance import (
    ActionMark,
    Assignment,
    Discard,
    Fault,
    Instance,
    Location,
    MoveWanted,
    OneShot,
    Place,
    Recharge,
)
from fabric.model.placement import Decision
from fabric.model.quota import Charge, Quota
from fabric.model.states import TaskState, Want
from fabric.model.volume import Volume
from fabric.network.addresses import ports_at
from fabric.network.claims import slot_on
from fabric.quota.core import charge, charge_of
from fabric.scheduler.core.ask import Ask, ask_of
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.picture import Seen
from fabric.store import keys

NO_VOLUMES: Final[Mapping[str, Seen[Volume]]] = MappingProxyType({})
"""Those of a server that has none, or that is on a host."""

NAMES: Final = 200
"""Characters of a server's name in the name of the image that it travels in, which nobody sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A work item, its server, the order to the server's host, and the volumes of one that is nowhere, all read at one revision."""

    work: Seen[MoveWanted]
    instance: Seen[Instance]
    order: Seen[Assignment]
    volumes: Mapping[str, Seen[Volume]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The records of the host that was chosen."""

    host: Seen[Host]
    session: Seen[Session]
    use: Seen[Use]


@dataclass(frozen=True, slots=True)
class Claimed:
    """What to commit, and the host's use as it then is."""

    change: Change
    use: Use


def is_wanted(waiting: Waiting) -> bool:
    """Whether the work is still to be done: nobody has done it, called it off, or ended the server."""
    return waiting.instance.value is not None and is_waiting(waiting.instance.value)


def wants(
    work: MoveWanted, instance: Instance, *, cell: str, volumes: Mapping[str, Seen[Volume]] = NO_VOLUMES
) -> Ask:
    """What the server asks of a host: one of its own cell, and another than it is on; the one with the files, where its volumes are files
    of a host. (That a host shares the directories of the others is among its traits.)
    """
    leaves = {name for name in (instance.host, work.excluded) if name}
    files = {
        each.value.host for each in volumes.values() if each.value is not None and not each.value.directory
    }
    host = work.host or next(iter(files), "")
    return replace(ask_of(work.request, cell=cell), host=host, other_than=frozenset(leaves))


def volumes_to_read(instance: Instance) -> tuple[str, ...]:
    """The ids of the volumes that a server which is nowhere has: they tell where it can be, and are its new host's when it is there."""
    return volumes_of(instance) if instance.task is TaskState.UNSHELVING and not instance.host else ()


def has_its_disk(instance: Instance) -> bool:
    """Whether there is what a shelved server's root disk can be made of: its image, or the volume that it boots from."""
    return instance.request.guest.root_volume is not None or carried(instance) is not None


def called_off(waiting: Waiting) -> Change:
    """Take away work that is not wanted any more, with the image that was made for it."""
    work, instance = waiting.work.value, waiting.instance.value
    if work is None:
        return Change()
    is_in_use = instance is not None and instance.carrier_id == work.image_id
    return Change(
        unchanged={
            keys.MOVE.at(work.instance_id): waiting.work.revision,
            keys.INSTANCE.at(work.instance_id): waiting.instance.revision,
        },
        put={} if is_in_use else _discarded(work),
        delete=(keys.MOVE.at(work.instance_id),),
    )


def refused(
    waiting: Waiting, code: str, message: str, decision: Decision | None, *, now_ms: int, op_id: str
) -> Change:
    """There is no host for it, or no quota: the server stays what it is, where it is, and its fault says why."""
    work, now = _both(waiting)
    fault = Fault(code=code, message=message, time_ms=now_ms)
    after = nowhere_to_go(now, fault, decision, now_ms=now_ms, op_id=op_id)
    instance_key, order_key = keys.INSTANCE.at(now.id), keys.ASSIGNMENT.at(now.host, now.id)
    unchanged = {keys.MOVE.at(now.id): waiting.work.revision, instance_key: waiting.instance.revision}
    put: dict[str, object] = {instance_key: after, **_discarded(work)}
    if now.host:
        unchanged[order_key] = waiting.order.revision
        if waiting.order.value is not None:
            put[order_key] = ordered(waiting.order.value, after)
    if dues(now, after).recharge:
        project_id = now.request.guest.project_id
        put[keys.RECHARGE.at(now.id)] = Recharge(instance_id=now.id, project_id=project_id)
    return Change(unchanged=unchanged, put=put, delete=(keys.MOVE.at(now.id),))


def claim(waiting: Waiting, found: Found, decision: Decision, *, now_ms: int, op_id: str) -> Claimed | None:
    """Claim the chosen host, and send the server on its way. None where the records that are there do not allow it any more.

    The order that the other host of a move gets first is to have nothing: the claim stands, and nothing runs.
    """
    work, now = _both(waiting)
    host = found.host.value
    use = found.use.value or Use(host=decision.host)
    slot = slot_on(host, found.session.value, use, work.request)
    if host is None or slot is None:
        return None
    is_raised = now.task is TaskState.UNSHELVING
    followed = _followed(waiting, now, host.name, now_ms=now_ms, op_id=op_id)
    if followed is None:
        return None
    disk = carried(now) if is_raised else None
    place = Place(
        host=host.name,
        placement_epoch=next_epoch(now),
        slot=slot,
        request=work.request,
        ports=ports_at(host, slot, instance_id=now.id, request=work.request),
        disk=disk,
    )
    if is_raised:
        after = raised(now, place, decision=decision, now_ms=now_ms, op_id=op_id)
        order = _first_order(place, after, host, want=after.want)
    else:
        after = claimed(now, place, carrier_id=work.image_id, decision=decision, now_ms=now_ms, op_id=op_id)
        order = _first_order(place, after, host, want=Want.STOP)
    unchanged = {
        keys.MOVE.at(now.id): waiting.work.revision,
        keys.INSTANCE.at(now.id): waiting.instance.revision,
        keys.HOST.at(host.name): found.host.revision,
        keys.SESSION.at(host.name): found.session.revision,
        keys.USE.at(host.name): found.use.revision,
        keys.ASSIGNMENT.at(host.name, now.id): 0,
    }
    more = use.plus(work.request.guest.resources(), slot, op_id=op_id)
    put: dict[str, object] = {
        keys.INSTANCE.at(now.id): after,
        keys.USE.at(host.name): more,
        keys.ASSIGNMENT.at(host.name, now.id): order,
    }
    for volume_id, volume in followed.items():
        unchanged[keys.VOLUME.at(volume_id)] = waiting.volumes[volume_id].revision
        put[keys.VOLUME.at(volume_id)] = volume
    if now.host:
        here = keys.ASSIGNMENT.at(now.host, now.id)
        unchanged[here] = waiting.order.revision
        if waiting.order.value is not None:
            put[here] = ordered(waiting.order.value, after)
            put[keys.ASSIGNMENT.at(host.name, now.id)] = replace(
                order, stop_timeout_s=waiting.order.value.stop_timeout_s
            )
    return Claimed(Change(unchanged=unchanged, put=put, delete=(keys.MOVE.at(now.id),)), more)


def _followed(
    waiting: Waiting, now: Instance, host: str, *, now_ms: int, op_id: str
) -> Mapping[str, Volume] | None:
    """The volumes of a server that is nowhere, as they are once it is on this host. None where they are not its own, or not there.

    They have been its own all the while, with what they claim of a host: nothing more is claimed.
    """
    followed: dict[str, Volume] = {}
    for volume_id in volumes_to_read(now):
        volume = waiting.volumes[volume_id].value if volume_id in waiting.volumes else None
        if volume is None or volume.instance_id != now.id or (volume.host != host and not volume.directory):
            return None
        followed[volume_id] = replace(volume, host=host, update_time_ms=now_ms, op_id=op_id)
    return followed


def _first_order(place: Place, after: Instance, host: Host, *, want: Want) -> Assignment:
    return Assignment(
        instance_id=after.id,
        placement_epoch=place.placement_epoch,
        generation=after.generation,
        want=want,
        # Whatever was to be done once was to be done elsewhere.
        action=ActionMark(seq=after.action.seq, kind=OneShot.NONE),
        guest=guest_at(place.request.guest, place.disk, ports=place.ports, zone=host.zone),
    )


# -- what it costs --------------------------------------------------------------------------------


def prepared(
    location: Seen[Location],
    quota: Seen[Quota],
    image: Seen[Image],
    wanted: MoveWanted,
    now: Instance,
    *,
    now_ms: int,
    op_id: str,
) -> Change:
    """In the global store, before the claim: charge what the server as it is to be costs more than it is charged, and make the record of
    the image that its disk is to travel in. Empty where both are done.

    Raises:
        QuotaExceeded: the project may not have it.
    """
    unchanged: dict[str, int] = {}
    put: dict[str, object] = {}
    if location.value is not None and quota.value is not None:
        before = location.value.charge
        after = most(before, charge_of(wanted.request))
        if after != before:
            location_key, quota_key = (
                keys.LOCATION.at(wanted.instance_id),
                keys.QUOTA.at(location.value.project_id),
            )
            unchanged |= {location_key: location.revision, quota_key: quota.revision}
            put[location_key] = replace(location.value, charge=after, op_id=op_id)
            put[quota_key] = charge(quota.value, after - before, op_id=op_id)
    if wanted.image_id and image.value is None:
        image_key = keys.IMAGE.at(wanted.image_id)
        unchanged[image_key] = 0
        put[image_key] = queued(
            now,
            image_id=wanted.image_id,
            name=f"{now.request.guest.name[:NAMES]}-move",
            properties={},
            base=None,
            now_ms=now_ms,
            hidden=True,
        )
    return Change(unchanged=unchanged, put=put)


def recharged(
    location: Seen[Location], quota: Seen[Quota], instance: Instance | None, *, op_id: str
) -> Change | None:
    """In the global store: charge for what the server is. None where that is charged, or the server is on its way once more.

    `instance` must have been read after `location`: a move that has begun since then has charged the location, which is compared.
    """
    if location.value is None or quota.value is None or instance is None:
        return None
    if instance.move is not None or instance.task in MOVING:
        return None
    before, after = location.value.charge, charge_of(instance.request)
    if after == before:
        return None
    used = quota.value.used - before + after
    return Change(
        unchanged={
            keys.LOCATION.at(instance.id): location.revision,
            keys.QUOTA.at(location.value.project_id): quota.revision,
        },
        put={
            keys.LOCATION.at(instance.id): replace(location.value, charge=after, op_id=op_id),
            keys.QUOTA.at(location.value.project_id): replace(quota.value, used=used, op_id=op_id),
        },
    )


def most(one: Charge, other: Charge) -> Charge:
    """Enough for either."""
    return Charge(
        instances=max(one.instances, other.instances),
        vcpus=max(one.vcpus, other.vcpus),
        ram_mib=max(one.ram_mib, other.ram_mib),
        volumes=max(one.volumes, other.volumes),
        volume_gib=max(one.volume_gib, other.volume_gib),
    )


def _discarded(work: MoveWanted) -> dict[str, object]:
    if not work.image_id:
        return {}
    project_id = work.request.guest.project_id
    discard = Discard(image_id=work.image_id, instance_id=work.instance_id, project_id=project_id)
    return {keys.DISCARD.at(work.image_id): discard}


def _both(waiting: Waiting) -> tuple[MoveWanted, Instance]:
    work, now = waiting.work.value, waiting.instance.value
    if work is None or now is None:
        raise ValueError("there is no such work, or no such server")
    return work, now
