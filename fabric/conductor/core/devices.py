"""What a server lets go of besides its place: volumes and addresses that its host has said are free, and volumes whose data is gone.

Each is written in the transaction of the word that made it so, and compares the volume, so that a volume is never free while a guest may
have it, and never lost.
"""

from __future__ import annotations

from dataclasses import replace

from fabric.conductor.core.draft import Draft, Ref, ref
from fabric.lifecycle.devices import dropped, freed, tombstone_of, volumes_of
from fabric.model.instance import Instance, PortLeft
from fabric.model.volume import Volume, VolumeEnd, VolumeState
from fabric.store.keys import PORT_LEFT, TOMBSTONE, USE, VOLUME, VOLUME_END


def device_reads(now: Instance | None) -> tuple[Ref, ...]:
    """What letting go of devices looks at, beside the host's book of claims."""
    return () if now is None else tuple(ref(VOLUME, each) for each in volumes_of(now))


def drop_devices(
    draft: Draft, now: Instance, after: Instance | None, *, is_gone: bool, now_ms: int, op_id: str
) -> tuple[str, ...]:
    """Free what `after` has no more. Keys as in `device_reads`.

    `is_gone`: the host has said so. Where it has not, because it is silent and the server was ended without it, the volumes that are left
    are returned: its host may still write to them, and they are free when it has forgotten its copy (`free_volumes`).
    """
    gone = dropped(now, after)
    use = draft.get(USE, now.host) if gone.slots and now.host else None
    for slot in gone.slots:
        if use is not None and slot in use.slots:
            use = use.without_slot(slot, op_id=op_id)
            draft.put(USE, now.host, value=use)
    if is_gone:
        free_volumes(draft, now.id, gone.volumes, has_ended=after is None, now_ms=now_ms, op_id=op_id)
        return ()
    return gone.volumes


def leave_ports(draft: Draft, now: Instance, after: Instance) -> None:
    """Have the ports of tenant networks given back that `after` has no more. The global store is written after this one, so a crash in
    between leaves them held, and the work there to be done.
    """
    project_id = now.request.guest.project_id
    for port_id in dropped(now, after).ports:
        draft.create(
            PORT_LEFT,
            port_id,
            value=PortLeft(instance_id=now.id, project_id=project_id, port_id=port_id),
        )


def free_volumes(
    draft: Draft, instance_id: str, volumes: tuple[str, ...], *, has_ended: bool, now_ms: int, op_id: str
) -> None:
    """Let others have these volumes of the instance; where it `has_ended`, those that end with it are removed instead."""
    for volume_id in volumes:
        volume = draft.get(VOLUME, volume_id)
        if volume is None or volume.instance_id != instance_id:
            continue
        free = freed(volume, has_ended=has_ended, now_ms=now_ms, op_id=op_id)
        if free.state is VolumeState.DELETING:
            bury_volume(draft, free)
        draft.put(VOLUME, volume_id, value=free)


def bury_volume(draft: Draft, volume: Volume) -> None:
    """Have its host remove the volume's data. The host's session is the caller's to compare (R8)."""
    draft.create(TOMBSTONE, volume.host, volume.id, value=tombstone_of(volume))


def end_volume(draft: Draft, host: str, volume_id: str, *, now_ms: int, op_id: str) -> None:
    """Write that a volume's data is gone from its host, where it was to go: it takes no room there, and its index row is to follow."""
    volume = draft.get(VOLUME, volume_id)
    if volume is None or volume.state is not VolumeState.DELETING or volume.host != host:
        return
    use = draft.get(USE, host)
    if use is not None and use.volumes_gib >= volume.claimed_gib > 0:
        draft.put(USE, host, value=use.with_volumes(-volume.claimed_gib, op_id=op_id))
    over = replace(volume, state=VolumeState.DELETED, host="", size_gib=0, update_time_ms=now_ms, op_id=op_id)
    draft.put(VOLUME, volume_id, value=over)
    draft.create(VOLUME_END, volume_id, value=VolumeEnd(volume_id=volume_id, project_id=volume.project_id))
