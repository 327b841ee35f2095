"""What a host may say: the allow-list (R10, security.md section 5). Everything here is about form; what it may say *when* is the
lifecycle's (R9) and the fence's.

A host is not trusted: each element of each message is looked at, one bad one refuses the whole message, and a host that sends three bad
messages within a minute is quarantined. A message of another epoch is not bad but late, and is dropped before it comes here (R1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Final

from fabric.ids import is_id
from fabric.model.faults import FaultCode
from fabric.model.host import Resources
from fabric.model.session import (
    Answer,
    Beat,
    ConsoleLog,
    Diagnostics,
    FromHost,
    Hello,
    HostState,
    Inventory,
    PasswordSet,
    PlanFollowed,
    Progress,
    Released,
    Report,
    Status,
    StepDone,
    TunnelRefused,
)

COUNTER_LIMIT: Final = 2**53
"""Epochs, generations and counters stay below: far above what a thousand years of changes reach, far below what overflows."""

FAULT_TEXT_LIMIT: Final = 512
TEXT_LIMIT: Final = 64
DIRECTORIES_LIMIT: Final = 16
CONSOLE_LIMIT_BYTES: Final = 102_400
HELD_LIMIT: Final = 4096
STRAYS_LIMIT: Final = 1024
STRAY_NAME_LIMIT: Final = 128
VCPUS_LIMIT: Final = 512
DEVICES_LIMIT: Final = 64
DEVICE_NAME_LIMIT: Final = 32

STRIKES_LIMIT: Final = 3
STRIKES_WINDOW_S: Final = 60.0

STEPS_LIMIT: Final = 16
STEP_NUMBERS_LIMIT: Final = 1000
STEP_AGE_LIMIT_MS: Final = 31 * 24 * 3600 * 1000

_CODES: Final = frozenset(FaultCode)
_STEP = re.compile(r"[a-z][a-z _-]{0,31}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_HEALTH = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Breach:
    """What was wrong with a message: the field, and the rule. Never the offending bytes, which are the host's choice."""

    field: str
    rule: str

    def __str__(self) -> str:
        return f"{self.field} {self.rule}"


def breach(message: FromHost) -> Breach | None:
    """What is wrong with a message's form; None when nothing is."""
    found: Iterable[Breach | None]
    match message:
        case Hello():
            found = _hello(message)
        case Beat():
            found = [_counter("seq", message.seq)]
        case Status():
            found = _status(message)
        case Released():
            found = [*_placement("", message.instance_id, message.placement_epoch)]
        case Report():
            found = _report(message)
        case ConsoleLog():
            found = _console_log(message)
        case Progress():
            found = _progress(message)
        case Inventory():
            found = _inventory(message)
        case Diagnostics():
            found = _diagnostics(message)
        case PasswordSet():
            found = [_counter("question", message.question), _code(message.fault_code)]
        case TunnelRefused():
            found = [_counter("question", message.question), _code(message.fault_code, is_required=True)]
        case PlanFollowed():
            found = _plan_followed(message)
    return next((each for each in found if each is not None), None)


def epoch_of(message: FromHost) -> int | None:
    """The epoch a message carries. A hello opens one, and an answer is to a question of this very stream."""
    return None if isinstance(message, Hello | Answer) else message.epoch


def clamped(report: Report, capacity: Resources) -> Report:
    """The report with no number above what the admin registered: a host cannot look larger than it was approved to be."""
    total = _least(report.total, capacity)
    return replace(report, total=total, used=_least(report.used, total))


# -- strikes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Strikes:
    """When a host has sent bad messages lately, on the boot clock."""

    times_s: tuple[float, ...] = ()

    def struck(self, now_s: float) -> Strikes:
        """With one more, now."""
        recent = tuple(time_s for time_s in self.times_s if now_s - time_s < STRIKES_WINDOW_S)
        return Strikes((*recent, now_s)[-STRIKES_LIMIT:])

    @property
    def is_out(self) -> bool:
        """Whether that was one too many."""
        return len(self.times_s) >= STRIKES_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """How much a host may make the conductor do: a token bucket over the messages that cost a read of the store.

    What is above it is dropped, not refused: a host repeats what is not acknowledged, so an honest one loses a second.
    """

    rate_per_s: float = 100.0
    burst: float = 1000.0
    tokens: float = 1000.0
    time_s: float = 0.0

    def spend(self, now_s: float) -> tuple[Allowance, bool]:
        """The bucket after one more message, and whether that was within it."""
        grown = min(self.burst, self.tokens + max(0.0, now_s - self.time_s) * self.rate_per_s)
        is_within = grown >= 1.0
        return replace(self, tokens=grown - 1.0 if is_within else grown, time_s=now_s), is_within


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines that one host makes the log say: some at once, and then one in a while that stands for all. It must not fill a disk."""

    allowance: Allowance = Allowance(rate_per_s=0.1, burst=20.0, tokens=20.0)
    untold: int = 0

    def one_more(self, now_s: float) -> tuple[Lines, int]:
        """After one more line: how many it stands for, if it is to be written now; 0 if not."""
        allowance, is_within = self.allowance.spend(now_s)
        return (Lines(allowance), self.untold + 1) if is_within else (Lines(allowance, self.untold + 1), 0)


# -- the rules ------------------------------------------------------------------------------------


def _hello(hello: Hello) -> list[Breach | None]:
    return [
        _text("boot_id", hello.boot_id, TEXT_LIMIT, is_required=True),
        _text("agent_version", hello.agent_version, TEXT_LIMIT),
        _counter("highest_epoch", hello.highest_epoch),
    ]


def _status(status: Status) -> list[Breach | None]:
    needs_fault = status.state is HostState.ERROR
    has_none = status.state is HostState.ABSENT
    return [
        *_placement("", status.instance_id, status.placement_epoch),
        _counter("generation", status.generation, least=1),
        _counter("action_seq", status.action_seq),
        _rule("state", "must be set", holds=status.state is not HostState.UNSPECIFIED),
        _rule(
            "fault_code",
            "must be a known code with ERROR, empty with ABSENT, and either with the others",
            holds=status.fault_code in _CODES if status.fault_code or needs_fault else True,
        ),
        _rule("fault_code", "must be empty with ABSENT", holds=not (has_none and status.fault_code)),
        _rule(
            "fault_message",
            "must be empty without a fault_code",
            holds=bool(status.fault_code) or not status.fault_message,
        ),
        _text("fault_message", status.fault_message, FAULT_TEXT_LIMIT),
        _rule("steps", f"must have at most {STEPS_LIMIT} elements", holds=len(status.steps) <= STEPS_LIMIT),
        *(
            found
            for place, step in enumerate(status.steps[:STEPS_LIMIT])
            for found in _step_done(f"steps[{place}]", step)
        ),
    ]


def _plan_followed(followed: PlanFollowed) -> list[Breach | None]:
    return [
        _counter("revision", followed.revision, least=1),
        _code(followed.fault_code),
        _rule(
            "fault_message",
            "must be empty without a fault_code",
            holds=bool(followed.fault_code) or not followed.fault_message,
        ),
        _text("fault_message", followed.fault_message, FAULT_TEXT_LIMIT),
    ]


def _step_done(field: str, step: StepDone) -> Iterable[Breach | None]:
    yield _rule(f"{field}.name", "must be the number of a step", holds=0 <= step.name <= STEP_NUMBERS_LIMIT)
    yield _rule(
        f"{field}.took_ms",
        "must be no more than began_ago_ms, and that at most 31 days",
        holds=0 <= step.took_ms <= step.began_ago_ms <= STEP_AGE_LIMIT_MS,
    )
    yield _rule(
        f"{field}.fault_code",
        "must be empty or a known code",
        holds=not step.fault_code or step.fault_code in _CODES,
    )


def _report(report: Report) -> list[Breach | None]:
    return [
        *_amounts("total", report.total),
        *_amounts("used", report.used),
        _rule("running", f"must be 0 to {HELD_LIMIT}", holds=0 <= report.running <= HELD_LIMIT),
        _text("hypervisor", report.hypervisor, TEXT_LIMIT),
        _text("hypervisor_version", report.hypervisor_version, TEXT_LIMIT),
        _text("agent_version", report.agent_version, TEXT_LIMIT),
        _rule("health", "must be a code", holds=_HEALTH.fullmatch(report.health) is not None),
        _rule(
            "directories",
            f"must be at most {DIRECTORIES_LIMIT}",
            holds=len(report.directories) <= DIRECTORIES_LIMIT,
        ),
        *(_text("directories", each, TEXT_LIMIT) for each in report.directories),
    ]


def _console_log(log: ConsoleLog) -> list[Breach | None]:
    return [
        _counter("question", log.question),
        _rule(
            "data", f"must be at most {CONSOLE_LIMIT_BYTES} bytes", holds=len(log.data) <= CONSOLE_LIMIT_BYTES
        ),
        _code(log.fault_code),
    ]


def _diagnostics(found: Diagnostics) -> list[Breach | None]:
    return [
        _counter("question", found.question),
        _code(found.fault_code),
        _rule(
            "vcpu_time_ms",
            f"must have at most {VCPUS_LIMIT} elements",
            holds=len(found.vcpu_time_ms) <= VCPUS_LIMIT,
        ),
        *(
            _rule(name, f"must have at most {DEVICES_LIMIT} elements", holds=length <= DEVICES_LIMIT)
            for name, length in (("disks", len(found.disks)), ("interfaces", len(found.interfaces)))
        ),
        *_counters("", found, but=("question", "fault_code", "power", "vcpu_time_ms", "disks", "interfaces")),
        *(
            _counter(f"vcpu_time_ms[{place}]", time)
            for place, time in enumerate(found.vcpu_time_ms[:VCPUS_LIMIT])
        ),
        *(
            breach
            for place, disk in enumerate(found.disks[:DEVICES_LIMIT])
            for breach in (
                _text(f"disks[{place}].device", disk.device, DEVICE_NAME_LIMIT, is_required=True),
                *_counters(f"disks[{place}].", disk, but=("device",)),
            )
        ),
        *(
            breach
            for place, interface in enumerate(found.interfaces[:DEVICES_LIMIT])
            for breach in (
                _rule(
                    f"interfaces[{place}].mac",
                    "must be a MAC address",
                    holds=_MAC.fullmatch(interface.mac) is not None,
                ),
                *_counters(f"interfaces[{place}].", interface, but=("mac",)),
            )
        ),
    ]


def _counters(prefix: str, record: object, *, but: tuple[str, ...]) -> Iterable[Breach | None]:
    """Every field of a record that is a number."""
    for name in (each.name for each in fields(record) if each.name not in but):  # type: ignore[arg-type]  # ours are dataclasses
        yield _counter(f"{prefix}{name}", getattr(record, name))


def _code(code: str, *, is_required: bool = False) -> Breach | None:
    if is_required:
        return _rule("fault_code", "must be a known code", holds=code in _CODES)
    return _rule("fault_code", "must be empty or a known code", holds=not code or code in _CODES)


def _progress(progress: Progress) -> list[Breach | None]:
    return [
        *_placement("", progress.instance_id, progress.placement_epoch),
        _rule("step", "must be a step's name", holds=_STEP.fullmatch(progress.step) is not None),
        _rule("percent", "must be 0 to 100", holds=0 <= progress.percent <= 100),
    ]


def _inventory(inventory: Inventory) -> list[Breach | None]:
    held = {(each.instance_id, each.placement_epoch) for each in inventory.held}
    return [
        # Counted before looked at: a flood must not cost what an inventory costs.
        _rule("held", f"must have at most {HELD_LIMIT} elements", holds=len(inventory.held) <= HELD_LIMIT),
        _rule(
            "strays",
            f"must have at most {STRAYS_LIMIT} elements",
            holds=len(inventory.strays) <= STRAYS_LIMIT,
        ),
        _rule("held", "must name a placement once", holds=len(held) == len(inventory.held)),
        *(
            found
            for place, each in enumerate(inventory.held[:HELD_LIMIT])
            for found in _placement(f"held[{place}].", each.instance_id, each.placement_epoch)
        ),
        *(
            _text(f"strays[{place}]", name, STRAY_NAME_LIMIT, is_required=True)
            for place, name in enumerate(inventory.strays[:STRAYS_LIMIT])
        ),
    ]


def _placement(prefix: str, instance_id: str, placement_epoch: int) -> Iterable[Breach | None]:
    yield _rule(f"{prefix}instance_id", "must be a UUID", holds=is_id(instance_id))
    yield _counter(f"{prefix}placement_epoch", placement_epoch, least=1)


def _amounts(field: str, amounts: Resources) -> Iterable[Breach | None]:
    yield _counter(f"{field}.vcpus", amounts.vcpus)
    yield _counter(f"{field}.ram_mib", amounts.ram_mib)
    yield _counter(f"{field}.disk_gib", amounts.disk_gib)


def _counter(field: str, number: int, *, least: int = 0) -> Breach | None:
    return _rule(field, f"must be {least} or more, and below 2^53", holds=least <= number < COUNTER_LIMIT)


def _text(field: str, text: str, limit: int, *, is_required: bool = False) -> Breach | None:
    is_long_enough = bool(text) or not is_required
    return _rule(
        field,
        f"must be at most {limit} printable characters" + (", and not empty" if is_required else ""),
        holds=is_long_enough and len(text) <= limit and text.isprintable(),
    )


def _rule(field: str, rule: str, *, holds: bool) -> Breach | None:
    return None if holds else Breach(field, rule)


def _least(one: Resources, other: Resources) -> Resources:
    return Resources(
        vcpus=min(one.vcpus, other.vcpus),
        ram_mib=min(one.ram_mib, other.ram_mib),
        disk_gib=min(one.disk_gib, other.disk_gib),
    )
