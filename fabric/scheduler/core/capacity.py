"""When a cell's capacity is worth publishing."""

from __future__ import annotations

from dataclasses import replace

from fabric.model.host import CellCapacity
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.picture import Seen
from fabric.scheduler.settings import SchedulerSettings
from fabric.store import keys


def publishable(
    now: CellCapacity, published: Seen[CellCapacity], *, settings: SchedulerSettings
) -> Change | None:
    """The write that publishes what a cell can take, in the global store; None when it is known already, or was published just now.

    However many schedulers there are, a cell's record is written at most once in `capacity_s`.
    """
    before = published.value
    if before is not None:
        if replace(now, update_time_ms=before.update_time_ms) == before:
            return None
        if 0 <= now.update_time_ms - before.update_time_ms < settings.capacity_s * 1000:
            return None
    key = keys.CAPACITY.at(now.cell)
    return Change(unchanged={key: published.revision}, put={key: now})
