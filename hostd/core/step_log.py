"""The steps that were taken towards one order, for people: which, when, and how they ended. Kept in memory only, and bounded.

Steps alike in a row, such as the presses of a power button that nobody answers, are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from fabric.model.event import StepName
from fabric.model.session import StepDone
from hostd.core import steps
from hostd.core.faults import FaultCode
from hostd.core.steps import Act

LIMIT: Final = 16
"""Steps told of one order: the last. A conductor takes no more."""

AGE_LIMIT_MS: Final = 30 * 24 * 3600 * 1000
"""No step is told to be older than this; a conductor would not believe it."""

NAMES: Final[Mapping[type, StepName]] = MappingProxyType(
    {
        steps.EnsureImage: StepName.FETCH_IMAGE,
        steps.EnsureFiles: StepName.MAKE_DISKS,
        steps.Plug: StepName.WIRE,
        steps.Define: StepName.DEFINE,
        steps.Start: StepName.START,
        steps.PressPower: StepName.PRESS_POWER,
        steps.PressReset: StepName.PRESS_RESET,
        steps.CutPower: StepName.CUT_POWER,
        steps.Hold: StepName.HOLD,
        steps.GoOn: StepName.GO_ON,
        steps.Forget: StepName.FORGET,
        steps.Unplug: StepName.UNWIRE,
        steps.RemoveFiles: StepName.REMOVE_DISKS,
        steps.ClearDisks: StepName.REMAKE_DISKS,
        steps.Capture: StepName.SNAPSHOT,
        steps.HandIn: StepName.UPLOAD_IMAGE,
        steps.DropCopies: StepName.CLEAN_UP,
        steps.EnsureVolumes: StepName.MAKE_DISKS,
        steps.Rewire: StepName.WIRE,
        steps.AttachInterface: StepName.ATTACH,
        steps.AttachDisk: StepName.ATTACH,
        steps.DetachInterface: StepName.DETACH,
        steps.DetachDisk: StepName.DETACH,
    }
)
"""What people call a step."""


@dataclass(frozen=True, slots=True)
class _Taken:
    name: StepName
    began_s: float
    ended_s: float
    fault: FaultCode | None


@dataclass(frozen=True, slots=True)
class StepLog:
    """See the module. Instants are of the boot clock."""

    taken: tuple[_Taken, ...] = ()

    def took(self, step: Act, *, began_s: float, ended_s: float, fault: FaultCode | None = None) -> StepLog:
        """The log with one step more."""
        new = _Taken(NAMES.get(type(step), StepName.OTHER), began_s, ended_s, fault)
        last = self.taken[-1] if self.taken else None
        if last is not None and (last.name, last.fault) == (new.name, new.fault):
            return StepLog((*self.taken[:-1], replace(last, ended_s=ended_s)))
        return StepLog((*self.taken, new)[-LIMIT:])

    def told(self, now_s: float) -> tuple[StepDone, ...]:
        """The steps as a conductor is told them, counted back from now."""
        return tuple(_done(each, now_s) for each in self.taken)


def _done(step: _Taken, now_s: float) -> StepDone:
    ago_ms = min(AGE_LIMIT_MS, max(0, round((now_s - step.began_s) * 1000)))
    took_ms = min(ago_ms, max(0, round((step.ended_s - step.began_s) * 1000)))
    return StepDone(
        name=step.name,
        began_ago_ms=ago_ms,
        took_ms=took_ms,
        fault_code=step.fault.value if step.fault else "",
    )
