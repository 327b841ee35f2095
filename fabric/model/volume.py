"""Volumes: disks with a life of their own. What people name is in the global store, where it is and whose guest has it in one cell's."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from fabric.model.image import Image

VOLUME_EPOCH: Final = 1
"""The placement epoch of a volume's file: a host lets go of a volume as it does of a server's placement, and there is only one."""

SHARED_MARK: Final = "cellfabric-volumes"
"""The file that says: this is a shared directory for volumes, and not the place where it is to be mounted."""

_SERIAL: Final = re.compile(r"[0-9a-f]{20}")


class VolumeState(enum.IntEnum):
    """What a volume is, as its cell knows it."""

    UNSPECIFIED = 0
    AVAILABLE = 1
    IN_USE = 2
    DETACHING = 3
    DELETING = 4
    DELETED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestVolume:
    """A volume that a guest has: what its host needs to make it and to plug it in. `is_root`: it is the disk that the guest boots from.

    `directory` is the shared directory that its data is in, by name; empty: the host's own files.
    """

    id: str
    size_gib: int
    is_root: bool = False
    directory: str = ""

    @property
    def serial(self) -> str:
        """The serial number of the disk, by which the guest finds it: /dev/disk/by-id/virtio-SERIAL."""
        return serial_of(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeEntry:
    """The global index row of a volume: whose it is, what it is called, what it is charged.

    `cell` is where it is used, empty until it first is: from then on it stays there. `image` is what its data starts as, as that was when
    the volume was asked for; None: it starts empty. `directory` is the shared directory that its data is to be in; empty: its data is in
    files of the one host that first has it. `op_id` names the write that made this value (R12).
    """

    id: str
    project_id: str
    user_id: str
    name: str
    size_gib: int
    cell: str = ""
    create_time_ms: int = 0
    update_time_ms: int = 0
    op_id: str = ""
    image: Image | None = None
    directory: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume in its cell. There from its first use on; and, DELETED, for a while after its end, so that nothing late raises it again.

    `host` has its file, and claims `size_gib` there; empty: none has. Of one in a shared `directory` it is the host that it was last
    attached on, and claims nothing. `instance_id` is the one server that has it, or is to let it go,
    `ends_with_instance` whether it goes when that server does.
    """

    id: str
    project_id: str
    state: VolumeState
    size_gib: int = 0
    host: str = ""
    instance_id: str = ""
    ends_with_instance: bool = False
    attach_time_ms: int = 0
    update_time_ms: int = 0
    op_id: str = ""
    directory: str = ""

    @property
    def claimed_gib(self) -> int:
        """What it claims of its host's disk."""
        return self.size_gib if self.host and not self.directory else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeEnd:
    """Work for the reconciler: the volume's data is gone, so its index row is to go, and its charge to be given back, once."""

    volume_id: str
    project_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """A device on its way into a guest or out of it: the guest's host has not yet said of `generation` that it is so.

    Either a volume or a port. `slot` is the address slot of a port that leaves: nobody has it until the host has let go of it. A port of a
    tenant network has none (`NO_SLOT`), and is nobody else's until then either. `event_seq` is the event of the record that goes on until
    then; 0: there is none, or it has ended.
    """

    generation: int
    volume_id: str = ""
    port_id: str = ""
    slot: int = 0
    is_leaving: bool = False
    event_seq: int = 0


def serial_of(volume_id: str) -> str:
    """The serial number of a volume's disk: the 20 last digits of its id, as many as virtio carries."""
    return volume_id.replace("-", "")[-20:]


def trait_of(directory: str) -> str:
    """The trait of the hosts that an administrator has found to share a directory: what a host says of itself grants nothing."""
    return f"VOLUMES_{directory.upper()}"


def is_serial(text: str) -> bool:
    """Whether a disk with this serial number is a volume: a guest's own disks have words."""
    return _SERIAL.fullmatch(text) is not None
