"""The next step of a rebuild and of a snapshot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fabric.model.instance import OneShot
from fabric.model.session import HostState, Order
from fabric.model.states import PowerState, Want
from hostd.commands.journal import JournalRow
from hostd.core import fencing, reconcile
from hostd.core.faults import FaultCode
from hostd.core.reconcile import Patience, Seen
from hostd.core.steps import (
    Capture,
    ClearDisks,
    CutPower,
    DropCopies,
    Effort,
    EnsureFiles,
    EnsureImage,
    HandIn,
    MarkDone,
    MarkMade,
    MarkStarted,
    Settled,
    Step,
    Wait,
)
from hostd.driver.base import Domain
from hostd.images.base import DiskCopy, GuestDisks
from tests.unit.hostd.orders import IMAGE, guest, instance_id, order, snapshot

ON, OFF = PowerState.RUNNING, PowerState.SHUTDOWN
COPY = DiskCopy(sha256="0" * 64, size_bytes=1, virtual_size_bytes=2)
FRESH = Effort(began_s=0)
REBUILD = order(generation=2, action_seq=1, action=OneShot.REBUILD)
FETCHED = replace(FRESH, images=frozenset({IMAGE.sha256}))


def domain(power: PowerState = ON) -> Domain:
    macs = tuple(port.mac for port in guest().ports)
    return Domain(
        name="d", instance_id=instance_id(), placement_epoch=1, generation=1, power=power, macs=macs
    )


def row(*, started: int = 0, done: int = 0, made: bool = True, generation: int = 2) -> JournalRow:
    return JournalRow(
        instance_id=instance_id(),
        placement_epoch=1,
        generation=generation,
        action_started=started,
        action_done=done,
        made=made,
    )


def step(goal: Order, row: JournalRow, seen: Domain | None, effort: Effort = FRESH, **other: Any) -> Step:
    return reconcile.next_step(
        goal,
        row,
        Seen(domain=seen),
        effort,
        **{"now_s": 0.0, "permitted": True, "patience": Patience(), **other},
    )


# ------------------------------------------------------------ rebuild


def test_a_rebuild_is_journalled_with_the_disk_it_gives_up_before_anything_is_touched() -> None:
    assert step(REBUILD, row(), domain()) == MarkStarted(1, unmakes=True)


def test_a_rebuild_touches_nothing_before_it_has_the_image() -> None:
    assert step(REBUILD, row(started=1, made=False), domain()) == EnsureImage(IMAGE)


@pytest.mark.parametrize("power", [ON, PowerState.PAUSED, PowerState.SUSPENDED])
def test_a_rebuild_cuts_the_power_of_what_holds_memory(power: PowerState) -> None:
    assert step(REBUILD, row(started=1, made=False), domain(power), FETCHED) == CutPower()


def test_a_rebuild_removes_the_files_of_its_placement_and_makes_others() -> None:
    begun = row(started=1, made=False)
    cleared = replace(FETCHED, is_cleared=True)

    assert step(REBUILD, begun, domain(OFF), FETCHED) == ClearDisks(1)
    assert step(REBUILD, begun, domain(OFF), cleared) == EnsureFiles(made=False)
    assert step(REBUILD, begun, domain(OFF), replace(cleared, files=GuestDisks(disks=()))) == MarkMade()


def test_a_rebuild_that_has_made_its_disk_before_a_crash_only_looks_at_it() -> None:
    made = row(started=1, made=True)

    assert step(REBUILD, made, domain()) == EnsureFiles(made=True)
    assert step(REBUILD, made, domain(), replace(FRESH, files=GuestDisks(disks=()))) == MarkDone(1)


def test_a_rebuilt_guest_that_is_wanted_off_stays_off() -> None:
    goal = order(Want.STOP, generation=2, action_seq=1, action=OneShot.REBUILD)

    assert step(goal, row(started=1, done=1), domain(OFF)) == Settled(HostState.STOPPED, OFF)


def test_a_placement_that_is_new_here_owes_its_rebuild_which_makes_its_disk() -> None:
    goal = order(Want.STOP, placement_epoch=2, action_seq=3, action=OneShot.REBUILD)
    accepted = fencing.accept(None, goal)

    assert isinstance(accepted, JournalRow)
    assert step(goal, accepted, None) == MarkStarted(3, unmakes=True)


def test_with_a_lost_journal_a_rebuild_destroys_nothing_but_looks_whether_there_is_a_disk() -> None:
    accepted = fencing.accept(None, REBUILD, presume_made=True)

    assert isinstance(accepted, JournalRow)
    assert step(REBUILD, accepted, domain()) == EnsureFiles(made=True)


def test_a_rebuild_that_was_told_of_as_failed_is_not_taken_up_again() -> None:
    told = replace(REBUILD, generation=3, want=Want.STOP)
    accepted = fencing.accept(row(started=1, made=False), told)

    assert isinstance(accepted, JournalRow)
    assert step(told, accepted, domain(OFF)) == Settled(HostState.STOPPED, OFF)


# ------------------------------------------------------------ snapshot


@pytest.mark.parametrize(
    ("want", "power", "is_on"),
    [
        (Want.RUN, ON, True),
        (Want.PAUSE, PowerState.PAUSED, True),
        (Want.SUSPEND, PowerState.SUSPENDED, False),
        (Want.STOP, OFF, False),
    ],
)
def test_a_disk_is_copied_as_it_lies_where_no_hypervisor_holds_it(
    want: Want, power: PowerState, is_on: bool
) -> None:
    goal = snapshot(want)

    assert step(goal, row(), domain(power)) == MarkStarted(1)
    assert step(goal, row(started=1), domain(power)) == Capture(1, is_on=is_on)


def test_what_is_wanted_comes_before_the_snapshot() -> None:
    pressed = replace(FRESH, first_press_s=0.0, last_press_s=0.0)

    assert isinstance(step(snapshot(Want.STOP), row(), domain(), pressed, now_s=1.0), Wait)


def test_a_copy_is_handed_in_then_dropped_then_done() -> None:
    goal, begun = snapshot(), row(started=1)
    copied = replace(FRESH, copy=COPY, was_captured_on=True)
    handed_in = replace(copied, is_handed_in=True)

    assert step(goal, begun, domain(), copied) == HandIn(1, COPY)
    assert step(goal, begun, domain(), handed_in) == DropCopies()
    assert step(goal, begun, domain(), replace(handed_in, are_copies_dropped=True)) == MarkDone(1)
    assert step(goal, row(started=1, done=1), domain(), handed_in) == Settled(HostState.ACTIVE, ON)


def test_a_snapshot_that_fails_leaves_the_guest_as_it_is_and_says_why() -> None:
    goal, begun = snapshot(), row(started=1)
    effort, told = reconcile.after_failure(
        goal, FRESH, Capture(1, is_on=True), FaultCode.DISK_FULL, now_s=0, patience=Patience()
    )

    assert told is None
    assert step(goal, begun, domain(), effort) == DropCopies()
    dropped = replace(effort, are_copies_dropped=True)
    assert step(goal, begun, domain(), dropped) == MarkDone(1)
    assert step(goal, row(started=1, done=1), domain(), dropped) == Settled(
        HostState.ACTIVE, ON, FaultCode.DISK_FULL
    )


def test_an_upload_is_tried_for_longer_than_other_steps() -> None:
    goal, copied = snapshot(), replace(FRESH, copy=COPY)

    def fails(at_s: float, effort: Effort) -> Effort:
        return reconcile.after_failure(
            goal,
            effort,
            HandIn(1, COPY),
            FaultCode.IMAGE_UPLOAD_FAILED,
            now_s=at_s,
            patience=Patience(),
        )[0]

    assert fails(500.0, fails(0.0, copied)).missed is None
    assert fails(601.0, fails(0.0, copied)).missed is FaultCode.IMAGE_UPLOAD_FAILED


def test_a_guest_that_goes_off_while_its_disk_is_copied_is_not_started_again() -> None:
    goal, begun = snapshot(), row(started=1)
    effort, _ = reconcile.after_failure(
        goal, FRESH, Capture(1, is_on=True), FaultCode.GUEST_OFF, now_s=0, patience=Patience()
    )

    assert step(goal, begun, domain(OFF), effort) == DropCopies()
    assert step(goal, row(started=1, done=1), domain(OFF), effort) == Settled(
        HostState.STOPPED, OFF, FaultCode.GUEST_OFF
    )


def test_a_snapshot_that_is_given_up_leaves_no_copy() -> None:
    before = row(started=1)
    goal = replace(snapshot(), generation=3)
    accepted = fencing.accept(before, goal)

    assert isinstance(accepted, JournalRow)
    assert accepted.action_done == 1
    effort = reconcile.begun(before, accepted, now_s=0)
    assert step(goal, accepted, domain(), effort) == DropCopies()
    dropped = replace(effort, are_copies_dropped=True)
    assert step(goal, accepted, domain(), dropped) == Settled(HostState.ACTIVE, ON)


def test_a_guest_wanted_gone_owes_no_snapshot() -> None:
    accepted = fencing.accept(row(generation=1), snapshot(Want.ABSENT))

    assert isinstance(accepted, JournalRow)
    assert accepted.action_done == 1


# ------------------------------------------------------------ standalone


def test_a_standalone_guest_needs_its_image_only_until_its_disk_is_made() -> None:
    goal = replace(order(), guest=replace(order().guest, standalone=True))

    assert step(goal, row(generation=1, made=False), None) == EnsureImage(IMAGE)
    assert not isinstance(step(goal, row(generation=1, made=True), domain(OFF)), EnsureImage)
