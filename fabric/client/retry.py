"""Whether to ask again, and when: values and arithmetic. Chance and time are arguments.

Two brakes, because either alone fails somewhere: waits that double and are jittered keep many clients from knocking in step, and a budget
keeps one client from multiplying its load on a server that is down (gRFC A6 uses the same token bucket).
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.errors import Conflict, FabricError, Reason, TooMuch, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """How patient a client is."""

    attempts: int = 5
    """Of one call, the first included."""
    first_wait_s: float = 0.2
    """Before the second attempt; doubled before each one after."""
    longest_wait_s: float = 5.0
    attempt_timeout_s: float = 10.0
    """After which an answer is taken for lost and asked for again, where the call's own deadline is later."""
    budget: float = 10.0
    """Retries that may follow each other, over all calls of one client."""
    refill: float = 0.2
    """What a call that succeeds gives back."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left to spend on retries."""

    left: float

    def spend(self) -> Budget | None:
        """The budget after one retry, or None when there is nothing left to pay it with."""
        return Budget(self.left - 1.0) if self.left >= 1.0 else None

    def earn(self, settings: RetrySettings) -> Budget:
        """The budget after a call that succeeded."""
        return Budget(min(settings.budget, self.left + settings.refill))


def may_pass(error: FabricError) -> bool:
    """Whether the same request may succeed later, without anybody changing it.

    Of conflicts only those where another write came first; the same `request_id` with another body stays wrong for ever.
    """
    match error:
        case Unavailable():
            return True
        case Conflict():
            return error.reason is Reason.CHANGED_MEANWHILE
        case TooMuch():
            return error.retry_after_s is not None
        case _:
            return False


def wait_s(error: FabricError, attempt: int, *, jitter: float, settings: RetrySettings) -> float | None:
    """How long to wait after failed attempt number `attempt` (from 1), or None to give up.

    Args:
        error: what the attempt ended with. A server that says how long to wait is believed.
        attempt: which one failed.
        jitter: a random number from 0 to 1.
        settings: how patient to be.
    """
    if attempt >= settings.attempts or not may_pass(error):
        return None
    doubled_s = min(settings.longest_wait_s, settings.first_wait_s * 2.0 ** (attempt - 1))
    waited_s = doubled_s * (0.5 + 0.5 * jitter)
    if isinstance(error, TooMuch) and error.retry_after_s is not None:
        return max(waited_s, error.retry_after_s)
    return waited_s
