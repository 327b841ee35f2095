"""Choosing what is free: never what is taken, and always something as long as there is anything."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fabric.network.core.choice import MACS, mac_number, mac_text, pick, probes
from fabric.network.core.ranges import Interval, size, without


@st.composite
def pools(draw: st.DrawFn) -> tuple[Interval, ...]:
    """Disjoint intervals in order, with gaps."""
    found, at = [], draw(st.integers(0, 1 << 64))
    for _ in range(draw(st.integers(1, 4))):
        first = at + draw(st.integers(0, 5))
        last = first + draw(st.integers(0, 40))
        found.append(Interval(first, last))
        at = last + 2
    return tuple(found)


def numbers(among: tuple[Interval, ...]) -> list[int]:
    return [number for each in among for number in range(each.first, each.last + 1)]


@given(pools(), st.data(), st.text(max_size=8))
def test_what_is_picked_is_in_the_pools_and_not_taken(
    among: tuple[Interval, ...], data: st.DataObject, seed: str
) -> None:
    everything = numbers(among)
    taken = set(data.draw(st.lists(st.sampled_from(everything)))) | {among[0].first - 1}

    found = pick(among, taken, seed=seed)

    free = set(everything) - taken
    assert (found in free) if free else (found is None)


@given(pools(), st.text(max_size=8))
def test_everything_there_is_can_be_taken_and_then_nothing(among: tuple[Interval, ...], seed: str) -> None:
    taken: set[int] = set()
    for turn in range(size(among)):
        found = pick(among, taken, seed=f"{seed}/{turn}")
        assert found is not None
        assert found not in taken
        taken.add(found)

    assert sorted(taken) == numbers(among)
    assert pick(among, taken, seed=seed) is None


@given(pools(), st.text(max_size=8), st.integers(1, 20))
def test_probes_are_in_the_pools_each_once(among: tuple[Interval, ...], seed: str, count: int) -> None:
    found = probes(among, seed=seed, count=count)

    assert len(found) == len(set(found)) == min(count, size(among))
    assert all(any(number in each for each in among) for number in found)


def test_a_range_without_end_is_no_trouble() -> None:
    """An IPv6 subnet: nobody goes through its addresses."""
    among = (Interval(1, (1 << 64) - 1),)

    assert pick(among, range(1, 1000), seed="s") not in range(1, 1000)
    assert len(probes(among, seed="s")) == 12


def test_those_who_ask_together_look_at_different_places() -> None:
    """Of a hundred who ask for one of 250 at once, most must not meet."""
    first = Counter(probes((Interval(1, 250),), seed=f"port-{number}")[0] for number in range(100))

    assert len(first) > 70


def test_every_free_number_is_about_as_likely() -> None:
    taken = set(range(0, 40, 2))
    found = Counter(pick((Interval(0, 39),), taken, seed=str(number)) for number in range(4000))

    assert set(found) == set(range(1, 40, 2))
    assert min(found.values()) > 120


@given(pools(), st.data())
def test_without_takes_out_exactly_that(among: tuple[Interval, ...], data: st.DataObject) -> None:
    gone = set(data.draw(st.lists(st.sampled_from(numbers(among)))))

    assert numbers(without(among, gone)) == [number for number in numbers(among) if number not in gone]


@given(st.integers(MACS.first, MACS.last))
def test_macs_are_locally_administered_and_come_back(number: int) -> None:
    mac = mac_text(number)

    assert mac_number(mac) == number
    assert mac.startswith("fa:16:3e:")
    assert int(mac[:2], 16) & 0b11 == 0b10


def test_no_pool_has_nothing() -> None:
    assert pick((), (), seed="s") is None
    assert probes((), seed="s") == ()
