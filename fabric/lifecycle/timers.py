"""What is begun without anybody asking, because its time has come: the rows of `TIMERS`, evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fabric.lifecycle.table import TIMERS, Timer
from fabric.model.instance import Instance
from fabric.model.states import Action, TaskState, VmState, Want

AGAIN_MS: Final = 15_000
"""How long after something in that state has failed it is begun anew."""


def dated(before: Instance, after: Instance) -> Instance:
    """The next record with since when it is in its state, and without the time of an end that it is not waiting for any more."""
    is_kept = after.vm_state is VmState.SOFT_DELETED or after.task is TaskState.SOFT_DELETING
    if after.purge_time_ms and not is_kept:
        after = replace(after, purge_time_ms=0)
    if after.vm_state is before.vm_state:
        return after
    return replace(after, vm_state_time_ms=after.update_time_ms)


def due(now: Instance, after_s: Mapping[str, float], *, now_ms: int) -> Action | None:
    """The action whose time has come; None where there is none, or something is in flight.

    `after_s` has the rows' settings, in seconds; one that is not there is never. A row whose action has failed waits before it is begun
    again, whatever its setting: what fails at once would otherwise fail without end.
    """
    if now.task is not TaskState.NONE or now.want is Want.ABSENT:
        return None
    if now.fault is not None and now_ms < now.fault.time_ms + AGAIN_MS:
        return None
    for timer in TIMERS:
        at_ms = _at_ms(timer, now, after_s) if now.vm_state is timer.state else None
        if at_ms is not None and now_ms >= at_ms:
            return timer.action
    return None


def _at_ms(timer: Timer, now: Instance, after_s: Mapping[str, float]) -> float | None:
    """When a server in the row's state is to begin its action; None for never."""
    if timer.at:
        time_ms: int = getattr(now, timer.at)
        return time_ms or None
    wait_s = after_s.get(timer.setting, timer.never)
    return None if wait_s == timer.never or wait_s < 0 else now.vm_state_time_ms + wait_s * 1000
