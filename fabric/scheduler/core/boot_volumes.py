"""Servers that boot from a volume: where they can go, and what their claim takes besides.

The volume's row in the global store says which cell it belongs to, and is written before the first claim in that cell; its record in the
cell says which host has its data and which server has it, and is compared and written by the claim. So a volume has one server, and its
server runs where its data is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fabric.model.host import Resources
from fabric.model.instance import Build
from fabric.model.volume import Volume, VolumeEntry, VolumeState
from fabric.scheduler.core.ask import Ask
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.picture import Seen
from fabric.store import keys

VOLUME_UNAVAILABLE: Final = "VOLUME_UNAVAILABLE"
"""The fault of a server whose volume was deleted, or given to another server, after its create was accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """The volume that a build boots from: its row, and what the build's own cell knows of it."""

    entry: Seen[VolumeEntry]
    volume: Seen[Volume]

    @property
    def size_gib(self) -> int:
        """How large it is to be."""
        sizes = [each.value.size_gib for each in (self.entry, self.volume) if each.value is not None]
        return max(sizes, default=0)

    @property
    def more_gib(self) -> int:
        """What is to be claimed of its host for it, beside what it has claimed there."""
        before, entry = self.volume.value, self.entry.value
        if entry is not None and entry.directory:
            return 0
        return self.size_gib - (0 if before is None else before.claimed_gib)


def keys_of(build: Build) -> tuple[str, str] | None:
    """The keys of a build's volume: in the global store, and in the cell. None: it boots from an image."""
    root = build.request.guest.root_volume
    if root is None:
        return None
    return keys.VOLUME_ENTRY.at(build.project_id, root.id), keys.VOLUME.at(root.id)


def unavailable(root: Root, cell: str) -> str:
    """Why no server can have the volume here, for people; empty where one can."""
    entry, volume = root.entry.value, root.volume.value
    if entry is None or (volume is not None and volume.state in {VolumeState.DELETING, VolumeState.DELETED}):
        return "the volume that the server was to boot from was deleted meanwhile"
    if entry.cell not in {"", cell}:
        return f"the volume that the server was to boot from is used in cell {entry.cell} by now"
    if volume is not None and volume.state is not VolumeState.AVAILABLE:
        return (
            f"the volume that the server was to boot from was given to server {volume.instance_id} meanwhile"
        )
    return ""


def asked(ask: Ask, root: Root) -> Ask:
    """The ask with room for the volume, on the host that has its data; one that nobody has used, or in a shared directory, may go wherever
    the ask allows.
    """
    entry, volume = root.entry.value, root.volume.value
    directory = entry.directory if entry is not None else ""
    host = volume.host if volume is not None and not directory else ""
    cell = entry.cell if entry is not None else ""
    return replace(
        ask,
        resources=ask.resources + Resources(disk_gib=root.more_gib),
        host=ask.host or host,
        cell=ask.cell or cell,
    )


def bound(root: Root, cell: str, *, op_id: str) -> Change | None:
    """In the global store: the volume belongs to this cell from now on. None where it does already."""
    entry = root.entry.value
    if entry is None or entry.cell:
        return None
    key = keys.VOLUME_ENTRY.at(entry.project_id, entry.id)
    return Change(unchanged={key: root.entry.revision}, put={key: replace(entry, cell=cell, op_id=op_id)})


def claimed(root: Root, build: Build, host: str, *, now_ms: int, op_id: str) -> Volume | None:
    """The volume's record once the build has it, on this host. None where it cannot have it there."""
    entry = root.entry.value
    if entry is None:
        return None
    before = root.volume.value or Volume(
        id=entry.id, project_id=entry.project_id, state=VolumeState.AVAILABLE
    )
    if before.state is not VolumeState.AVAILABLE or (before.host not in {"", host} and not entry.directory):
        return None
    return replace(
        before,
        state=VolumeState.IN_USE,
        host=host,
        size_gib=root.size_gib,
        directory=entry.directory,
        instance_id=build.instance_id,
        ends_with_instance=build.request.root_ends_with_instance,
        attach_time_ms=now_ms,
        update_time_ms=now_ms,
        op_id=op_id,
    )
