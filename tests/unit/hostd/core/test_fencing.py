"""Epochs, permits and the age of orders (R1, R2, R5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.model.instance import OneShot
from fabric.model.states import Want
from hostd.commands.journal import JournalRow
from hostd.core import fencing
from hostd.core.fencing import Fence, Refusal
from tests.unit.hostd.orders import instance_id, order, release


def row(placement_epoch: int, generation: int, *, done: int = 0, released: bool = False) -> JournalRow:
    return JournalRow(
        instance_id=instance_id(),
        placement_epoch=placement_epoch,
        generation=generation,
        action_started=done,
        action_done=done,
        released=released,
    )


def test_after_power_on_there_is_no_permit() -> None:
    fence = Fence(epoch=9, permit_s=60)

    assert not fence.permits_start(0.0)
    assert not fence.permits_start(1e9)


def test_a_permit_counts_from_when_the_hello_was_sent() -> None:
    fence = Fence(epoch=1).grant(2, permit_s=60, hello_sent_s=100)

    assert fence is not None
    assert fence.permits_start(159.9)
    assert not fence.permits_start(160.0)


def test_an_acknowledged_beat_renews_the_permit_from_when_it_was_sent() -> None:
    fence = Fence(epoch=2, permit_s=60, renewed_s=100).renew(130)

    assert fence.permits_start(189.9)
    assert not fence.permits_start(190.0)


def test_an_acknowledgement_that_was_overtaken_takes_nothing_back() -> None:
    fence = Fence(epoch=2, permit_s=60, renewed_s=130)

    assert fence.renew(100) == fence


def test_a_clock_that_went_back_is_no_permit() -> None:
    assert not Fence(epoch=2, permit_s=60, renewed_s=100).permits_start(99)


@pytest.mark.parametrize("epoch", [0, 4, 5])
def test_an_epoch_that_is_not_new_grants_nothing(epoch: int) -> None:
    assert Fence(epoch=5).grant(epoch, permit_s=60, hello_sent_s=0) is None


def test_only_the_session_s_own_epoch_is_heard() -> None:
    fence = Fence(epoch=5)

    assert fence.hears(5)
    assert not fence.hears(4)
    assert not fence.hears(6)


@pytest.mark.parametrize(
    ("known", "placement_epoch", "generation", "want", "expected"),
    [
        (row(2, 5), 1, 9, Want.RUN, Refusal.OLD_PLACEMENT),
        (row(2, 5), 2, 4, Want.RUN, Refusal.OLD_GENERATION),
        (row(2, 5, released=True), 2, 6, Want.RUN, Refusal.RELEASED),
        (row(2, 5, released=True), 2, 6, Want.STOP, Refusal.RELEASED),
        (row(2, 5, released=True), 1, 6, Want.ABSENT, Refusal.OLD_PLACEMENT),
        (None, 0, 1, Want.RUN, Refusal.MALFORMED),
        (None, 1, 1, Want.UNSPECIFIED, Refusal.MALFORMED),
    ],
)
def test_an_order_that_is_too_old_or_malformed_is_refused(
    known: JournalRow | None, placement_epoch: int, generation: int, want: Want, expected: Refusal
) -> None:
    asked = order(want, placement_epoch=placement_epoch, generation=generation)

    assert fencing.accept(known, asked) is expected


def test_a_placement_new_to_the_journal_owes_no_action() -> None:
    asked = order(action_seq=3, action=OneShot.REBOOT_HARD, placement_epoch=2)

    for known in (None, row(1, 1, done=1)):
        accepted = fencing.accept(known, asked)
        assert isinstance(accepted, JournalRow)
        assert (accepted.action_started, accepted.action_done) == (3, 3)


def test_an_action_asked_of_a_known_placement_is_owed() -> None:
    accepted = fencing.accept(row(1, 1), order(generation=2, action_seq=1, action=OneShot.REBOOT_SOFT))

    assert isinstance(accepted, JournalRow)
    assert accepted.action_done == 0


@pytest.mark.parametrize("want", [Want.STOP, Want.ABSENT])
def test_a_guest_wanted_off_or_gone_owes_no_reboot(want: Want) -> None:
    accepted = fencing.accept(row(1, 1), order(want, generation=3, action_seq=1, action=OneShot.REBOOT_HARD))

    assert isinstance(accepted, JournalRow)
    assert accepted.action_done == 1


def test_what_was_ordered_to_be_absent_never_comes_back_at_that_placement() -> None:
    gone = fencing.accept(row(1, 1), order(Want.ABSENT, generation=2))
    assert isinstance(gone, JournalRow)

    assert fencing.accept(gone, order(Want.RUN, generation=3)) is Refusal.RELEASED
    assert isinstance(fencing.accept(gone, order(Want.ABSENT, generation=2)), JournalRow)
    assert isinstance(fencing.accept(gone, order(Want.RUN, placement_epoch=2, generation=3)), JournalRow)


def test_a_release_leaves_a_newer_placement_alone() -> None:
    newer = row(3, 7)

    assert fencing.accept_release(newer, release(placement_epoch=2)) == newer


@pytest.mark.parametrize("known", [None, row(1, 4), row(2, 4)])
def test_a_release_becomes_a_tombstone(known: JournalRow | None) -> None:
    tombstone = fencing.accept_release(known, release(placement_epoch=2))

    assert (tombstone.placement_epoch, tombstone.released) == (2, True)
    assert fencing.accept(tombstone, order(placement_epoch=2, generation=99)) is Refusal.RELEASED


_ORDERS = st.builds(
    order,
    st.sampled_from([Want.RUN, Want.STOP, Want.ABSENT]),
    placement_epoch=st.integers(1, 4),
    generation=st.integers(1, 6),
    action_seq=st.integers(0, 3),
)
_RELEASES = st.builds(release, placement_epoch=st.integers(1, 4))


@given(st.lists(_ORDERS | _RELEASES, max_size=12))
def test_the_journal_never_goes_back(messages: list[object]) -> None:
    known: JournalRow | None = None
    for message in messages:
        if isinstance(message, type(order())):
            accepted = fencing.accept(known, message)
        else:
            assert isinstance(message, type(release()))
            accepted = fencing.accept_release(known, message)
        if isinstance(accepted, Refusal):
            continue
        if known is not None:
            assert accepted.placement_epoch >= known.placement_epoch
            if accepted.placement_epoch == known.placement_epoch and not accepted.released:
                assert accepted.generation >= known.generation
                assert not known.released
                assert accepted.action_done >= known.action_done
        known = accepted
