"""Whom a host dials."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from hostd.core.dialling import LONGEST_WAIT_S, SHORTEST_WAIT_S, Dialling, preference

CONDUCTORS = ("a:1", "b:1", "c:1")


def test_the_order_does_not_depend_on_how_the_conductors_are_listed() -> None:
    assert preference("h1", CONDUCTORS) == preference("h1", tuple(reversed(CONDUCTORS)))


def test_hosts_spread_over_conductors() -> None:
    first = Counter(preference(f"host-{number}", CONDUCTORS)[0] for number in range(300))

    assert set(first) == set(CONDUCTORS)
    assert min(first.values()) > 60


def test_losing_a_conductor_moves_only_its_own_hosts() -> None:
    for number in range(100):
        before = preference(f"host-{number}", CONDUCTORS)
        after = preference(f"host-{number}", [name for name in CONDUCTORS if name != before[1]])
        assert after[0] == before[0]


def test_each_failure_moves_on_to_the_next_conductor() -> None:
    dialling = Dialling(CONDUCTORS)

    tried = []
    for _ in range(4):
        tried.append(dialling.next(0.0))
        dialling = dialling.failed()
    assert tried == ["a:1", "b:1", "c:1", "a:1"]


def test_a_session_that_lasted_makes_the_next_dial_begin_at_the_preferred() -> None:
    assert Dialling(CONDUCTORS).failed().failed().held().next(0.0) == "a:1"


def test_a_conductor_that_asked_to_be_left_alone_is_passed_over_until_then() -> None:
    dialling = Dialling(CONDUCTORS).asked("a:1", until_s=50)

    assert dialling.next(49) == "b:1"
    assert dialling.next(50) == "a:1"


def test_where_all_asked_to_be_left_alone_the_first_to_be_free_is_dialled() -> None:
    dialling = Dialling(("a:1", "b:1")).asked("a:1", until_s=50).asked("b:1", until_s=40)

    assert dialling.next(0) == "b:1"


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_shorter_or_longer_than_agreed(failures: int, chance: float) -> None:
    wait_s = Dialling(CONDUCTORS, failures=failures).wait_s(chance)

    assert SHORTEST_WAIT_S <= wait_s <= LONGEST_WAIT_S
