"""The steps a host tells of: each with a name of the closed list, bounded, and counted back from when they are told."""

from __future__ import annotations

from typing import get_args

from fabric.conductor.core.guard import STEPS_LIMIT, breach
from fabric.model.event import StepName
from fabric.model.session import HostState, Status
from fabric.model.states import PowerState
from hostd.core.faults import FaultCode
from hostd.core.step_log import LIMIT, NAMES, StepLog
from hostd.core.steps import Act, CutPower, PressPower, Start


def test_every_step_that_touches_the_host_has_a_name() -> None:
    assert set(NAMES) == set(get_args(Act))


def test_a_step_is_told_by_how_long_ago_it_began_and_how_long_it_took() -> None:
    log = StepLog().took(CutPower(), began_s=10.0, ended_s=12.5).took(Start(), began_s=13.0, ended_s=14.0)

    cut, start = log.told(20.0)

    assert (cut.name, cut.began_ago_ms, cut.took_ms) == (StepName.CUT_POWER, 10_000, 2_500)
    assert (start.name, start.began_ago_ms, start.took_ms, start.fault_code) == (
        StepName.START,
        7_000,
        1_000,
        "",
    )


def test_presses_that_nobody_answers_are_one_step() -> None:
    log = StepLog()
    for second in range(0, 60, 10):
        log = log.took(PressPower(), began_s=second, ended_s=second + 1)

    (step,) = log.told(60.0)

    assert (step.began_ago_ms, step.took_ms) == (60_000, 51_000)


def test_a_step_that_failed_is_another_than_one_that_did_not() -> None:
    log = StepLog().took(Start(), began_s=0, ended_s=1, fault=FaultCode.DISK_FULL)

    failed, done = log.took(Start(), began_s=2, ended_s=3).told(4)

    assert (failed.fault_code, done.fault_code) == ("DISK_FULL", "")


def test_what_is_told_is_what_a_conductor_takes() -> None:
    log = StepLog()
    for number in range(3 * LIMIT):
        log = log.took(CutPower() if number % 2 else Start(), began_s=number, ended_s=number + 1)
    status = Status(
        epoch=1,
        instance_id="00000000-0000-4000-8000-000000000001",
        placement_epoch=1,
        generation=1,
        action_seq=0,
        state=HostState.ACTIVE,
        power=PowerState.RUNNING,
        steps=log.told(1e9),
    )

    assert len(status.steps) == LIMIT == STEPS_LIMIT
    assert breach(status) is None
