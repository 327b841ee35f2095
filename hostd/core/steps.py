"""The steps that make an order true, as values: each measures or acts once, and may run again after a crash.

`reached` names the failpoint just after a step, so that a test can end the process there and see that nothing is lost or done twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fabric.model.instance import ImageRef
from fabric.model.session import HostState
from fabric.model.states import PowerState
from fabric.model.volume import GuestVolume
from hostd.core.faults import FaultCode
from hostd.driver.base import DiskFile, Interface
from hostd.images.base import DiskCopy, GuestDisks


@dataclass(frozen=True, slots=True)
class EnsureImage:
    """Have an image in the cache. `for_plug`: for a volume that is to be plugged into a guest which goes on without, should this fail."""

    reached: ClassVar[str] = "hostd.spawn.image"
    image: ImageRef
    for_plug: bool = False


@dataclass(frozen=True, slots=True)
class EnsureFiles:
    """Have the guest's own disks. `made`: they were made before, so that losing them is a fault and not a reason to make others."""

    reached: ClassVar[str] = "hostd.spawn.files"
    made: bool = False


@dataclass(frozen=True, slots=True)
class EnsureVolumes:
    """Have the disks of the guest's volumes, for it alone. `makes`: some of them are still to be made of an image."""

    reached: ClassVar[str] = "hostd.spawn.volumes"
    makes: bool = False


@dataclass(frozen=True, slots=True)
class Plug:
    """Have the guest's taps, with their filters."""

    reached: ClassVar[str] = "hostd.spawn.plugged"


@dataclass(frozen=True, slots=True)
class Prepare:
    """Two steps that need nothing of one another, side by side. Each is permitted, reached and remembered for itself."""

    files: EnsureFiles
    wires: Plug


@dataclass(frozen=True, slots=True)
class Define:
    """Write the domain's definition, with its marks."""

    reached: ClassVar[str] = "hostd.spawn.defined"
    files: GuestDisks
    interfaces: tuple[Interface, ...]
    volumes: tuple[DiskFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """Boot the domain. The one step that needs a permit (R5)."""

    reached: ClassVar[str] = "hostd.spawn.started"


@dataclass(frozen=True, slots=True)
class PressPower:
    """Ask the guest to shut down."""

    reached: ClassVar[str] = "hostd.stop.pressed"


@dataclass(frozen=True, slots=True)
class PressReset:
    """Ask the guest to reboot."""

    reached: ClassVar[str] = "hostd.reboot.pressed"


@dataclass(frozen=True, slots=True)
class CutPower:
    """Stop the domain at once."""

    reached: ClassVar[str] = "hostd.stop.cut"


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold the running guest: paused, or its memory saved."""

    reached: ClassVar[str] = "hostd.hold.held"
    power: PowerState


@dataclass(frozen=True, slots=True)
class AttachDisk:
    """Have a volume's disk, and plug it into the running guest."""

    reached: ClassVar[str] = "hostd.plug.disk"
    volume: GuestVolume


@dataclass(frozen=True, slots=True)
class DetachDisk:
    """Ask the running guest to let go of a disk."""

    reached: ClassVar[str] = "hostd.unplug.disk"
    serial: str


@dataclass(frozen=True, slots=True)
class Rewire:
    """Have the running guest's taps, those it has and those it is to have, and no others."""

    reached: ClassVar[str] = "hostd.plug.wired"


@dataclass(frozen=True, slots=True)
class AttachInterface:
    """Plug an interface into the running guest."""

    reached: ClassVar[str] = "hostd.plug.interface"
    interface: Interface


@dataclass(frozen=True, slots=True)
class DetachInterface:
    """Ask the running guest to let go of an interface."""

    reached: ClassVar[str] = "hostd.unplug.interface"
    mac: str


@dataclass(frozen=True, slots=True)
class GoOn:
    """Let a paused guest go on. Like a start it needs a permit (R5)."""

    reached: ClassVar[str] = "hostd.hold.gone_on"


@dataclass(frozen=True, slots=True)
class Forget:
    """Stop the domain and remove its definition."""

    reached: ClassVar[str] = "hostd.delete.forgotten"


@dataclass(frozen=True, slots=True)
class Unplug:
    """Remove taps, filters and leases of every placement up to this one."""

    reached: ClassVar[str] = "hostd.delete.unplugged"
    placement_epoch: int


@dataclass(frozen=True, slots=True)
class RemoveFiles:
    """Remove the files of every placement up to this one."""

    reached: ClassVar[str] = "hostd.delete.removed"
    placement_epoch: int


@dataclass(frozen=True, slots=True)
class ClearDisks:
    """Remove the files of this placement, for others to be made in their stead."""

    reached: ClassVar[str] = "hostd.rebuild.cleared"
    placement_epoch: int


@dataclass(frozen=True, slots=True)
class Capture:
    """Copy the root disk as it is at one instant: of a guest that holds memory through its hypervisor, else the file."""

    reached: ClassVar[str] = "hostd.snapshot.captured"
    action_seq: int
    is_on: bool


@dataclass(frozen=True, slots=True)
class HandIn:
    """Hand a copy in as the image that the order names."""

    reached: ClassVar[str] = "hostd.snapshot.handed_in"
    action_seq: int
    copy: DiskCopy


@dataclass(frozen=True, slots=True)
class DropCopies:
    """Remove what copies of the placement's disk there are, whole or not."""

    reached: ClassVar[str] = "hostd.snapshot.dropped"


@dataclass(frozen=True, slots=True)
class MarkStarted:
    """Journal that a one-shot action begins (R13). `unmakes`: with it the disks that were made count no more."""

    reached: ClassVar[str] = "hostd.action.started"
    action_seq: int
    unmakes: bool = False


@dataclass(frozen=True, slots=True)
class MarkDone:
    """Journal that a one-shot action is done, before anybody is told (R13)."""

    reached: ClassVar[str] = "hostd.action.done"
    action_seq: int


@dataclass(frozen=True, slots=True)
class MarkMade:
    """Journal that the guest's disks are made: before it can have written to them."""

    reached: ClassVar[str] = "hostd.spawn.made"


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until an instant of the boot clock, or, with None, until something changes."""

    until_s: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Settled:
    """As true as it gets: what to tell the conductor."""

    state: HostState
    power: PowerState = PowerState.NOSTATE
    fault: FaultCode | None = None


@dataclass(frozen=True, slots=True)
class Stuck:
    """A step was done, and what it removes is still there: to be treated as its failure."""

    fault: FaultCode


@dataclass(frozen=True, slots=True)
class LetGo:
    """Every copy up to the placement is gone."""

    placement_epoch: int


Act = (
    EnsureImage
    | EnsureFiles
    | EnsureVolumes
    | Plug
    | Define
    | Start
    | PressPower
    | PressReset
    | CutPower
    | Hold
    | GoOn
    | AttachDisk
    | DetachDisk
    | Rewire
    | AttachInterface
    | DetachInterface
    | Forget
    | Unplug
    | RemoveFiles
    | ClearDisks
    | Capture
    | HandIn
    | DropCopies
)
"""What touches the host; before each, what permits it is checked once more (R2)."""

Mark = MarkStarted | MarkDone | MarkMade
"""What touches the journal only."""

Step = Act | Prepare | Mark | Wait | Stuck | Settled | LetGo
"""What `reconcile` may answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What one pass towards one order has done so far. Lost in a crash, on purpose: the next pass measures anew.

    Instants are of the boot clock. `failures` counts the failures in a row, `told` whether one was reported. `unable` is why the
    guest cannot be brought to what is wanted, although it goes on as it is, `missed` why a snapshot was not taken. `was_captured_on` tells
    that the guest held memory when its disk was copied, or begun to be.

    `pulled` are devices that the guest was asked to let go of, by serial number or MAC: first and last when. `pushed` were plugged in, and
    `misplugged` is why the guest's devices stay as they are.
    """

    began_s: float
    images: frozenset[str] = frozenset()
    files: GuestDisks | None = None
    interfaces: tuple[Interface, ...] | None = None
    is_defined: bool = False
    is_started: bool = False
    is_cut: bool = False
    first_press_s: float | None = None
    last_press_s: float | None = None
    reset_s: float | None = None
    is_rebooted: bool = False
    is_held: bool = False
    has_gone_on: bool = False
    unable: FaultCode | None = None
    is_cleared: bool = False
    may_have_copies: bool = False
    copy: DiskCopy | None = None
    was_captured_on: bool = False
    is_handed_in: bool = False
    are_copies_dropped: bool = False
    missed: FaultCode | None = None
    volumes: tuple[DiskFile, ...] | None = None
    pulled: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    pushed: frozenset[str] = frozenset()
    is_rewired: bool = False
    misplugged: FaultCode | None = None
    let_go: frozenset[type] = field(default_factory=frozenset)
    failures: int = 0
    retry_s: float = 0.0
    told: FaultCode | None = None
