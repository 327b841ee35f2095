"""Volumes, as they are written: each has one server at most, as both records say, and its host's book counts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fabric.lifecycle.devices import added_slots, volumes_of
from fabric.model.host import Use
from fabric.model.instance import Instance
from fabric.model.quota import Charge
from fabric.model.volume import Volume, VolumeEntry, VolumeState
from fabric.store import codec


@dataclass(slots=True)
class CellVolumes:
    """The volumes of one cell."""

    by_id: dict[str, Volume] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)

    def was_made(self, host: str, volume_id: str) -> str | None:
        """A host made its disk: what is wrong with that, in words. One that was made has data, and is never made again."""
        if volume_id in self.made:
            return f"V3 {host} made volume {volume_id}, which had been made before: its data is lost"
        self.made.add(volume_id)
        record = self.by_id.get(volume_id)
        if record is None or record.host != host:
            return f"V2 {host} made volume {volume_id}, which is not its own"
        return None

    def was_removed(self, host: str, volume_id: str) -> str | None:
        """A host removed its disk: what is wrong with that, in words."""
        record = self.by_id.get(volume_id)
        if record is not None and record.state not in {VolumeState.DELETING, VolumeState.DELETED}:
            return f"V3 {host} removed volume {volume_id}, which is {record.state.name}: its data is lost"
        return None

    def wrote(self, volume_id: str, after: bytes | None) -> None:
        """A record of a volume, as it is now."""
        self.by_id.pop(volume_id, None)
        if after is not None:
            self.by_id[volume_id] = codec.decode(Volume, after)

    def gib_on(self, host: str) -> int:
        """What volumes claim of a host."""
        return sum(each.claimed_gib for each in self.by_id.values() if each.host == host)

    def wrong(self, instances: Mapping[str, Instance]) -> str | None:
        """The first disagreement of volumes and servers, in words.

        A volume whose server has ended is still that one's while its host is silent, and may be forgotten by none.
        """
        for volume_id, volume in self.by_id.items():
            record = instances.get(volume.instance_id)
            if record is not None and volume_id not in volumes_of(record):
                return f"V1 volume {volume_id} says that {volume.instance_id} has it, which does not"
            has_server = volume.state in {VolumeState.IN_USE, VolumeState.DETACHING}
            if has_server is not bool(volume.instance_id):
                return f"V1 volume {volume_id} is {volume.state.name} and of server {volume.instance_id!r}"
        for instance_id, record in instances.items():
            for volume_id in volumes_of(record):
                its = self.by_id.get(volume_id)
                if its is None or its.instance_id != instance_id:
                    return f"V1 {instance_id} has volume {volume_id}, which is not its own"
                if its.host != record.host and record.host and not its.directory:
                    return f"V2 {instance_id} is on {record.host}, and its volume {volume_id} on {its.host}"
        return None


def slots_of(instances: Mapping[str, Instance], host: str) -> int:
    """How many address slots servers of a host have beside their first."""
    return sum(len(added_slots(each)) for each in instances.values() if each.host == host)


def charged(entries: Mapping[str, VolumeEntry], project: str) -> Charge:
    """What a project's volumes cost it."""
    sizes = [each.size_gib for each in entries.values() if each.project_id == project]
    return Charge(volumes=len(sizes), volume_gib=sum(sizes))


def unsettled(
    cell: CellVolumes,
    entries: Mapping[str, VolumeEntry],
    instances: Mapping[str, Instance],
    uses: Mapping[str, Use],
) -> str | None:
    """The first volume that is not at rest once everything is quiet, in words."""
    for volume_id, volume in cell.by_id.items():
        if volume.state in {VolumeState.DETACHING, VolumeState.DELETING}:
            return f"I7 volume {volume_id} is still {volume.state.name}"
        if volume.state is not VolumeState.DELETED and volume_id not in entries:
            return f"I9 volume {volume_id} is there, and nobody's"
        if volume.state is VolumeState.DELETED and volume_id in entries:
            return f"I9 volume {volume_id} is gone, and still charged"
        if volume.instance_id and volume.instance_id not in instances:
            return f"I9 volume {volume_id} is of {volume.instance_id}, which has ended"
    for instance_id, record in instances.items():
        if record.plugs:
            return f"I7 {instance_id} has devices on their way: {record.plugs}"
    for host, use in uses.items():
        if use.volumes_gib != cell.gib_on(host):
            return f"I2 {host} counts {use.volumes_gib} GiB of volumes, and has {cell.gib_on(host)}"
    return None


def is_asked_still(before: Instance, after: Instance) -> bool:
    """Whether what is asked of a server is what was. What its host could not plug in is taken back, with the fault that tells why."""
    if before.request == after.request:
        return True
    back = {each.volume_id or each.port_id for each in before.plugs if not each.is_leaving}
    guest = before.request.guest
    less = replace(
        guest,
        volumes=tuple(each for each in guest.volumes if each.id not in back),
        volume_images=tuple(each for each in guest.volume_images if each.volume_id not in back),
        ports=tuple(each for each in guest.ports if each.id not in back),
    )
    return after.fault is not None and after.request == replace(before.request, guest=less)
