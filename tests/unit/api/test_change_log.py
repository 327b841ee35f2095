"""The log that watchers read: what is still known, and that nothing in between is passed over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fabric.api.core.change_log import ChangeLog


def _log(limit: int = 4) -> ChangeLog[str]:
    log: ChangeLog[str] = ChangeLog(limit)
    log.begin("a", 10)
    log.begin("b", 100)
    return log


def _told(entries: object) -> list[str]:
    assert isinstance(entries, list)
    return [each.news for each in entries]


def test_a_place_is_told_what_came_since() -> None:
    log = _log()
    place = log.end
    log.add("a", 11, ["x", "y"])
    log.add("b", 101, ["z"])

    assert _told(log.since(place)) == ["x", "y", "z"]
    assert _told(log.since(log.end)) == []


def test_a_place_that_is_forgotten_is_known_to_be() -> None:
    log = _log(limit=2)
    place = log.end
    log.add("a", 11, ["x", "y", "z"])

    assert log.since(place) is None
    assert _told(log.since(place + 1)) == ["y", "z"]


def test_a_position_is_told_what_came_after_it_of_every_source() -> None:
    log = _log()
    log.add("a", 11, ["x"])
    position = log.position
    log.add("b", 101, ["y"])
    log.add("a", 12, ["z"])

    assert _told(log.after(position)) == ["y", "z"]
    assert _told(log.after({"a": 11, "b": 101})) == ["z"]


def test_a_position_before_what_is_known_cannot_be_gone_on_from() -> None:
    log = _log(limit=1)
    log.add("a", 11, ["x"])
    log.add("a", 12, ["y"])

    assert log.after({"a": 10, "b": 100}) is None
    assert _told(log.after({"a": 11, "b": 100})) == ["y"]
    assert log.after({"a": 11, "b": 99}) is None


def test_a_position_that_lacks_a_source_or_is_ahead_cannot_be_gone_on_from() -> None:
    log = _log()

    assert log.after({"a": 10}) is None
    assert log.after({"a": 11, "b": 100}) is None
    assert _told(log.after({"a": 10, "b": 100, "of a cell that was taken away": 5})) == []


def test_a_source_that_was_set_back_makes_everybody_begin_anew() -> None:
    log = _log()
    log.add("a", 11, ["x"])
    place, position = log.end - 1, log.position

    log.begin("a", 3)

    assert log.since(place) is None
    assert log.after(position) is None


@given(
    limit=st.integers(1, 6),
    batches=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=12),
    at=st.integers(0, 12),
)
def test_who_goes_on_is_told_everything_once_or_that_it_cannot_be(
    limit: int, batches: list[tuple[str, int]], at: int
) -> None:
    log = _log(limit)
    missed: list[str] = []
    revisions, every, position = {"a": 10, "b": 100}, 0, log.position
    for number, (source, count) in enumerate(batches):
        if number == at:
            position, missed = log.position, []
        revisions[source] += 1
        news = [f"{source}{every + each}" for each in range(count)]
        every += count
        log.add(source, revisions[source], news)
        missed += news

    told = log.after(position)

    assert told is None or [each.news for each in told] == missed
    assert told is not None or len(missed) > 0 or every > limit
