"""Booting from a volume, as rules on values: which volumes can be booted from, and what a create writes besides for one.

The volume is the server's when the scheduler claims it, in the cell's transaction, which compares it: of two creates that ask for one at
once, the later ends in ERROR. What can be said before, is said here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fabric.errors import InvalidRequest, WrongState
from fabric.model.image import Image
from fabric.model.quota import Charge
from fabric.model.volume import Volume, VolumeEntry, VolumeState
from fabric.quota.core import Admission
from fabric.store.keys import VOLUME_ENTRY, VOLUME_NAME

NAMES: Final = 200
"""Characters of a server's name in the name of the volume that is made for it, which has room for a suffix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootVolume:
    """The volume that a server is to boot from, at the revision that its row was read; 0: it is to be made with the server."""

    entry: VolumeEntry
    revision: int = 0
    ends_with_instance: bool = False

    @property
    def charge(self) -> Charge:
        """What it costs besides the server: nothing, where it is there already."""
        return Charge() if self.revision else Charge(volumes=1, volume_gib=self.entry.size_gib)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a create says of what the server is to boot from."""

    image: str = ""
    volume: str = ""
    new_gib: int = 0
    ends_with_instance: bool = False


def check_sources(asked: Sources) -> None:
    """Whether it is one thing that is asked for. Raises InvalidRequest, naming the field."""
    if asked.volume and asked.image:
        raise InvalidRequest(
            "a server boots from an image or from a volume: leave one of them out", field="volume"
        )
    if asked.volume and asked.new_gib:
        raise InvalidRequest(
            "a new volume is made of an image: give image with it, and not volume", field="boot_volume_gib"
        )
    if not asked.volume and not asked.image:
        raise InvalidRequest("say what the server boots from: image or volume", field="image")
    if asked.ends_with_instance and not asked.volume and not asked.new_gib:
        raise InvalidRequest(
            "the disk of a server that boots from an image always ends with it",
            field="delete_volume_on_termination",
        )


def check_bootable(entry: VolumeEntry, volume: Volume | None) -> None:
    """Whether a server could boot from it now. `volume` is what its cell knows, None for one that was never used. Raises WrongState."""
    if volume is not None and volume.state is not VolumeState.AVAILABLE:
        doing = {
            VolumeState.IN_USE: f"is attached to server {volume.instance_id}",
            VolumeState.DETACHING: f"is still being detached from server {volume.instance_id}",
        }.get(volume.state, "is being deleted")
        raise WrongState(f"volume {entry.name!r} {doing}: a volume has one server at a time", action="create")
    if entry.image is None and (volume is None or not volume.host):
        raise WrongState(
            f"volume {entry.name!r} is empty: a server boots from a volume that was made of an image, or that another one has written to",
            action="create",
        )


def new_root(
    image: Image, size_gib: int, *, volume_id: str, project_id: str, user_id: str, server: str, now_ms: int
) -> VolumeEntry:
    """The volume that is made of an image for one server. Two servers may have one name; two volumes may not."""
    return VolumeEntry(
        id=volume_id,
        project_id=project_id,
        user_id=user_id,
        name=f"{server[:NAMES]}-{volume_id[-12:]}",
        size_gib=size_gib,
        image=image,
        create_time_ms=now_ms,
        update_time_ms=now_ms,
    )


def admitted(admission: Admission, root: RootVolume, *, op_id: str) -> Admission:
    """The admission of a server that boots from a volume: which is as it was read, or is made in the same transaction."""
    entry = root.entry
    key = VOLUME_ENTRY.at(entry.project_id, entry.id)
    unchanged = {**admission.unchanged, key: root.revision}
    if root.revision:
        return replace(admission, unchanged=unchanged)
    name_key = VOLUME_NAME.at(entry.project_id, entry.name)
    return replace(
        admission,
        charge=admission.charge + root.charge,
        unchanged={**unchanged, name_key: 0},
        put={**admission.put, key: replace(entry, op_id=op_id), name_key: entry.id},
    )
