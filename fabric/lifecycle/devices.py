"""Volumes and interfaces of a server, as its record has them: functions from a record and a fact to the next record.

The guest's volumes and the record's ports are what is wanted; `plugs` is what the host has not yet said is so. What must hold, whatever
dies:

- a volume or an address leaves the wanted ones first, and is free for others only when the host has said, of that generation or a later one
  and without a fault, that it is so: until then the guest may write to it;
- what could not be plugged in is taken back as a whole, with the fault to tell why: nothing is half attached.

The event of an action goes on for as long as a plug names it. What could not be done, or what the guest keeps though it was asked for it,
has failed: the plug may be on its way for long after that, and names no event any more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fabric.lifecycle.events import reopened
from fabric.model.faults import FaultCode
from fabric.model.instance import ImageRef, Instance, Tombstone, VolumeImage
from fabric.model.network import NO_SLOT, Port, slot_of
from fabric.model.session import HostState
from fabric.model.states import Action
from fabric.model.volume import VOLUME_EPOCH, GuestVolume, Plug, Volume, VolumeState

LEAVES_ITS_HOST: Final = frozenset({Action.SHELVE, Action.SHELVE_OFFLOAD, Action.RESIZE, Action.MIGRATE})
"""Actions that take a server away from its host, where its added addresses cannot follow."""

PUTS_AWAY: Final = frozenset({Action.SHELVE, Action.SHELVE_OFFLOAD})
"""Those after which it is on no host. Its volumes stay its own, and it comes back where they are: no other host is asked for now."""

FOR_IMAGES: Final = frozenset({Action.REBUILD, Action.CREATE_IMAGE, Action.CREATE_BACKUP})
"""Actions that make a root disk of an image, or an image of a root disk."""


def barred(now: Instance, action: Action) -> str:
    """Why the server's devices bar an action, and what is possible instead, for people; empty: they do not."""
    root = now.request.guest.root_volume
    if action is Action.REBUILD and root is not None:
        return (
            f"it boots from volume {root.id}, which a rebuild would overwrite: make a new volume of the image, and a new server that boots"
            " from that"
        )
    if action in FOR_IMAGES and root is not None:
        return (
            f"it boots from volume {root.id}, and no images are made of volumes: delete the server, which keeps the volume, and boot others"
            " from that"
        )
    if action not in LEAVES_ITS_HOST:
        return ""
    if action in PUTS_AWAY:
        return _unsettled(now)
    if root is not None:
        return (
            f"it boots from volume {root.id}, and no images are made of volumes: delete the server, which keeps the volume, and boot"
            " another one from that, of any flavor"
        )
    if has_local_volumes(now):
        return "it has volumes, whose data is on its host: detach them first"
    return _unsettled(now)


def has_local_volumes(now: Instance) -> bool:
    """Whether some of its volumes are files of one host: it runs there, and nowhere else."""
    return any(not each.directory for each in now.request.guest.volumes)


def _unsettled(now: Instance) -> str:
    """What else ties the server to its host, for people; empty for nothing."""
    if any(each.volume_id for each in now.plugs):
        return "a volume of it is on its way: wait until it is there, or gone"
    if _added(now):
        return "it has added interfaces, whose addresses are its host's: remove them first"
    if any(each.port_id for each in now.plugs):
        return "an interface of it is on its way: wait until it is there, or gone"
    return ""


def with_volume(now: Instance, volume: GuestVolume, image: ImageRef | None = None) -> Instance:
    """The record with one more volume wanted, whose data starts as that of an image, or empty."""
    generation = now.generation + 1
    source = () if image is None else (VolumeImage(volume_id=volume.id, image=image),)
    return _on_its_way(
        _with_volumes(now, (*now.request.guest.volumes, volume), source),
        Plug(generation=generation, volume_id=volume.id),
        beside=now.plugs,
    )


def without_volume(now: Instance, volume_id: str) -> Instance:
    """The record with the volume wanted no more, or, where it is leaving already, with its host asked once more."""
    generation = now.generation + 1
    others = tuple(each for each in now.plugs if each.volume_id != volume_id)
    return _on_its_way(
        _with_volumes(now, tuple(each for each in now.request.guest.volumes if each.id != volume_id)),
        Plug(generation=generation, volume_id=volume_id, is_leaving=True),
        beside=others,
    )


def with_port(now: Instance, port: Port) -> Instance:
    """The record with one more port wanted. One of a tenant network goes with the server, wherever it is."""
    generation = now.generation + 1
    wired = now if port.is_host_local else _with_tenant_ports(now, (*now.request.guest.ports, port))
    return _on_its_way(
        replace(wired, ports=(*now.ports, port)),
        Plug(generation=generation, port_id=port.id),
        beside=now.plugs,
    )


def without_port(now: Instance, port_id: str) -> Instance:
    """The record with a port wanted no more: an added one, or one of a tenant network."""
    generation = now.generation + 1
    gone = next(each for each in now.ports if each.id == port_id)
    others = tuple(each for each in now.plugs if each.port_id != port_id)
    slot = slot_of(gone) if gone.is_host_local else NO_SLOT
    leaving = Plug(generation=generation, port_id=port_id, slot=slot, is_leaving=True)
    rest = _with_tenant_ports(now, tuple(each for each in now.request.guest.ports if each.id != port_id))
    return _on_its_way(
        replace(rest, ports=tuple(each for each in now.ports if each.id != port_id)), leaving, beside=others
    )


def _on_its_way(now: Instance, plug: Plug, *, beside: tuple[Plug, ...]) -> Instance:
    """The record with one more plug, for which its latest event goes on. That of a plug which this one stands for now does not."""
    event = None if now.event is None else reopened(now.event)
    plugs = (*beside, replace(plug, event_seq=0 if event is None else event.seq))
    waited_for = {each.event_seq for each in plugs}
    return replace(
        now,
        generation=plug.generation,
        plugs=plugs,
        event=event,
        plugging=tuple(each for each in now.plugging if each.seq in waited_for),
    )


def plugged(now: Instance, after: Instance, state: HostState, fault_code: str) -> Instance:
    """What the host's word on the latest generation means for devices on their way.

    `after` is the record as that word has made it in all else. Without a fault, everything is as it was wanted. With one, what was to be
    plugged in is taken back, and whatever else is on its way is asked for anew; but not what the guest keeps, which it was asked for long
    enough: that is told again when it lets go.
    """
    if not now.plugs or state in {HostState.ABSENT, HostState.UNSPECIFIED}:
        return after
    if state is HostState.ERROR:
        return _given_up(after)
    if not fault_code:
        is_kept = after.fault is not None and after.fault.code == FaultCode.DEVICE_HELD
        return replace(after, plugs=(), fault=None if is_kept else after.fault)
    arriving = [each for each in now.plugs if not each.is_leaving]
    if not arriving and fault_code == FaultCode.DEVICE_HELD:
        return _given_up(after)
    back = after
    for each in arriving:
        back = without_volume(back, each.volume_id) if each.volume_id else without_port(back, each.port_id)
    generation = after.generation + 1
    taken_back = {(each.volume_id, each.port_id) for each in arriving}
    return replace(
        back,
        generation=generation,
        plugs=tuple(
            replace(
                each,
                generation=generation,
                event_seq=0 if (each.volume_id, each.port_id) in taken_back else each.event_seq,
            )
            for each in back.plugs
        ),
        # What is taken back is nobody's request: the event of its attachment ends.
        event=after.event,
        plugging=after.plugging,
    )


def _given_up(now: Instance) -> Instance:
    """The record whose devices are on their way still, but nobody waits for them any more."""
    return replace(now, plugs=tuple(replace(each, event_seq=0) for each in now.plugs))


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a record has let go of: ids of volumes, address slots of its host, and ids of ports of tenant networks.

    The ports of a server that has ended are not among them: all of them are given back with its charge.
    """

    volumes: tuple[str, ...] = ()
    slots: tuple[int, ...] = ()
    ports: tuple[str, ...] = ()


def dropped(now: Instance, after: Instance | None) -> Dropped:
    """What is free for others once `after` is the record; None: the server has ended, and has nothing any more."""
    kept_volumes = set() if after is None else set(volumes_of(after))
    kept_slots = set() if after is None else set(added_slots(after))
    kept_ports = set(tenant_ports_of(now if after is None else after))
    return Dropped(
        tuple(each for each in volumes_of(now) if each not in kept_volumes),
        tuple(each for each in added_slots(now) if each not in kept_slots),
        tuple(each for each in tenant_ports_of(now) if each not in kept_ports),
    )


def freed(volume: Volume, *, has_ended: bool, now_ms: int, op_id: str) -> Volume:
    """A volume that its server has let go of; where that `has_ended`, one that ends with it is to be removed."""
    is_over = has_ended and volume.ends_with_instance
    return replace(
        volume,
        state=VolumeState.DELETING if is_over else VolumeState.AVAILABLE,
        instance_id="",
        ends_with_instance=False,
        attach_time_ms=0,
        update_time_ms=now_ms,
        op_id=op_id,
    )


def tombstone_of(volume: Volume) -> Tombstone:
    """What has a volume's host remove its data."""
    return Tombstone(instance_id=volume.id, placement_epoch=VOLUME_EPOCH, directory=volume.directory)


def volumes_of(now: Instance) -> tuple[str, ...]:
    """The ids of every volume that the server has, or has not let go of yet."""
    wanted = tuple(each.id for each in now.request.guest.volumes)
    return (*wanted, *(each.volume_id for each in now.plugs if each.is_leaving and each.volume_id))


def added_slots(now: Instance) -> tuple[int, ...]:
    """The address slots of every added port that the server has, or has not let go of yet: the placement's own is none of them."""
    leaving = (each.slot for each in now.plugs if each.is_leaving and each.port_id)
    return (*(slot_of(each) for each in _added(now)), *(slot for slot in leaving if slot != NO_SLOT))


def tenant_ports_of(now: Instance) -> tuple[str, ...]:
    """The ids of every port of a tenant network that the server has, or has not let go of yet."""
    wanted = tuple(each.id for each in now.request.guest.tenant_ports)
    leaving = (each for each in now.plugs if each.is_leaving and each.port_id)
    return (*wanted, *(each.port_id for each in leaving if each.slot == NO_SLOT))


def is_placements_own(now: Instance, port: Port) -> bool:
    """Whether the port is the one whose address the placement itself has claimed: it is there as long as the placement is."""
    return port.is_host_local and now.slot != NO_SLOT and slot_of(port) == now.slot


def _added(now: Instance) -> tuple[Port, ...]:
    """The ports on the host's own network that were added to the placement's own one."""
    return tuple(each for each in now.ports if each.is_host_local and not is_placements_own(now, each))


def _with_tenant_ports(now: Instance, ports: tuple[Port, ...]) -> Instance:
    return replace(now, request=replace(now.request, guest=replace(now.request.guest, ports=ports)))


def _with_volumes(
    now: Instance, volumes: tuple[GuestVolume, ...], more: tuple[VolumeImage, ...] = ()
) -> Instance:
    guest, there = now.request.guest, {each.id for each in volumes}
    images = tuple(each for each in (*guest.volume_images, *more) if each.volume_id in there)
    return replace(
        now, request=replace(now.request, guest=replace(guest, volumes=volumes, volume_images=images))
    )
