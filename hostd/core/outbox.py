"""What must reach the conductor: statuses and releases until acknowledged, the latest measurements, progress now and then.

At least once: what is not acknowledged is sent again, and again to the next conductor; the record's compare makes twice harmless.
Messages are kept without an epoch; the session stamps its own. Instants are seconds of the boot clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from fabric.model.session import PlanFollowed, Progress, ReleaseAck, Released, Report, Status, StatusAck

FIRST_RESEND_S = 2.0
LONGEST_RESEND_S = 15.0
PROGRESS_EVERY_S = 1.0


M = TypeVar("M", Status, Released)

Told = Status | Released | Report | Progress | PlanFollowed
"""What is told without having been asked."""


@dataclass(slots=True)
class _Waiting(Generic[M]):
    """A message that is repeated. `owed` acknowledgements are still to come for another one with the same key, sent before."""

    message: M
    due_s: float = 0.0
    sent: int = 0
    owed: int = 0


@dataclass(slots=True)
class _Shown:
    message: Progress
    is_sent: bool
    due_s: float


def _key(said: Status | StatusAck) -> tuple[str, int, int, int, int]:
    return (
        said.instance_id,
        said.placement_epoch,
        said.generation,
        said.action_seq,
        said.state,
    )


class Outbox:
    """Fed by the workers, emptied by the session. One status per instance: a newer one replaces the older."""

    def __init__(self) -> None:
        self._statuses: dict[str, _Waiting[Status]] = {}
        self._released: dict[str, _Waiting[Released]] = {}
        self._progress: dict[str, _Shown] = {}
        self._report: Report | None = None
        self._latest_report: Report | None = None
        self._followed: PlanFollowed | None = None

    def say(self, status: Status) -> None:
        """Tell a state, until it is acknowledged; the instance's progress is over."""
        before = self._statuses.get(status.instance_id)
        alike = before is not None and _key(before.message) == _key(status)
        owed = before.owed + before.sent if before is not None and alike else 0
        self._statuses[status.instance_id] = _Waiting(status, owed=owed)
        self._progress.pop(status.instance_id, None)

    def unsay(self, instance_id: str) -> None:
        """Stop telling a state that is no more, and how far its making was: a newer intent is being carried out."""
        self._statuses.pop(instance_id, None)
        self._progress.pop(instance_id, None)

    def released(self, released: Released) -> None:
        """Tell that copies are gone, until it is acknowledged."""
        self._released[released.instance_id] = _Waiting(released)

    def show(self, progress: Progress, *, now_s: float) -> None:
        """Tell how far a step is: a new step at once, percents at most once a second."""
        before = self._progress.get(progress.instance_id)
        same = before is not None and before.message.step == progress.step
        due_s = before.due_s if before is not None and same else now_s
        self._progress[progress.instance_id] = _Shown(progress, is_sent=False, due_s=due_s)

    def report(self, report: Report) -> None:
        """Tell what was measured, where it differs from what was told last."""
        if report != self._latest_report:
            self._report = self._latest_report = report

    def followed(self, followed: PlanFollowed) -> None:
        """Tell what became of the latest plan. It names the session that told the plan, and is of no use to another."""
        self._followed = followed

    def begin_session(self) -> None:
        """Another conductor: everything that is not acknowledged is told anew, and the latest report."""
        self._followed = None
        for told in self._statuses.values():
            told.due_s, told.sent, told.owed = 0.0, 0, 0
        for gone in self._released.values():
            gone.due_s, gone.sent = 0.0, 0
        for shown in self._progress.values():
            shown.is_sent = False
        self._report = self._latest_report

    def acked(self, ack: StatusAck) -> bool:
        """A status was dealt with; False where the acknowledgement is of something no longer told."""
        waiting = self._statuses.get(ack.instance_id)
        if waiting is None or _key(waiting.message) != _key(ack):
            return False
        if waiting.owed > 0:
            waiting.owed -= 1
            return False
        del self._statuses[ack.instance_id]
        return True

    def release_acked(self, ack: ReleaseAck) -> bool:
        """A release was dealt with."""
        waiting = self._released.get(ack.instance_id)
        if waiting is None or waiting.message.placement_epoch > ack.placement_epoch:
            return False
        del self._released[ack.instance_id]
        return True

    def due(self, now_s: float) -> list[Told]:
        """What is to be sent now; it counts as sent. Releases first: they are what a joining host is waited for (R8)."""
        out: list[Told] = []
        repeated: tuple[_Waiting[Status] | _Waiting[Released], ...] = (
            *self._released.values(),
            *self._statuses.values(),
        )
        for waiting in repeated:
            if waiting.due_s <= now_s:
                out.append(waiting.message)
                waiting.due_s = now_s + min(LONGEST_RESEND_S, FIRST_RESEND_S * 2 ** min(waiting.sent, 8))
                waiting.sent += 1
        if self._report is not None:
            out.append(self._report)
            self._report = None
        if self._followed is not None:
            out.append(self._followed)
            self._followed = None
        for shown in self._progress.values():
            if not shown.is_sent and shown.due_s <= now_s:
                out.append(shown.message)
                shown.is_sent, shown.due_s = True, now_s + PROGRESS_EVERY_S
        return out

    def next_due_s(self) -> float | None:
        """When something is to be sent next; None when nothing waits."""
        instants = [waiting.due_s for waiting in self._statuses.values()]
        instants += [waiting.due_s for waiting in self._released.values()]
        instants += [shown.due_s for shown in self._progress.values() if not shown.is_sent]
        if self._report is not None or self._followed is not None:
            instants.append(0.0)
        return min(instants, default=None)

    def unacknowledged(self) -> Mapping[str, Status]:
        """The states that no conductor has dealt with yet, by instance."""
        return {instance_id: waiting.message for instance_id, waiting in self._statuses.items()}
