"""What must be true once everything is healed and quiet (I7, I9, I10): the full sweep of the stores and the hosts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fabric.lifecycle.events import written_down
from fabric.model.event import Outcome
from fabric.model.image import ImageState
from fabric.model.states import VmState, Want
from fabric.model.volume import VolumeState
from tests.history import moves, volumes
from tests.history.invariants import Checker, is_at_rest


@dataclass(frozen=True, slots=True, kw_only=True)
class HostHoldings:
    """What one host really has, by instance id and placement epoch; `running` by id."""

    host: str
    running: frozenset[str] = frozenset()
    domains: frozenset[tuple[str, int]] = frozenset()
    files: frozenset[tuple[str, int]] = frozenset()
    wires: frozenset[tuple[str, int]] = frozenset()
    volumes: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()

    def everything(self) -> frozenset[tuple[str, int]]:
        return self.domains | self.files | self.wires


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """Keys that only exist while something is under way, by store."""

    keys: Mapping[str, Iterable[str]] = field(default_factory=dict)


_PASSING = ("build/", "refund/", "tombstone/", "move/", "discard/", "recharge/", "volume-end/", "port-left/")


def unsettled(checker: Checker, holdings: Iterable[HostHoldings], leftovers: Leftovers) -> str | None:
    """The first thing that is not at rest, or left behind, in words; None when all is well."""
    checker.end_of_revision()
    hosts = {each.host: each for each in holdings}
    for store, names in leftovers.keys.items():
        for key in names:
            if key.startswith(_PASSING):
                return f"I9 {key} is left in {store}"
    records = {each: record for books in checker.cells.values() for each, record in books.instances.items()}
    for instance_id in sorted(checker.accepted):
        record = records.get(instance_id)
        if record is not None and checker.keeps:
            if record.vm_state is VmState.SOFT_DELETED:
                return f"I7 {instance_id} is kept, and its time is yet to come"
            if instance_id in checker.restored or record.vm_state is VmState.ERROR:
                continue  # it was brought back, or could not be powered off: its delete has another end
        if instance_id in checker.deleted or (record is None and instance_id in checker.deleting):
            if record is not None:
                return f"I9 {instance_id} was deleted, and its record is there: {record.vm_state.name} {record.task.name}"
            if instance_id in checker.locations:
                return f"I9 {instance_id} was deleted, and is still charged"
            continue
        if record is None:
            return f"I7 {instance_id} was accepted, and has no record"
    for instance_id, record in sorted(records.items()):
        if record.want is Want.ABSENT:
            return f"I7 {instance_id} is still being deleted"
        if not is_at_rest(record):
            return f"I7 {instance_id} is stuck: {record.vm_state.name} {record.task.name} {record.observed_generation}/{record.generation}"
        for event in written_down(record):
            if event.outcome is Outcome.RUNNING:
                return f"I7 {instance_id} is at rest, and its {event.action} ({event.seq}) is still said to go on"
        if instance_id not in checker.locations:
            return f"I9 {instance_id} has a record and no owner"
        charge = checker.locations[instance_id].charge
        if record.move is None and charge != moves.cost(record):
            return f"I9 {instance_id} is charged {charge}, and costs {moves.cost(record)}"
        if record.move is not None and not record.move.has_switched:
            return f"I7 {instance_id} is still on its way to {record.move.other.host}"
        runs_on = [name for name, each in hosts.items() if instance_id in each.running]
        if record.vm_state is not VmState.ERROR:
            wanted = [record.host] if record.want in {Want.RUN, Want.PAUSE} else []
            if runs_on != wanted:
                return f"I7 {instance_id} runs on {runs_on}, and should on {wanted}"
    for instance_id in sorted(checker.locations):
        if instance_id not in records:
            return f"I9 {instance_id} is charged, and has no record"
    for books in checker.cells.values():
        left = volumes.unsettled(books.volumes, checker.volumes, books.instances, books.uses)
        if left is not None:
            return left
    held = checker.ports.unsettled(records)
    if held is not None:
        return held
    for image_id, image in sorted(checker.images.items()):
        # One without bytes, made when its move was called off just then, is swept when it has waited in vain.
        if image.hidden and image.state is ImageState.ACTIVE:
            return f"I9 image {image_id} is left, in which {image.name} was to travel"
    for name, each in hosts.items():
        known = {
            volume_id
            for books in checker.cells.values()
            for volume_id, volume in books.volumes.by_id.items()
            if volume.host == name
        }
        for volume_id in sorted(each.volumes - known):
            return f"I10 {name} still holds volume {volume_id}"
        ended = {
            volume_id
            for books in checker.cells.values()
            for volume_id, volume in books.volumes.by_id.items()
            if volume.state is VolumeState.DELETED
        }
        for volume_id in sorted(each.shared & ended):
            return f"I10 the directory that {name} shares still holds volume {volume_id}"
        for instance_id, placement_epoch in sorted(each.everything()):
            record = records.get(instance_id)
            if record is None or moves.named(record).get(name) != placement_epoch:
                return f"I10 {name} still holds {instance_id} of placement {placement_epoch}"
    return None
