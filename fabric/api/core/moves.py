"""What a resize or a migration asks for, and the work that it leaves the scheduler: rules on values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fabric.api.core.accept import image_traits, traits_of
from fabric.errors import InvalidRequest
from fabric.lifecycle.moves import dues
from fabric.model.flavor import Flavor
from fabric.model.host import Session, SessionState, Use
from fabric.model.image import Image
from fabric.model.instance import Discard, Instance, MoveWanted, Place, Recharge, Request, Tombstone
from fabric.store.keys import ASSIGNMENT, DISCARD, MOVE, RECHARGE, SESSION, TOMBSTONE, USE

Work = Callable[[Instance], Mapping[str, object]]
"""Keys to put beside the record, where they are absent: work for others, as the record is once the action has begun."""


def resized(request: Request, flavor: Flavor, before: Flavor | None, image: Image | None) -> Request:
    """The request with another flavor. `before` and `image` are the flavor and the image as they are now, None where they are no more: then
    what they asked of hosts is asked on.

    Raises:
        InvalidRequest: the server has that flavor, or its disk would have to shrink, or its image wants more memory.
    """
    guest = request.guest
    if flavor.id == request.flavor_id:
        raise InvalidRequest(f"the server has flavor {flavor.name} already", field="flavor")
    disk_gib = flavor.disk_gib or guest.disk_gib
    if disk_gib < guest.disk_gib:
        raise InvalidRequest(
            f"flavor {flavor.name} has a disk of {flavor.disk_gib} GiB; the server's has {guest.disk_gib}, and disks do not shrink",
            field="flavor",
        )
    if image is not None and flavor.ram_mib < image.min_ram_mib:
        raise InvalidRequest(
            f"flavor {flavor.name} has {flavor.ram_mib} MiB of memory; image {image.name} needs {image.min_ram_mib}",
            field="flavor",
        )
    required, forbidden = set(request.required_traits), set(request.forbidden_traits)
    of_image = {} if image is None else image_traits(image)
    if before is not None:
        for name, how in traits_of(before.properties).items():
            if of_image.get(name) != how:
                (required if how == "required" else forbidden).discard(name)
    # As at the create: where the two contradict each other, the image knows better what it can run on.
    for name, how in {**traits_of(flavor.properties), **of_image}.items():
        (required if how == "required" else forbidden).add(name)
    return replace(
        request,
        flavor_id=flavor.id,
        flavor_name=flavor.name,
        required_traits=tuple(sorted(required)),
        forbidden_traits=tuple(sorted(forbidden)),
        guest=replace(guest, vcpus=flavor.vcpus, ram_mib=flavor.ram_mib, disk_gib=disk_gib),
    )


def resize_work(
    flavor: Flavor,
    flavors: Callable[[str], Flavor | None],
    images: Callable[[str], Image | None],
    *,
    image_id: str,
    now_ms: int,
) -> Work:
    """A host with room for the new flavor is wanted. `flavors` and `images` look up by id what is known."""

    def work(now: Instance) -> Mapping[str, object]:
        wanted = MoveWanted(
            instance_id=now.id,
            request=resized(
                now.request,
                flavor,
                flavors(now.request.flavor_id),
                None if now.request.guest.image is None else images(now.request.guest.image.id),
            ),
            image_id=image_id,
            create_time_ms=now_ms,
        )
        return {MOVE.at(now.id): wanted}

    return work


def migrate_work(host: str, *, image_id: str, now_ms: int) -> Work:
    """Another host is wanted, or this one."""

    def work(now: Instance) -> Mapping[str, object]:
        if host and host == now.host:
            raise InvalidRequest(f"the server is on host {host} already", field="host")
        wanted = MoveWanted(
            instance_id=now.id, request=now.request, host=host, image_id=image_id, create_time_ms=now_ms
        )
        return {MOVE.at(now.id): wanted}

    return work


def unshelve_work(*, now_ms: int) -> Work:
    """A host is wanted, where the server has none; where it is still on one, it is only started."""

    def work(now: Instance) -> Mapping[str, object]:
        if now.host:
            return {}
        return {MOVE.at(now.id): MoveWanted(instance_id=now.id, request=now.request, create_time_ms=now_ms)}

    return work


def left_behind_keys(other: Place, instance_id: str) -> tuple[str, ...]:
    """What `let_go` must have read of a placement."""
    return (SESSION.at(other.host), ASSIGNMENT.at(other.host, instance_id), USE.at(other.host))


def let_go(
    other: Place, instance_id: str, *, use: Use | None, session: Session | None, op_id: str
) -> tuple[Mapping[str, object], tuple[str, ...]]:
    """What is put and deleted to let go of a placement that the record names no more: as `fabric.conductor.core.placement` does it.

    A host that is just joining must not come up before it has forgotten its copy (R8): its session is touched, so that its conductor looks
    once more.
    """
    put: dict[str, object] = {
        TOMBSTONE.at(other.host, instance_id): Tombstone(
            instance_id=instance_id, placement_epoch=other.placement_epoch
        )
    }
    if use is not None and use.has(other.slot):
        put[USE.at(other.host)] = use.minus(other.request.guest.resources(), other.slot, op_id=op_id)
    if session is not None and session.state is SessionState.JOIN:
        put[SESSION.at(other.host)] = replace(session, op_id=op_id)
    return put, (ASSIGNMENT.at(other.host, instance_id),)


def errands(now: Instance, after: Instance | None) -> dict[str, object]:
    """What the reconciler is to do once the record is `after` (None: there is none any more)."""
    due = dues(now, after)
    project_id = now.request.guest.project_id
    put: dict[str, object] = {}
    if due.discard_id:
        put[DISCARD.at(due.discard_id)] = Discard(
            image_id=due.discard_id, instance_id=now.id, project_id=project_id
        )
    if due.recharge:
        put[RECHARGE.at(now.id)] = Recharge(instance_id=now.id, project_id=project_id)
    return put
