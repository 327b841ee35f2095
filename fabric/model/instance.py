"""Instances, as the cell's store keeps them, and the guest that a host is told to make true."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fabric.model.event import Event
from fabric.model.host import Resources
from fabric.model.image import ImageFormat
from fabric.model.network import Port
from fabric.model.placement import Decision
from fabric.model.quota import Charge
from fabric.model.states import PowerState, TaskState, VmState, Want
from fabric.model.volume import GuestVolume, Plug


class OneShot(enum.IntEnum):
    """One-shot actions: not states to converge to but things to do once, counted by `ActionMark.seq` (R13)."""

    NONE = 0
    REBOOT_SOFT = 1
    REBOOT_HARD = 2
    REBUILD = 3
    SNAPSHOT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionMark:
    """The latest one-shot action asked for. `seq` only grows; a host does each seq at least once, in order of the latest.

    `image_id` is the image that a SNAPSHOT hands in.
    """

    seq: int = 0
    kind: OneShot = OneShot.NONE
    image_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """The bytes a disk starts as: everything a host needs to fetch and to verify them."""

    id: str
    name: str
    format: ImageFormat
    sha256: str
    size_bytes: int
    virtual_size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeImage:
    """What the data of one of a guest's volumes starts as. Once it is made, the image is not needed any more."""

    volume_id: str
    image: ImageRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescue:
    """What a server boots from while it is rescued: another image, with the server's own root disk as its second.

    `user_data` sets the one-time password, where one was asked for, and holds only its hash; a secret all the same.
    """

    image: ImageRef
    kernel: ImageRef | None = None
    ramdisk: ImageRef | None = None
    kernel_args: str = ""
    user_data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What a host needs to make a server true, complete and immutable for one placement.

    `public_keys` maps keypair names to OpenSSH public keys. `user_data` is at most 65,535 bytes (as in the reference), and a
    secret: never logged. The root disk of a `standalone` one is a whole copy of its image, which may be gone as soon as it is made.
    `image` is None where the root disk is a volume; then `disk_gib` is 0, because that takes its room by itself.
    """

    id: str
    name: str
    hostname: str
    project_id: str
    user_id: str
    vcpus: int
    ram_mib: int
    disk_gib: int
    image: ImageRef | None
    kernel: ImageRef | None = None
    ramdisk: ImageRef | None = None
    kernel_args: str = ""
    firmware: str = "bios"
    ports: tuple[Port, ...] = ()
    public_keys: Mapping[str, str] = field(default_factory=dict)
    user_data: bytes = field(default=b"", repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    availability_zone: str = ""
    config_drive: bool = True
    create_time_ms: int = 0
    standalone: bool = False
    rescue: Rescue | None = None
    volumes: tuple[GuestVolume, ...] = ()
    volume_images: tuple[VolumeImage, ...] = ()
    secure_boot: bool = False

    @property
    def root_volume(self) -> GuestVolume | None:
        """The volume that the guest boots from, where it is one."""
        return next((each for each in self.volumes if each.is_root), None)

    def image_of(self, volume_id: str) -> ImageRef | None:
        """What a volume's data starts as; None: it starts empty."""
        return next((each.image for each in self.volume_images if each.volume_id == volume_id), None)

    @property
    def tenant_ports(self) -> tuple[Port, ...]:
        """The interfaces that are the same on every host."""
        return tuple(port for port in self.ports if not port.is_host_local)

    def resources(self) -> Resources:
        """What the guest takes of its host."""
        return Resources(vcpus=self.vcpus, ram_mib=self.ram_mib, disk_gib=self.disk_gib)

    def images(self) -> tuple[ImageRef, ...]:
        """Every image the guest's own disks are made from, and what it is rescued with. Those of its volumes are not among them."""
        rescue = self.rescue
        others = () if rescue is None else (rescue.image, rescue.kernel, rescue.ramdisk)
        return tuple(ref for ref in (self.image, self.kernel, self.ramdisk, *others) if ref is not None)

    def booted(self) -> Guest:
        """The guest as it boots now: a rescued one by what rescues it."""
        rescue = self.rescue
        if rescue is None:
            return self
        return replace(
            self,
            kernel=rescue.kernel,
            ramdisk=rescue.ramdisk,
            kernel_args=rescue.kernel_args,
            user_data=rescue.user_data,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why something failed: a code from a closed list, words for people, where and when. Never carries a secret."""

    code: str
    message: str
    host: str = ""
    time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for, as the scheduler needs it: the guest without its place, and the constraints on where.

    The guest's ports here are those of tenant networks, which it has wherever it is. `network_id` is the hosts' own network, where it is to
    have an address that its claim fixes; empty: it is to have none. `root_ends_with_instance`: the volume that the server boots from is
    to be deleted with it.
    """

    guest: Guest
    zone: str = ""
    architecture: str = ""
    required_traits: tuple[str, ...] = ()
    forbidden_traits: tuple[str, ...] = ()
    network_id: str = ""
    network_name: str = ""
    network_mtu: int = 1500
    dns_servers: tuple[str, ...] = ()
    flavor_id: str = ""
    flavor_name: str = ""
    key_name: str = ""
    create_time_ms: int = 0
    root_ends_with_instance: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One placement of a server: everything about it that is the host's, or goes with it."""

    host: str
    placement_epoch: int
    slot: int
    request: Request
    ports: tuple[Port, ...] = ()
    disk: ImageRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A server between two hosts: of the one its record does not name, what is claimed there.

    Before the switch `other` is where it goes, and nothing is there yet. `has_switched`: `other` is where it came from, with its disk as it
    was; off, until the move is confirmed or reverted. `want` is what was wanted before, `vm_state` what it was.
    """

    other: Place
    want: Want
    vm_state: VmState
    has_switched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """The record of a server in its cell.

    `host` and `placement_epoch` say which copy is the one and only (I1); `generation` counts changes of intent,
    `observed_generation` the last one its host confirmed. `task` is what is in flight and the lock, `task_deadline_ms` when
    somebody must look, `task_request_id`, `task_by` (a user) and `task_start_ms` who asked and since when. A `locked` server refuses every
    change by those who are not administrators; `locked_reason` says why, and one `locked_by_admin` only they unlock. `event` is what is
    written down of the latest action. `tags` are for people, sorted. `attempt` counts placements tried. `uploaded` is the
    image that the latest snapshot has become, once its bytes are in. `op_id` names the write that made this value (R12).

    `vm_state_time_ms` is since when the server has been in its state. `purge_time_ms` is when a deleted one that is kept ends for good: as
    it was said when it was deleted, whatever is set since. `highest_epoch` is the highest placement epoch ever claimed: a server that went
    back to where it came from has a lower one. `move` is there while the server has a claim on a second host. `disk` is what the root disk
    of this placement is a copy of, where that is not the guest's image, and `carrier_id` the image that is kept only because it carries the
    server's disk: from one host to another, or while the server is shelved. `plugs` are the devices that its host has still to plug in or
    out, and `plugging` what is written down of those among them that are not the latest action any more.
    """

    id: str
    request: Request
    vm_state: VmState
    task: TaskState = TaskState.NONE
    power: PowerState = PowerState.NOSTATE
    power_seen_ms: int = 0
    want: Want = Want.RUN
    host: str = ""
    placement_epoch: int = 0
    slot: int = 0
    generation: int = 1
    observed_generation: int = 0
    action: ActionMark = field(default_factory=ActionMark)
    observed_action: int = 0
    ports: tuple[Port, ...] = ()
    attempt: int = 1
    alternates: tuple[str, ...] = ()
    decision: Decision | None = None
    fault: Fault | None = None
    task_deadline_ms: int = 0
    task_start_ms: int = 0
    task_request_id: str = ""
    launch_time_ms: int = 0
    create_time_ms: int = 0
    update_time_ms: int = 0
    op_id: str = ""
    locked: bool = False
    locked_reason: str = ""
    task_by: str = ""
    uploaded: ImageRef | None = None
    vm_state_time_ms: int = 0
    highest_epoch: int = 0
    move: Move | None = None
    disk: ImageRef | None = None
    carrier_id: str = ""
    event: Event | None = None
    locked_by_admin: bool = False
    tags: tuple[str, ...] = ()
    plugs: tuple[Plug, ...] = ()
    purge_time_ms: int = 0
    plugging: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one host must make true of one instance: the conductor's only queue, and the host's only orders."""

    instance_id: str
    placement_epoch: int
    generation: int
    want: Want
    action: ActionMark
    guest: Guest
    stop_timeout_s: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """The host must forget every copy of the instance with a placement epoch up to this one, then say so.

    One of a volume, which has an id like a server's, is for its file, in a shared `directory` where that is not empty. `volumes` are those
    that the instance had: free when it is gone.
    """

    instance_id: str
    placement_epoch: int
    volumes: tuple[str, ...] = ()
    directory: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveWanted:
    """Work for the scheduler: the server wants another host, or one at all.

    `request` is what it is to be there; `host` the only one that will do, empty for any, `excluded` one that has just failed. `image_id` is
    the image that its disk travels in, empty where it has been put into one already.
    """

    instance_id: str
    request: Request
    host: str = ""
    excluded: str = ""
    image_id: str = ""
    create_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """Work for the reconciler: an image that only carried one server's disk, and is needed no more."""

    image_id: str
    instance_id: str
    project_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recharge:
    """Work for the reconciler: what the server costs may have changed, and its project's charge is to follow."""

    instance_id: str
    project_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """The instance's life is over: no claim may raise it again, however late (hole 3 of the protocol draft)."""

    instance_id: str
    over_time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund:
    """Work for the reconciler: the cell confirmed the end, so the project's charge is to be given back, once."""

    instance_id: str
    project_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """Work for the reconciler: the server has another name now, and its index row is to follow."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortLeft:
    """Work for the reconciler: a port of a tenant network that the server does not have, or no more, is nobody's, or ends.

    Written when the server's host has let go of it. And before one is bound to a server that is there, for later (`not_before_ms`): whoever
    plugs it into the server takes this away in that very write, so what breaks off in between is tidied up. `op_id` names the write that
    made this value (R12).
    """

    instance_id: str
    project_id: str
    port_id: str
    not_before_ms: int = 0
    op_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """The global index row of a server: where it lives, whose it is, what it is charged.

    `port_ids` are the ports of tenant networks that are held for it. Whoever binds a port to the server writes this too, and whoever ends
    the server compares it: so no port is bound to a server that has ended.
    """

    instance_id: str
    project_id: str
    user_id: str
    name: str
    cell: str
    charge: Charge
    create_time_ms: int = 0
    op_id: str = ""
    port_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """An accepted create on its way to a host. `cancelled` is set by a delete that came before the claim, by whom and under which
    request id beside it.
    """

    instance_id: str
    cell: str
    request: Request
    project_id: str
    cancelled: bool = False
    tried_cells: tuple[str, ...] = ()
    create_time_ms: int = 0
    op_id: str = ""
    request_id: str = ""
    cancelled_by: str = ""
    cancel_request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answer to a request_id: which resource it made or changed, and the digest of the body it came with."""

    request_id: str
    project_id: str
    method: str
    body_sha256: str
    resource_id: str
    expire_time_ms: int
