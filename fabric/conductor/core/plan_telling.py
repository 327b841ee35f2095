"""When a host is told another network plan, and what is known of the one it has.

One plan is under way at a time: what changes while the host follows one goes together into the next. So a single change is told at once,
and a burst of them makes few plans, without anybody waiting for a burst that does not come.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from fabric.model.network_plan import NetworkPlan
from fabric.model.session import PlanFollowed
from fabric.network.core.plans import Planned

ANSWER_PATIENCE_S: Final = 5.0
"""A host that has not said for so long what became of a plan is told the next one all the same."""

MISSING_PATIENCE_S: Final = 1.0
"""How long a plan is held back for a record that others name and that is not there. It has been deleted, if it does not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one session's host was told of tenant networks, and what it said to that. Times are of the boot clock.

    `revision` is of the latest plan, 0 before the first; `answered` of the latest that the host spoke of, `followed` of the latest that it
    has, with `fault` saying why it has not the one it spoke of. `missing_since_s` holds what plans lacked, each with when that was seen.
    """

    plan: NetworkPlan | None = None
    revision: int = 0
    told_s: float = 0.0
    answered: int = 0
    followed: int = 0
    followed_s: float = 0.0
    fault_code: str = ""
    fault_message: str = ""
    missing_since_s: Mapping[str, float] = field(default_factory=dict)

    def wait_s(self, now_s: float) -> float:
        """How long the next plan has to wait for an answer to this one; 0 for not at all."""
        if self.answered >= self.revision:
            return 0.0
        return max(0.0, self.told_s + ANSWER_PATIENCE_S - now_s)

    def seeing(self, missing: Iterable[str], now_s: float) -> Told:
        """With what a plan lacks now."""
        return replace(
            self, missing_since_s={each: self.missing_since_s.get(each, now_s) for each in missing}
        )

    def hold_s(self, now_s: float) -> float:
        """How long a plan that lacks that has to wait for it; 0 for not at all."""
        latest_s = max(self.missing_since_s.values(), default=float("-inf"))
        return max(0.0, latest_s + MISSING_PATIENCE_S - now_s)

    def telling(self, plan: NetworkPlan, revision: int, now_s: float) -> Told:
        """With another plan told, of the store's revision or one more than the last."""
        return replace(self, plan=plan, revision=max(self.revision + 1, revision), told_s=now_s)

    def heard(self, followed: PlanFollowed, now_s: float) -> Told | None:
        """With what the host says of a plan; None where it was never told that one."""
        if not 0 < followed.revision <= self.revision:
            return None
        if followed.revision < self.answered:
            return self
        after = replace(
            self,
            answered=followed.revision,
            fault_code=followed.fault_code,
            fault_message=followed.fault_message,
        )
        return after if followed.fault_code else replace(after, followed=followed.revision, followed_s=now_s)


class Next(enum.Enum):
    """What to do about a plan."""

    TELL = enum.auto()
    HOLD = enum.auto()
    NOTHING = enum.auto()


def next_of(told: Told, planned: Planned, now_s: float) -> Next:
    """Whether a plan is to be told, given what it lacks as `told` has seen it."""
    if planned.plan == told.plan:
        return Next.NOTHING
    return Next.HOLD if told.hold_s(now_s) > 0.0 else Next.TELL
