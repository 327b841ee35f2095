"""What is begun without anybody asking, because its time has come: the rows of `TIMERS`, evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fabric.lifecycle.table import TIMERS
from fabric.model.instance import Instance
from fabric.model.states import Action, TaskState, Want

AGAIN_MS: Final = 15_000
"""How long after something in that state has failed it is begun anew."""


def dated(before: Instance, after: Instance) -> Instance:
    """The next record with since when it is in its state."""
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
    for timer in TIMERS:
        wait_s = after_s.get(timer.setting, timer.never)
        if now.vm_state is not timer.state or wait_s == timer.never or wait_s < 0:
            continue
        failed_ms = 0 if now.fault is None else now.fault.time_ms
        if now_ms >= now.vm_state_time_ms + wait_s * 1000 and (
            not failed_ms or now_ms >= failed_ms + AGAIN_MS
        ):
            return timer.action
    return None
