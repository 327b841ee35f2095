"""What every part of a scheduler is handed beside its stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fabric.clock import Clock
from fabric.ids import Ids
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from fabric.scheduler.settings import SchedulerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Settings, time, ids and chance. `jitter` gives numbers from 0 to 1."""

    settings: SchedulerSettings
    clock: Clock
    ids: Ids
    jitter: Callable[[], float]
    failpoints: Failpoints = field(default=NO_FAILPOINTS)

    def jittered_s(self, pause_s: float) -> float:
        """A wait of about this long: never the same for two processes that began to wait together."""
        return pause_s * (0.5 + self.jitter())

    def longer_s(self, pause_s: float) -> float:
        """The wait after this one, when it was in vain."""
        return min(pause_s * 2, self.settings.longest_backoff_s)
