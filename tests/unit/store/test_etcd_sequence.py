from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fabric.store.base import Batch, Event
from fabric.store.etcd.sequence import Sequence


def event(key: str, revision: int) -> Event:
    return Event(key, b"", revision)


def test_events_seen_before_are_dropped() -> None:
    sequence = Sequence(after=5)

    assert sequence.take([event("a", 5)], is_fragment=False) is None
    assert sequence.take([event("a", 6), event("a", 7)], is_fragment=False) == Batch(
        7, (event("a", 6), event("a", 7))
    )
    assert sequence.take([event("a", 6), event("a", 7), event("b", 8)], is_fragment=False) == Batch(
        8, (event("b", 8),)
    )


def test_a_revision_travelling_back_in_time_is_dropped() -> None:
    sequence = Sequence(after=5)
    sequence.take([event("a", 9)], is_fragment=False)

    assert sequence.take([event("b", 7)], is_fragment=False) is None
    assert sequence.revision == 9


def test_fragments_are_handed_on_together() -> None:
    sequence = Sequence(after=1)

    assert sequence.take([event("a", 2)], is_fragment=True) is None
    assert sequence.take([event("b", 2)], is_fragment=True) is None
    assert sequence.take([event("c", 2)], is_fragment=False) == Batch(
        2, (event("a", 2), event("b", 2), event("c", 2))
    )


def test_fragments_of_a_broken_stream_are_forgotten() -> None:
    sequence = Sequence(after=1)
    sequence.take([event("a", 2)], is_fragment=True)
    sequence.begin_stream()

    assert sequence.resume_at == 1
    assert sequence.take([event("a", 2), event("b", 2)], is_fragment=False) == Batch(
        2, (event("a", 2), event("b", 2))
    )


def test_the_rest_of_a_split_revision_is_late_but_not_lost() -> None:
    sequence = Sequence(after=1)
    sequence.take([event("a", 2)], is_fragment=False)

    assert sequence.take([event("a", 2), event("b", 2)], is_fragment=False) == Batch(2, (event("b", 2),))
    assert sequence.take([event("a", 2), event("b", 2)], is_fragment=False) is None


def test_a_mark_moves_on_but_never_between_fragments() -> None:
    sequence = Sequence(after=1)
    sequence.take([event("a", 2)], is_fragment=True)

    assert sequence.mark(9) is None
    sequence.take([event("b", 2)], is_fragment=False)
    assert sequence.mark(2) is None
    assert sequence.mark(9) == Batch(9)
    assert sequence.resume_at == 9
    assert sequence.take([event("c", 9)], is_fragment=False) is None


@given(st.data())
def test_however_streams_break_and_repeat_each_event_is_handed_on_once_in_order(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    truth = [
        event(f"k{key}", revision) for revision, size in enumerate(sizes, start=2) for key in range(size)
    ]
    sequence = Sequence(after=1)
    given_on: list[Event] = []

    while sequence.revision < len(sizes) + 1:
        sequence.begin_stream()
        # A server may begin earlier than asked (faults of 3.4), never later.
        first = data.draw(st.integers(1, sequence.resume_at))
        for revision in range(first, len(sizes) + 2):
            if data.draw(st.booleans(), label="breaks") and revision > first + 1:
                break
            parts = [e for e in truth if e.mod_revision == revision]
            cut = data.draw(st.integers(0, len(parts)), label="fragment")
            before = sequence.revision
            for part, is_fragment in ((parts[:cut], True), (parts[cut:], False)):
                batch = sequence.take(part, is_fragment=is_fragment)
                if batch is not None:
                    assert batch.revision == batch.events[-1].mod_revision > before
                    given_on += batch.events

    assert given_on == truth
