from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.client.retry import Budget, RetrySettings, may_pass, wait_s
from fabric.errors import (
    AlreadyExists,
    Ambiguous,
    Bug,
    Conflict,
    FabricError,
    InvalidRequest,
    NoCapacity,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Reason,
    TooMuch,
    Unauthenticated,
    Unavailable,
    WrongState,
)

PASSING = (
    Unavailable("away"),
    Ambiguous("lost"),
    Unavailable("late", reason=Reason.DEADLINE_EXCEEDED),
    Conflict("changed"),
    TooMuch("often", retry_after_s=2.0),
)
LASTING = (
    InvalidRequest("no", field="name"),
    Unauthenticated("who"),
    PermissionDenied("no"),
    NotFound("no"),
    AlreadyExists("taken"),
    WrongState("no"),
    Conflict("other body", reason=Reason.REQUEST_ID_MISMATCH),
    QuotaExceeded("full"),
    NoCapacity("full"),
    TooMuch("large", reason=Reason.TOO_LARGE),
    Bug("ours"),
)


@pytest.mark.parametrize("error", PASSING, ids=lambda it: f"{type(it).__name__}-{it.reason}")
def test_what_may_pass_is_tried_again(error: FabricError) -> None:
    assert may_pass(error)


@pytest.mark.parametrize("error", LASTING, ids=lambda it: f"{type(it).__name__}-{it.reason}")
def test_what_lasts_is_told_at_once(error: FabricError) -> None:
    assert wait_s(error, 1, jitter=0.0, settings=RetrySettings()) is None


@given(attempt=st.integers(1, 4), jitter=st.floats(0.0, 1.0))
def test_waits_double_within_their_jitter_and_never_pass_the_longest(attempt: int, jitter: float) -> None:
    settings = RetrySettings(longest_wait_s=1.0)
    waited = wait_s(Unavailable("away"), attempt, jitter=jitter, settings=settings)
    doubled = min(1.0, settings.first_wait_s * 2 ** (attempt - 1))

    assert waited is not None
    assert doubled / 2 <= waited <= doubled


def test_a_server_that_says_how_long_is_believed() -> None:
    error = TooMuch("often", retry_after_s=7.0)

    assert wait_s(error, 1, jitter=0.0, settings=RetrySettings()) == 7.0


def test_the_last_attempt_is_the_last() -> None:
    settings = RetrySettings(attempts=3)

    assert wait_s(Unavailable("away"), 2, jitter=0.0, settings=settings) is not None
    assert wait_s(Unavailable("away"), 3, jitter=0.0, settings=settings) is None


def test_a_spent_budget_is_earned_back_by_successes_only() -> None:
    settings = RetrySettings(budget=1.0, refill=0.5)
    spent = Budget(settings.budget).spend()

    assert spent is not None
    assert spent.spend() is None
    assert spent.earn(settings).spend() is None
    assert spent.earn(settings).earn(settings).earn(settings) == Budget(1.0)
