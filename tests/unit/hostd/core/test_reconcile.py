"""From what is wanted and seen to the next step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fabric.model.instance import OneShot
from fabric.model.session import HostState, Order, Release
from fabric.model.states import PowerState, Want
from hostd.commands.journal import JournalRow
from hostd.core import fencing, reconcile
from hostd.core.faults import FaultCode
from hostd.core.reconcile import Patience, Resume, Seen
from hostd.core.steps import (
    CutPower,
    Define,
    Effort,
    EnsureFiles,
    EnsureImage,
    Forget,
    GoOn,
    Hold,
    LetGo,
    MarkDone,
    MarkMade,
    MarkStarted,
    Plug,
    Prepare,
    PressPower,
    PressReset,
    RemoveFiles,
    Settled,
    Start,
    Step,
    Stuck,
    Unplug,
    Wait,
)
from hostd.driver.base import Domain
from hostd.images.base import GuestDisks
from tests.unit.hostd.orders import IMAGE, guest, instance_id, order, release

ON, OFF, PAUSED, CRASHED = PowerState.RUNNING, PowerState.SHUTDOWN, PowerState.PAUSED, PowerState.CRASHED
SUSPENDED = PowerState.SUSPENDED
FILES = GuestDisks(disks=())
READY = Effort(began_s=0, images=frozenset({IMAGE.sha256}), files=FILES, interfaces=(), is_defined=True)
FRESH = Effort(began_s=0)


def domain(
    power: PowerState = ON, *, placement_epoch: int = 1, generation: int = 1, ours: bool = True
) -> Domain:
    return Domain(
        name="d",
        instance_id=instance_id(),
        placement_epoch=placement_epoch,
        generation=generation,
        power=power,
        ours=ours,
        macs=tuple(port.mac for port in guest().ports),
    )


def step(
    goal: Order | Release,
    seen: Domain | Seen | None = None,
    effort: Effort = FRESH,
    *,
    now_s: float = 0,
    permitted: bool = True,
    action_started: int = 0,
    action_done: int = 0,
    made: bool = True,
) -> Step:
    row = (
        fencing.accept_release(None, goal)
        if isinstance(goal, Release)
        else JournalRow(
            instance_id=instance_id(),
            placement_epoch=goal.placement_epoch,
            generation=goal.generation,
            action_started=action_started,
            action_done=action_done,
            made=made,
        )
    )
    return reconcile.next_step(
        goal,
        row,
        seen if isinstance(seen, Seen) else Seen(domain=seen),
        effort,
        now_s=now_s,
        permitted=permitted,
        patience=Patience(),
    )


# ------------------------------------------------------------ run


@pytest.mark.parametrize(
    ("effort", "expected"),
    [
        (FRESH, EnsureImage(IMAGE)),
        (replace(READY, files=None), EnsureFiles(made=True)),
        (replace(READY, interfaces=None), Plug()),
        (replace(READY, is_defined=False), Define(FILES, ())),
        (READY, Start()),
    ],
)
def test_a_guest_is_raised_in_this_order(effort: Effort, expected: Step) -> None:
    for seen in (None, domain(OFF), domain(CRASHED)):
        assert step(order(), seen, effort) == expected


@pytest.mark.parametrize("made", [False, True])
def test_what_needs_nothing_of_one_another_goes_side_by_side(*, made: bool) -> None:
    both = step(order(), None, replace(READY, files=None, interfaces=None), made=made)

    assert both == Prepare(EnsureFiles(made=made), Plug())


def test_that_disks_are_made_is_journalled_before_a_guest_can_write_to_them() -> None:
    made = step(order(), None, replace(READY, interfaces=None, is_defined=False), made=False)

    assert made == MarkMade()


def test_disks_that_were_never_made_are_made() -> None:
    assert step(order(), None, replace(READY, files=None), made=False) == EnsureFiles(made=False)


def test_nothing_is_started_without_a_permit() -> None:
    assert step(order(), domain(OFF), READY, permitted=False) == Wait(None, "no permit to start guests")


def test_a_guest_that_runs_is_left_alone_and_told() -> None:
    assert step(order(generation=3), domain(ON)) == Settled(HostState.ACTIVE, ON)


# ------------------------------------------------------------ holding

PAUSE_FAILED = FaultCode.DOMAIN_PAUSE_FAILED


@pytest.mark.parametrize(
    ("want", "power", "word"),
    [(Want.PAUSE, PAUSED, HostState.PAUSED), (Want.SUSPEND, SUSPENDED, HostState.SUSPENDED)],
)
def test_a_running_guest_is_held_as_wanted_and_that_is_told(
    want: Want, power: PowerState, word: HostState
) -> None:
    assert step(order(want), domain(ON)) == Hold(power)
    assert step(order(want), domain(power)) == Settled(word, power)


def test_who_is_off_cannot_be_held() -> None:
    assert step(order(Want.PAUSE), domain(OFF)) == Settled(HostState.STOPPED, OFF, FaultCode.GUEST_OFF)
    assert step(order(Want.SUSPEND), None) == Settled(
        HostState.STOPPED, PowerState.NOSTATE, FaultCode.GUEST_OFF
    )


def test_a_hold_that_fails_is_told_with_what_the_guest_goes_on_as() -> None:
    tried, told = fail(order(Want.PAUSE), FRESH, PAUSE_FAILED, now_s=1, at=Hold(PAUSED))

    assert told is None
    assert step(order(Want.PAUSE), domain(ON), tried) == Settled(HostState.ACTIVE, ON, PAUSE_FAILED)
    held = reconcile.after(FRESH, Hold(PAUSED), now_s=1)
    assert step(order(Want.PAUSE), domain(ON), held) == Settled(HostState.ACTIVE, ON, PAUSE_FAILED)


def test_a_paused_guest_goes_on_under_a_permit_and_only_once() -> None:
    resume_failed = FaultCode.DOMAIN_RESUME_FAILED

    assert step(order(), domain(PAUSED)) == GoOn()
    assert step(order(), domain(PAUSED), permitted=False) == Wait(None, "no permit to let guests run")
    gone_on = reconcile.after(FRESH, GoOn(), now_s=1)
    assert step(order(), domain(PAUSED), gone_on) == Settled(HostState.PAUSED, PAUSED, resume_failed)
    tried, _ = fail(order(), FRESH, resume_failed, now_s=1, at=GoOn())
    assert step(order(), domain(PAUSED), tried) == Settled(HostState.PAUSED, PAUSED, resume_failed)


def test_a_suspended_guest_is_brought_back_by_a_start_of_all_its_parts() -> None:
    assert step(order(), domain(SUSPENDED), READY) == Start()


@pytest.mark.parametrize("power", [PAUSED, SUSPENDED])
def test_who_is_held_cannot_press_a_button_and_is_cut_off(power: PowerState) -> None:
    assert step(order(Want.STOP), domain(power)) == CutPower()


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        (domain(OFF), FaultCode.DOMAIN_START_FAILED),
        (domain(CRASHED), FaultCode.GUEST_CRASHED),
        (None, FaultCode.DOMAIN_START_FAILED),
    ],
)
def test_a_guest_that_does_not_run_after_its_start_is_an_error(seen: Domain | None, fault: FaultCode) -> None:
    power = seen.power if seen else PowerState.NOSTATE

    assert step(order(), seen, replace(READY, is_started=True)) == Settled(HostState.ERROR, power, fault)


@pytest.mark.parametrize("want", [Want.RUN, Want.STOP])
@pytest.mark.parametrize("newer", [domain(placement_epoch=2), domain(generation=2)])
def test_a_domain_newer_than_the_order_is_never_touched(want: Want, newer: Domain) -> None:
    assert isinstance(step(order(want), newer, READY), Wait)


@pytest.mark.parametrize("want", [Want.RUN, Want.STOP])
def test_an_older_placement_is_forgotten_before_anything_else(want: Want) -> None:
    assert step(order(want, placement_epoch=2), domain(placement_epoch=1), READY) == Forget()


@pytest.mark.parametrize("want", [Want.RUN, Want.STOP])
def test_a_domain_without_our_mark_is_never_touched(want: Want) -> None:
    assert step(order(want), domain(ours=False), READY) == Settled(
        HostState.ERROR, ON, FaultCode.DOMAIN_INVALID
    )


# ------------------------------------------------------------ stop


def test_a_guest_that_is_off_is_stopped() -> None:
    assert step(order(Want.STOP), domain(OFF)) == Settled(HostState.STOPPED, OFF)
    assert step(order(Want.STOP), None) == Settled(HostState.STOPPED, PowerState.NOSTATE)


@pytest.mark.parametrize(
    ("now_s", "last_press_s", "expected"),
    [
        (109, 100, Wait(110, "the guest is shutting down")),
        (110, 100, PressPower()),
        (155, 150, Wait(160, "the guest is shutting down")),
        (160, 150, CutPower()),
        (300, 150, CutPower()),
    ],
)
def test_the_button_is_pressed_every_10_s_and_the_power_cut_at_the_end(
    now_s: float, last_press_s: float, expected: Step
) -> None:
    effort = replace(FRESH, first_press_s=100, last_press_s=last_press_s)

    assert step(order(Want.STOP), domain(), FRESH) == PressPower()
    assert step(order(Want.STOP), domain(), effort, now_s=now_s) == expected


def test_without_a_timeout_the_power_is_cut_at_once() -> None:
    assert step(order(Want.STOP, stop_timeout_s=0), domain()) == CutPower()


def test_a_guest_that_survives_the_cut_is_an_error() -> None:
    assert step(order(Want.STOP), domain(), replace(FRESH, is_cut=True)) == Settled(
        HostState.ERROR, ON, FaultCode.DOMAIN_STOP_FAILED
    )


# ------------------------------------------------------------ reboot


def reboot(kind: OneShot) -> Order:
    return order(generation=2, action_seq=1, action=kind)


@pytest.mark.parametrize("kind", [OneShot.REBOOT_SOFT, OneShot.REBOOT_HARD])
def test_a_reboot_is_journalled_before_it_begins(kind: OneShot) -> None:
    assert step(reboot(kind), domain()) == MarkStarted(1)


def test_a_soft_reboot_presses_waits_and_is_done_when_the_guest_was_heard_to_reboot() -> None:
    goal = reboot(OneShot.REBOOT_SOFT)
    pressed = replace(FRESH, reset_s=100)

    assert step(goal, domain(), FRESH, action_started=1) == PressReset()
    assert step(goal, domain(), pressed, now_s=189, action_started=1) == Wait(190, "the guest is rebooting")
    assert step(goal, domain(), replace(pressed, is_rebooted=True), action_started=1) == MarkDone(1)


def test_a_guest_that_shuts_down_instead_of_rebooting_is_started() -> None:
    goal = reboot(OneShot.REBOOT_SOFT)

    assert step(goal, domain(OFF), replace(READY, reset_s=100), action_started=1) == Start()
    assert step(goal, domain(ON), replace(READY, is_started=True), action_started=1) == MarkDone(1)


def test_a_soft_reboot_that_is_not_heard_of_becomes_a_hard_one() -> None:
    goal = reboot(OneShot.REBOOT_SOFT)

    assert step(goal, domain(), replace(FRESH, reset_s=100), now_s=190, action_started=1) == CutPower()


def test_a_hard_reboot_cuts_defines_anew_and_starts() -> None:
    goal = reboot(OneShot.REBOOT_HARD)
    cut = replace(FRESH, is_cut=True)

    assert step(goal, domain(), FRESH, action_started=1) == CutPower()
    assert step(goal, domain(OFF), cut, action_started=1) == EnsureImage(IMAGE)
    assert step(goal, domain(OFF), replace(READY, is_cut=True), action_started=1) == Start()
    assert step(goal, domain(generation=2), FRESH, action_started=1) == MarkDone(1)


def test_a_reboot_that_is_done_is_not_repeated() -> None:
    goal = reboot(OneShot.REBOOT_HARD)

    assert step(goal, domain(), FRESH, action_started=1, action_done=1) == Settled(HostState.ACTIVE, ON)


# ------------------------------------------------------------ let go


EVERYTHING = Seen(domain=domain(), files=frozenset({1}), wired=1)


@pytest.mark.parametrize("goal", [order(Want.ABSENT, generation=2), release()])
def test_letting_go_takes_the_domain_then_the_wires_then_the_files(goal: Order | Release) -> None:
    assert step(goal, EVERYTHING) == Forget()
    assert step(goal, replace(EVERYTHING, domain=None)) == Unplug(1)
    assert step(goal, Seen(files=frozenset({1}))) == RemoveFiles(1)


def test_what_is_gone_is_told_gone() -> None:
    assert step(order(Want.ABSENT), Seen()) == Settled(HostState.ABSENT)
    assert step(release(placement_epoch=4), Seen()) == LetGo(4)


@pytest.mark.parametrize("goal", [order(Want.ABSENT), release()])
def test_a_newer_copy_is_not_let_go_of(goal: Order | Release) -> None:
    newer = Seen(domain=domain(placement_epoch=2), files=frozenset({2}), wired=2)

    assert isinstance(step(goal, newer), Settled | LetGo)


def test_a_domain_without_our_mark_is_not_let_go_of() -> None:
    assert step(release(), Seen(domain=domain(ours=False))) == LetGo(1)


def test_what_is_still_there_after_it_was_removed_is_a_failure_of_that_step() -> None:
    effort = replace(FRESH, let_go=frozenset({Forget, Unplug, RemoveFiles}))

    assert step(release(), EVERYTHING, effort) == Stuck(FaultCode.DOMAIN_STOP_FAILED)
    assert step(release(), Seen(wired=1), effort) == Stuck(FaultCode.NETWORK_FAILED)
    assert step(release(), Seen(files=frozenset({1})), effort) == Stuck(FaultCode.DISK_FAILED)


# ------------------------------------------------------------ failures


def fail(goal: Order | Release, effort: Effort, fault: FaultCode, *, now_s: float, at: Any = None) -> Any:
    return reconcile.after_failure(goal, effort, at, fault, now_s=now_s, patience=Patience())


def test_a_fault_that_nothing_cures_is_told_at_once() -> None:
    _, told = fail(order(), FRESH, FaultCode.DISK_FULL, now_s=5, at=EnsureFiles())

    assert told == Settled(HostState.ERROR, fault=FaultCode.DISK_FULL)


def test_a_fault_that_may_pass_is_tried_again_until_patience_ends() -> None:
    effort, now_s, tries = FRESH, 0.0, 0
    while True:
        effort, told = fail(order(), effort, FaultCode.HYPERVISOR_UNAVAILABLE, now_s=now_s)
        if told is not None:
            break
        assert reconcile.resting(effort, now_s=now_s) is not None
        assert reconcile.resting(effort, now_s=effort.retry_s) is None
        now_s, tries = effort.retry_s, tries + 1

    assert told == Settled(HostState.ERROR, fault=FaultCode.HYPERVISOR_UNAVAILABLE)
    assert now_s >= 30
    assert tries >= 5


def test_a_guest_whose_monitor_hangs_is_stopped_by_its_power() -> None:
    effort, told = fail(order(Want.STOP), FRESH, FaultCode.HYPERVISOR_TIMEOUT, now_s=30, at=PressPower())

    assert told is None
    assert isinstance(step(order(Want.STOP), domain(), effort, now_s=31), Wait)
    assert step(order(Want.STOP), domain(), effort, now_s=90) == CutPower()


def test_a_guest_whose_monitor_hangs_is_rebooted_by_its_power() -> None:
    soft = order(generation=2, action_seq=1, action=OneShot.REBOOT_SOFT)
    effort, told = fail(soft, FRESH, FaultCode.HYPERVISOR_TIMEOUT, now_s=30, at=PressReset())

    assert told is None
    assert step(soft, domain(), effort, now_s=120, action_started=1) == CutPower()


@pytest.mark.parametrize("fault", [FaultCode.HYPERVISOR_UNAVAILABLE, FaultCode.NETWORK_FAILED])
def test_who_lives_here_and_cannot_be_looked_at_is_told_of_when_it_can(fault: FaultCode) -> None:
    effort = FRESH
    for now_s in (0.0, 60.0, 86_400.0):
        effort, told = reconcile.after_failure(
            order(), effort, None, fault, now_s=now_s, patience=Patience(), is_made=True
        )
        assert told is None
        assert 0 < effort.retry_s - now_s <= Patience().longest_retry_s


@pytest.mark.parametrize("at", [Plug(), Start()])
def test_who_cannot_be_brought_back_keeps_its_memory_and_says_why(at: Plug | Start) -> None:
    effort, told = reconcile.after_failure(
        order(), READY, at, FaultCode.NETWORK_FAILED, now_s=0, patience=Patience(), is_suspended=True
    )

    assert told is None
    assert step(order(), domain(SUSPENDED), effort) == Settled(
        HostState.SUSPENDED, SUSPENDED, FaultCode.NETWORK_FAILED
    )


def test_who_is_suspended_after_it_was_brought_back_stays_so() -> None:
    assert step(order(), domain(SUSPENDED), replace(READY, is_started=True)) == Settled(
        HostState.SUSPENDED, SUSPENDED, FaultCode.DOMAIN_RESUME_FAILED
    )


def test_success_restores_patience() -> None:
    effort, _ = fail(order(), FRESH, FaultCode.IMAGE_UNAVAILABLE, now_s=0)
    effort = reconcile.after(effort, EnsureImage(IMAGE), now_s=1)
    effort, told = fail(order(), effort, FaultCode.HYPERVISOR_TIMEOUT, now_s=500)

    assert told is None
    assert effort.began_s == 500


def test_letting_go_is_tried_for_ever_and_its_failure_told_once() -> None:
    effort, now_s = FRESH, 0.0
    told = []
    for _ in range(20):
        effort, said = fail(order(Want.ABSENT), effort, FaultCode.DISK_FAILED, now_s=now_s, at=RemoveFiles(1))
        told.append(said)
        now_s = effort.retry_s

    assert [said for said in told if said] == [Settled(HostState.ERROR, fault=FaultCode.DISK_FAILED)]
    assert effort.retry_s - now_s <= Patience().longest_retry_s


def test_the_failure_of_a_release_has_nobody_to_be_told_to() -> None:
    effort, told = fail(release(), FRESH, FaultCode.DISK_FAILED, now_s=0, at=RemoveFiles(1))

    assert told is None
    assert effort.retry_s > 0


def test_a_guest_without_buttons_is_one_that_does_not_answer() -> None:
    power, told = fail(order(Want.STOP), FRESH, FaultCode.DOMAIN_STOP_FAILED, now_s=7, at=PressPower())
    reset, _ = fail(order(), FRESH, FaultCode.HYPERVISOR_FAILED, now_s=7, at=PressReset())

    assert told is None
    assert (power.first_press_s, reset.reset_s) == (7, 7)


# ------------------------------------------------------------ drift

ACTIVE, STOPPED = Settled(HostState.ACTIVE, ON), Settled(HostState.STOPPED, OFF)
CRASH = Settled(HostState.ERROR, CRASHED, FaultCode.GUEST_CRASHED)
MISSING = Settled(HostState.ERROR, PowerState.NOSTATE, FaultCode.DOMAIN_MISSING)
NEVER_MADE = Settled(HostState.STOPPED, PowerState.NOSTATE)


@pytest.mark.parametrize(
    ("want", "said", "seen", "expected"),
    [
        (Want.RUN, ACTIVE, domain(), None),
        (Want.RUN, ACTIVE, domain(OFF), STOPPED),
        (Want.RUN, ACTIVE, domain(CRASHED), CRASH),
        (Want.RUN, ACTIVE, domain(PAUSED), Settled(HostState.PAUSED, PAUSED)),
        (Want.RUN, ACTIVE, domain(SUSPENDED), Settled(HostState.SUSPENDED, SUSPENDED)),
        (Want.PAUSE, Settled(HostState.PAUSED, PAUSED), domain(PAUSED), None),
        (Want.PAUSE, Settled(HostState.PAUSED, PAUSED), domain(), ACTIVE),
        (Want.PAUSE, Settled(HostState.PAUSED, PAUSED), domain(OFF), STOPPED),
        (Want.PAUSE, Settled(HostState.ACTIVE, ON, PAUSE_FAILED), domain(), None),
        (Want.SUSPEND, Settled(HostState.SUSPENDED, SUSPENDED), domain(OFF), STOPPED),
        (Want.RUN, ACTIVE, None, MISSING),
        (Want.RUN, STOPPED, domain(OFF), None),
        (Want.RUN, STOPPED, domain(), ACTIVE),
        (Want.RUN, STOPPED, None, MISSING),
        (Want.RUN, CRASH, domain(CRASHED), None),
        (Want.RUN, CRASH, domain(), ACTIVE),
        (Want.RUN, MISSING, None, None),
        (Want.STOP, STOPPED, domain(OFF), None),
        (Want.STOP, STOPPED, domain(CRASHED), None),
        (Want.STOP, STOPPED, None, MISSING),
        (Want.STOP, NEVER_MADE, None, None),
        (Want.RUN, ACTIVE, domain(OFF, placement_epoch=2), None),
        (Want.RUN, ACTIVE, domain(OFF, ours=False), None),
        (Want.ABSENT, Settled(HostState.ABSENT), None, None),
    ],
)
def test_drift(want: Want, said: Settled, seen: Domain | None, expected: Settled | None) -> None:
    assert reconcile.drift(order(want), said, seen) == expected


@pytest.mark.parametrize("seen", [domain(), domain(OFF)], ids=["running", "off"])
def test_a_domain_that_is_there_again_although_it_is_wanted_gone_is_forgotten_again(seen: Domain) -> None:
    """A definition can arrive late, from a hypervisor that took its time. One that was off was left; one that ran was said to be ACTIVE,
    and nobody let go of it any more.
    """
    assert isinstance(reconcile.drift(order(Want.ABSENT), Settled(HostState.ABSENT), seen), Resume)


def test_a_guest_that_runs_although_it_is_wanted_off_is_stopped_again() -> None:
    assert isinstance(reconcile.drift(order(Want.STOP), STOPPED, domain()), Resume)
