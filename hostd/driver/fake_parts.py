"""What a simulated machine is made of: how long it takes, what it tells, and the domains and copies that it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fabric.model.states import PowerState
from hostd.driver.base import DiskFile, Domain, DomainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """How long things take on the machine, in seconds of the loop's time."""

    observe_s: float = 0.001
    define_s: float = 0.003
    hold_s: float = 0.01
    start_s: float = 0.05
    cut_power_s: float = 0.02
    plug_s: float = 0.02
    let_go_s: float = 0.3
    guest_shutdown_s: float = 3.0
    wire_s: float = 0.03
    disk_s: float = 0.03
    copy_s: float = 0.2
    image_chunk_s: float = 0.005


POWER_LOST: Final = "power lost"

INSTANT: Final = Delays(
    observe_s=0,
    define_s=0,
    hold_s=0,
    start_s=0,
    cut_power_s=0,
    plug_s=0,
    let_go_s=0,
    guest_shutdown_s=0,
    wire_s=0,
    disk_s=0,
    copy_s=0,
    image_chunk_s=0,
)
"""No delays, for tests that are not about time: each operation still yields to the loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineEvent:
    """Something physical happened: what a checker of "one server runs once" is fed with.

    `kind` is `defined`, `started`, `stopped`, `reset`, `forgotten`, `files_removed`, `plugged`, `unplugged`, `shared`, `volume_made`,
    `volume_removed`, `power_lost` or `power_back`; the last two have no instance, and those of volumes have their id in its place. `shared`
    is a guest that was given a disk which another has open: it was refused, and should never have been asked for. `detail` says by what.
    """

    host: str
    kind: str
    instance_id: str = ""
    placement_epoch: int = 0
    generation: int = 0
    detail: str = ""


@dataclass(slots=True)
class FakeDomain:
    """A domain: what it is defined as, what it runs as where it runs, and whose memory is saved. They differ after a redefine."""

    defined: DomainSpec
    running: DomainSpec | None = None
    saved: DomainSpec | None = None
    power: PowerState = PowerState.SHUTDOWN
    boots: int = 0

    @property
    def spec(self) -> DomainSpec:
        """The definition that shows: the running one where there is one."""
        return self.running or self.defined


@dataclass(slots=True)
class FakeShelf:
    """A directory for volumes that several machines share: sizes in GiB and contents by id, and what each of them has running."""

    sizes: dict[str, int] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)
    domains: list[dict[str, FakeDomain]] = field(default_factory=list)


@dataclass(slots=True)
class FakeCopy:
    """A copy of a root disk: the file's path while it is being made, what is in it, and whether it is sealed."""

    path: str
    data: bytes | None = None
    is_sealed: bool = False


def opener(
    disk: DiskFile, instance_id: str, domains: dict[str, FakeDomain], shelves: dict[str, FakeShelf]
) -> DomainSpec | None:
    """The other guest that has a disk open: of the same machine, or of any that shares the directory that the disk is in."""
    sharing = [
        each
        for name, shelf in shelves.items()
        if disk.path.startswith(f"/fake/shared/{name}/")
        for each in shelf.domains
    ]
    for machine in sharing or [domains]:
        for other_id, other in machine.items():
            is_own = machine is domains and other_id == instance_id
            if not is_own and other.running and any(each.path == disk.path for each in other.running.disks):
                return other.running
    return None


def seen(domain: FakeDomain, *, in_full: bool = False) -> Domain:
    """The domain as a hypervisor shows it; `in_full` with its devices."""
    held = (domain.running or domain.saved) if in_full else None
    return Domain(
        name=f"cellfabric-{domain.spec.guest.id}",
        instance_id=domain.spec.guest.id,
        placement_epoch=domain.spec.placement_epoch,
        generation=domain.spec.generation,
        power=domain.power,
        disks=() if held is None else tuple(disk.serial for disk in held.disks if disk.serial),
        macs=() if held is None else tuple(each.mac for each in held.interfaces),
    )
