"""How much one caller may ask: a token bucket for how often, a count for how much at once. Values and arithmetic; the time is an argument.

A caller who asks too much is told how long to wait, and costs nobody else anything.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from fabric.errors import TooMuch


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What one principal may ask of one server."""

    rate_per_s: float = 100.0
    """Calls per second, on average."""
    burst: int = 200
    """Calls at once after a quiet time."""
    in_flight: int = 100
    """Calls under way at the same time."""
    principals: int = 10_000
    """How many principals are remembered; the one not seen for longest is forgotten, and starts with a full bucket."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: `tokens` as they were at `at_s`."""

    tokens: float
    at_s: float

    def take(self, *, now_s: float, rate_per_s: float, burst: int) -> tuple[Bucket, float]:
        """The bucket afterwards, and how long to wait: 0.0 when a token was taken."""
        tokens = min(float(burst), self.tokens + max(0.0, now_s - self.at_s) * rate_per_s)
        if tokens >= 1.0:
            return Bucket(tokens - 1.0, now_s), 0.0
        return Bucket(tokens, now_s), (1.0 - tokens) / rate_per_s


class Limits:
    """The buckets and counts of every principal that one server has seen lately."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._in_flight: dict[str, int] = {}

    def enter(self, principal: str, *, now_s: float) -> None:
        """Count a call in; `leave` must follow. Raises TooMuch with how long to wait."""
        settings = self._settings
        if self._in_flight.get(principal, 0) >= settings.in_flight:
            raise TooMuch(
                f"you have {settings.in_flight} calls under way; wait for one of them",
                retry_after_s=1.0 / settings.rate_per_s,
                limit=settings.in_flight,
            )
        bucket = self._buckets.pop(principal, None) or Bucket(float(settings.burst), now_s)
        self._buckets[principal], wait_s = bucket.take(
            now_s=now_s, rate_per_s=settings.rate_per_s, burst=settings.burst
        )
        while len(self._buckets) > settings.principals:
            self._buckets.popitem(last=False)
        if wait_s:
            raise TooMuch(
                f"more than {settings.rate_per_s:g} calls a second",
                retry_after_s=wait_s,
                limit=settings.burst,
            )
        self._in_flight[principal] = self._in_flight.get(principal, 0) + 1

    def leave(self, principal: str) -> None:
        """Count a call out."""
        left = self._in_flight.get(principal, 0) - 1
        if left > 0:
            self._in_flight[principal] = left
        else:
            self._in_flight.pop(principal, None)
