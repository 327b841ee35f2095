"""What begins by itself does so when its time has come, and not before; and who is told a time can rely on it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from fabric.lifecycle.core import begin
from fabric.lifecycle.table import TIMERS
from fabric.lifecycle.timers import AGAIN_MS, dated, due
from fabric.model.instance import Fault, Instance
from fabric.model.states import Action, TaskState, VmState, Want
from tests.unit.lifecycle.records import NOW_MS, instance

KEEP_S = 60.0
PURGE_MS = NOW_MS + 60_000


def _kept(**facts: Any) -> Instance:
    return instance(VmState.SOFT_DELETED, **{"want": Want.STOP, "purge_time_ms": PURGE_MS, **facts})


def test_every_timer_has_either_a_setting_or_a_time_in_the_record() -> None:
    known = {each.name for each in fields(Instance)}

    assert all(bool(timer.setting) is not bool(timer.at) for timer in TIMERS)
    assert {timer.at for timer in TIMERS if timer.at} <= known


@pytest.mark.parametrize(
    ("state", "setting", "action"),
    [(timer.state, timer.setting, timer.action) for timer in TIMERS if timer.setting],
)
def test_a_setting_counts_from_when_the_server_came_into_its_state(
    state: VmState, setting: str, action: Action
) -> None:
    now = instance(state, vm_state_time_ms=NOW_MS)

    assert due(now, {setting: 60.0}, now_ms=NOW_MS + 59_999) is None
    assert due(now, {setting: 60.0}, now_ms=NOW_MS + 60_000) is action


def test_a_deleted_server_ends_when_it_was_said_to_whatever_is_set() -> None:
    assert due(_kept(), {}, now_ms=PURGE_MS - 1) is None
    assert due(_kept(), {}, now_ms=PURGE_MS) is Action.DELETE


def test_a_deleted_server_of_which_no_time_was_said_does_not_end_by_itself() -> None:
    assert due(_kept(purge_time_ms=0), {}, now_ms=2**60) is None


def test_what_is_under_way_is_not_interrupted() -> None:
    assert due(_kept(task=TaskState.RESTORING), {}, now_ms=PURGE_MS) is None


def test_what_has_failed_waits_before_it_is_begun_again() -> None:
    failed = _kept(fault=Fault(code="DISK_FULL", message="", time_ms=PURGE_MS))

    assert due(failed, {}, now_ms=PURGE_MS + AGAIN_MS - 1) is None
    assert due(failed, {}, now_ms=PURGE_MS + AGAIN_MS) is Action.DELETE


def test_the_time_is_kept_from_the_delete_on_until_the_server_is_restored() -> None:
    running = instance()
    asked = begin(running, Action.SOFT_DELETE, now_ms=NOW_MS, op_id="op", keep_s=KEEP_S)
    off = replace(dated(running, asked), vm_state=VmState.SOFT_DELETED, task=TaskState.NONE)
    again = begin(off, Action.SOFT_DELETE, now_ms=NOW_MS + 1, op_id="op", keep_s=2 * KEEP_S)
    restoring = dated(off, begin(off, Action.RESTORE, now_ms=NOW_MS + 1, op_id="op"))
    restored = dated(restoring, replace(restoring, vm_state=VmState.ACTIVE, task=TaskState.NONE))

    assert dated(running, asked).purge_time_ms == PURGE_MS
    assert dated(asked, off).purge_time_ms == again.purge_time_ms == restoring.purge_time_ms == PURGE_MS
    assert restored.purge_time_ms == 0


def test_a_delete_that_failed_leaves_no_time_behind() -> None:
    asked = begin(instance(), Action.SOFT_DELETE, now_ms=NOW_MS, op_id="op", keep_s=KEEP_S)

    failed = dated(asked, replace(asked, vm_state=VmState.ERROR, task=TaskState.NONE))

    assert failed.purge_time_ms == 0
