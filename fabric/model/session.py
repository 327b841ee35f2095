"""What a host and its conductor say to each other, as values (their wire form is fabric.host.v1).

The complete list: nothing else can be said (security.md, section 5). The host's name is in none of them, because it comes from the
certificate. Every message of a session carries its epoch; one with another epoch is dropped (R1).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from fabric.model.console import ConsoleKind
from fabric.model.host import Resources
from fabric.model.instance import Guest, OneShot
from fabric.model.states import PowerState, Want


class HostState(enum.IntEnum):
    """What a host may say an instance is (R9)."""

    UNSPECIFIED = 0
    ACTIVE = 1
    STOPPED = 2
    ERROR = 3
    ABSENT = 4
    PAUSED = 5
    SUSPENDED = 6


# -- from the host --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Opens a session. `boot_id` tells two machines with one certificate apart; who `follows_plans` may be sent a `PlanPart`."""

    boot_id: str
    agent_version: str
    highest_epoch: int
    follows_plans: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """I am alive; the permit to start guests counts from when this was sent (R5)."""

    seq: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """A step that a host has taken: a number of `fabric.model.event.StepName`, and when, counted back from when it is told.

    A plain number, because a host may be newer than its conductor.
    """

    name: int
    began_ago_ms: int
    took_ms: int
    fault_code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An instance's state on this host, for (placement_epoch, generation) and the last one-shot action done.

    A fault with a state other than ERROR is the latest action's: it failed, and the guest is as `state` says. `steps` are the last that
    were taken towards it, for people.
    """

    epoch: int
    instance_id: str
    placement_epoch: int
    generation: int
    action_seq: int
    state: HostState
    power: PowerState
    fault_code: str = ""
    fault_message: str = ""
    steps: tuple[StepDone, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """Every copy of the instance up to this placement epoch is gone from the host."""

    epoch: int
    instance_id: str
    placement_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the resource tracker measured."""

    epoch: int
    total: Resources
    used: Resources
    running: int
    hypervisor: str
    hypervisor_version: str
    agent_version: str
    health: str = "ok"
    directories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleLog:
    """The answer to a ConsoleLogWanted."""

    question: int
    data: bytes = b""
    fault_code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a step is; shown to people, stored nowhere."""

    epoch: int
    instance_id: str
    placement_epoch: int
    step: str
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One placement that a host holds."""

    instance_id: str
    placement_epoch: int
    power: PowerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Everything a host holds: a fact for people and for R8's first report, never a ground to destroy (R4)."""

    epoch: int
    held: tuple[Held, ...] = ()
    strays: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCounters:
    """What went through a disk; `device` is the hypervisor's name for it."""

    device: str
    read_bytes: int = 0
    read_requests: int = 0
    write_bytes: int = 0
    write_requests: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceCounters:
    """What went through an interface, as the guest sees it."""

    mac: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_drops: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_drops: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """The answer to a DiagnosticsWanted: counters since the guest's virtual machine began. 0 also stands for "not known"."""

    question: int = 0
    fault_code: str = ""
    power: PowerState = PowerState.NOSTATE
    uptime_s: int = 0
    vcpu_time_ms: tuple[int, ...] = ()
    memory_kib: int = 0
    memory_resident_kib: int = 0
    memory_unused_kib: int = 0
    disks: tuple[DiskCounters, ...] = ()
    interfaces: tuple[InterfaceCounters, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordSet:
    """The answer to a PasswordWanted."""

    question: int
    fault_code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelRefused:
    """The console of a TunnelWanted cannot be opened."""

    question: int
    fault_code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFollowed:
    """What became of a network plan: without a fault it is followed; with one it is not, and is tried again."""

    epoch: int
    revision: int
    fault_code: str = ""
    fault_message: str = ""


# -- from the conductor ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The session is granted: its epoch, and how long an acknowledged beat permits starting guests (R5)."""

    epoch: int
    permit_ms: int
    host: str
    guest_cidr: str
    zone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What must be true of one instance: converge to (placement_epoch, generation), and do action_seq once."""

    epoch: int
    placement_epoch: int
    generation: int
    want: Want
    action_seq: int
    action: OneShot
    stop_timeout_s: int
    guest: Guest
    action_image_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Forget every copy of the instance up to this placement epoch; or a volume, in a shared `directory` where that is not empty."""

    epoch: int
    instance_id: str
    placement_epoch: int
    directory: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All orders and releases at one revision, in parts; what is not in it is not thereby to be destroyed (R4)."""

    epoch: int
    revision: int
    orders: tuple[Order, ...]
    releases: tuple[Release, ...]
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatAck:
    """The beat was received, and the store still knows this session."""

    seq: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusAck:
    """The status need not be sent again: it was accepted, or refused for good."""

    instance_id: str
    placement_epoch: int
    generation: int
    action_seq: int
    state: HostState
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAck:
    """The release is dealt with."""

    instance_id: str
    placement_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleLogWanted:
    """The end of a serial console's log is wanted."""

    question: int
    instance_id: str
    placement_epoch: int
    tail_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosticsWanted:
    """A guest's counters are wanted."""

    question: int
    instance_id: str
    placement_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordWanted:
    """A password is to be set inside a guest, through its agent. It is kept nowhere on the way."""

    question: int
    instance_id: str
    placement_epoch: int
    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelWanted:
    """A console is wanted: the host dials a tunnel that names the question, or answers with a refusal.

    With `take_over` whoever has the console loses it.
    """

    question: int
    instance_id: str
    placement_epoch: int
    kind: ConsoleKind
    take_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPart:
    """A part of a network plan: bytes that `fabric.rpc.plan_codec` reads when those of all parts are put together.

    `revision` grows from plan to plan of a session, and is no less than the global store's that the plan was made of.
    """

    epoch: int
    revision: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """The session is over. Wait this long before dialling this conductor again."""

    reason: str
    retry_after_ms: int = 0


Answer = ConsoleLog | Diagnostics | PasswordSet | TunnelRefused
"""What a host says because it was asked: it names the question."""

Question = ConsoleLogWanted | DiagnosticsWanted | PasswordWanted | TunnelWanted
"""What a conductor asks of a host. Nothing of it is stored anywhere."""

FromHost = (
    Hello
    | Beat
    | Status
    | Released
    | Report
    | ConsoleLog
    | Progress
    | Inventory
    | Diagnostics
    | PasswordSet
    | TunnelRefused
    | PlanFollowed
)
"""What a host may say."""

FromConductor = (
    Granted
    | Snapshot
    | Order
    | Release
    | BeatAck
    | StatusAck
    | ReleaseAck
    | ConsoleLogWanted
    | Goodbye
    | DiagnosticsWanted
    | PasswordWanted
    | TunnelWanted
    | PlanPart
)
"""What a conductor may say."""
