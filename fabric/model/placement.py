"""Placement decisions as data: who was asked, who refused and why, and the smallest change that would have fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """How many hosts one filter turned away, why, and a few of them by name."""

    filter: str
    reason: str
    hosts: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One scheduling decision, stored with the server it was made for.

    `considered` hosts were looked at; `host` is empty when none fitted. `weights` are those of the chosen and the
    alternates, best first. `suggestion` is the smallest change that would have fitted, for people.
    """

    considered: int
    host: str = ""
    cell: str = ""
    alternates: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    suggestion: str = ""
    decide_time_ms: int = 0

    def explain(self) -> str:
        """One line for people: `0 of 40 hosts fit: 32 short of memory, 8 in another zone`."""
        if self.host:
            return f"placed on {self.host}, the best of {self.considered - sum(r.hosts for r in self.refusals)} that fit"
        if not self.considered:
            return "there are no hosts"
        reasons = ", ".join(f"{refusal.hosts} {refusal.reason}" for refusal in self.refusals)
        return f"0 of {self.considered} hosts fit: {reasons}"
