"""Hosts as the cell sees them: what the admin approved, what is claimed, and the session that fences every write for them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from fabric.model.network import NO_SLOT


class SessionState(enum.IntEnum):
    """Where a host's session stands (host protocol, section 2). Only UP hosts get claims (R8)."""

    UNSPECIFIED = 0
    JOIN = 1
    UP = 2
    DRAIN = 3
    UNREACHABLE = 4
    DEAD = 5
    QUARANTINED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Amounts of what hosts have and guests take. Totals, claims and frees are all of this shape."""

    vcpus: int = 0
    ram_mib: int = 0
    disk_gib: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            vcpus=self.vcpus + other.vcpus,
            ram_mib=self.ram_mib + other.ram_mib,
            disk_gib=self.disk_gib + other.disk_gib,
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            vcpus=self.vcpus - other.vcpus,
            ram_mib=self.ram_mib - other.ram_mib,
            disk_gib=self.disk_gib - other.disk_gib,
        )

    def covers(self, other: Resources) -> bool:
        """Whether `other` fits into this, in every dimension."""
        return self.vcpus >= other.vcpus and self.ram_mib >= other.ram_mib and self.disk_gib >= other.disk_gib


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The admin-approved inventory: never written by hosts, so a hostile host cannot lure servers with invented memory.

    `capacity` is what may be claimed at most: hardware less what is reserved, times the overcommit ratio (vCPUs). `traits`
    are capability names (`HW_ARCH_X86_64`, `FIRMWARE_UEFI`, `SECURE_BOOT`, `GPU`, …). `cert_serial` is the allow-listed
    certificate. `guest_cidr` is the host-local guest subnet, `slots` how many addresses it can give.

    `tunnel_address` is where other hosts send what is for tenant networks here, in the underlay; a host without one has no part in
    them. `physical_networks` names what of the world outside its interfaces lead to (`Network.physical_network`).
    """

    name: str
    cell: str
    zone: str
    capacity: Resources
    traits: tuple[str, ...] = ()
    enabled: bool = True
    disabled_reason: str = ""
    cert_serial: str = ""
    guest_cidr: str = ""
    slots: int = 0
    create_time_ms: int = 0
    update_time_ms: int = 0
    tunnel_address: str = ""
    physical_networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The fence of a host: every write made for it compares this key's revision (R1)."""

    host: str
    epoch: int
    state: SessionState
    conductor: str = ""
    boot_id: str = ""
    agent_version: str = ""
    since_ms: int = 0
    renew_time_ms: int = 0
    reason: str = ""
    op_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What is claimed of a host: the compare-and-set point of every claim. `slots` are the taken address slots, ascending.

    `claimed` is what its servers take; `volumes_gib` what volumes take besides, whoever has them.
    """

    host: str
    claimed: Resources = field(default_factory=Resources)
    instances: int = 0
    slots: tuple[int, ...] = ()
    op_id: str = ""
    volumes_gib: int = 0

    @property
    def taken(self) -> Resources:
        """Everything that is claimed."""
        return self.claimed + Resources(disk_gib=self.volumes_gib)

    def with_volumes(self, more_gib: int, *, op_id: str) -> Use:
        """With so much more for volumes, or less. Raises ValueError when more would be given back than was claimed."""
        if self.volumes_gib + more_gib < 0:
            raise ValueError(f"volumes of host {self.host} give back more than they took")
        return replace(self, volumes_gib=self.volumes_gib + more_gib, op_id=op_id)

    def with_slot(self, slot: int, *, op_id: str) -> Use:
        """With one more address taken, by a guest that is counted already. Raises ValueError when it is taken."""
        if slot in self.slots:
            raise ValueError(f"slot {slot} of host {self.host} is taken")
        return replace(self, slots=tuple(sorted((*self.slots, slot))), op_id=op_id)

    def without_slot(self, slot: int, *, op_id: str) -> Use:
        """With one address fewer. Raises ValueError when nobody has it."""
        if slot not in self.slots:
            raise ValueError(f"slot {slot} of host {self.host} is free already")
        return replace(self, slots=tuple(taken for taken in self.slots if taken != slot), op_id=op_id)

    def free_slot(self, limit: int) -> int | None:
        """The lowest address slot below `limit` that nobody has, or None."""
        taken = set(self.slots)
        return next((slot for slot in range(limit) if slot not in taken), None)

    def has(self, slot: int) -> bool:
        """Whether a guest of this slot is in the book; `NO_SLOT` is not written down, and so is always."""
        return slot == NO_SLOT or slot in self.slots

    def plus(self, resources: Resources, slot: int, *, op_id: str) -> Use:
        """With one more guest, at this slot, or at none. Raises ValueError when it is taken: two guests would have one address."""
        placed = self if slot == NO_SLOT else self.with_slot(slot, op_id=op_id)
        return replace(placed, claimed=self.claimed + resources, instances=self.instances + 1, op_id=op_id)

    def minus(self, resources: Resources, slot: int, *, op_id: str) -> Use:
        """With that guest gone. Raises ValueError when no guest has the slot: something would be given back twice."""
        left = self if slot == NO_SLOT else self.without_slot(slot, op_id=op_id)
        return replace(left, claimed=self.claimed - resources, instances=self.instances - 1, op_id=op_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """What the resource tracker measured on the host. Shown to people and compared with the inventory; grants nothing."""

    host: str
    total: Resources
    used: Resources
    running: int = 0
    hypervisor: str = ""
    hypervisor_version: str = ""
    agent_version: str = ""
    health: str = "ok"
    report_time_ms: int = 0
    directories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell as the global store knows it."""

    name: str
    enabled: bool = True
    create_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellCapacity:
    """What a cell can take, as a scheduler published it lately: a hint for choosing the first cell, never a promise.

    Counts the `hosts` that take servers now; `free` is their sum, `largest` the most one of them has of each. `zones` are theirs.
    """

    cell: str
    hosts: int
    free: Resources
    largest: Resources
    zones: tuple[str, ...] = ()
    update_time_ms: int = 0
