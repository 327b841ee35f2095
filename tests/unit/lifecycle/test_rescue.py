"""A rescued server: what it boots from, and every way out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fabric.lifecycle.core import begin, settle
from fabric.model.instance import Instance, OneShot, Rescue
from fabric.model.session import HostState
from fabric.model.states import Action, VmState, Want
from tests.unit.lifecycle.records import GUEST, IMAGE, NOW_MS, instance, said

RESCUE = Rescue(image=IMAGE, user_data=b"#!/bin/sh\n")


def _rescued(vm_state: VmState = VmState.RESCUED, **facts: Any) -> Instance:
    now = instance(vm_state, **facts)
    return replace(now, request=replace(now.request, guest=replace(GUEST, rescue=RESCUE)))


def _begin(now: Instance, action: Action) -> Instance:
    return begin(now, action, now_ms=NOW_MS, op_id="op")


def _settled(now: Instance, state: HostState, **facts: Any) -> Instance:
    after = settle(now, said(now, state, **facts), now_ms=NOW_MS, op_id="op")
    assert isinstance(after, Instance)
    return after


def test_a_rescued_guest_boots_what_rescues_it_and_is_itself_otherwise() -> None:
    guest = replace(GUEST, user_data=b"mine", kernel=GUEST.image, kernel_args="ro", rescue=RESCUE)

    booted = guest.booted()

    assert (booted.user_data, booted.kernel, booted.kernel_args) == (RESCUE.user_data, None, "")
    assert (booted.id, booted.ports, booted.public_keys) == (guest.id, guest.ports, guest.public_keys)
    assert GUEST.booted() == GUEST


def test_a_rescue_is_a_boot_that_ends_in_rescue() -> None:
    begun = _begin(instance(), Action.RESCUE)
    rescuing = replace(begun, request=_rescued().request)

    assert (begun.want, begun.action.kind) == (Want.RUN, OneShot.REBOOT_HARD)
    assert _settled(rescuing, HostState.ACTIVE).vm_state is VmState.RESCUED


def test_a_server_boots_from_its_own_disk_after_an_unrescue_and_after_a_rebuild() -> None:
    for action, vm_state in ((Action.UNRESCUE, VmState.RESCUED), (Action.REBUILD, VmState.ERROR)):
        begun = _begin(_rescued(vm_state), action)

        assert begun.request.guest.rescue is None
        assert _settled(begun, HostState.ACTIVE).vm_state is VmState.ACTIVE


def test_what_is_put_away_comes_back_from_its_own_disk() -> None:
    """A rescued guest that had gone off, or one whose rescue had failed, was shelved and came back rescued, where no table has it (seed
    5505).
    """
    asked = begin(_rescued(VmState.STOPPED), Action.SHELVE, now_ms=NOW_MS, op_id="op", image_id=IMAGE.id)
    shelved = _settled(replace(asked, uploaded=IMAGE), HostState.STOPPED)

    back = _settled(_begin(shelved, Action.UNSHELVE), HostState.ACTIVE)

    assert (shelved.vm_state, back.vm_state) == (VmState.SHELVED, VmState.ACTIVE)
    assert back.request.guest.rescue is None


def test_a_rescue_that_failed_is_rebooted_into_what_rescues_it() -> None:
    """In ERROR it has no unrescue, and a server that is shown as ACTIVE must run from its own disk."""
    rescuing = replace(_begin(instance(), Action.RESCUE), request=_rescued().request)
    failed = _settled(rescuing, HostState.ERROR)

    rebooted = _settled(_begin(failed, Action.REBOOT_HARD), HostState.ACTIVE)

    assert failed.vm_state is VmState.ERROR
    assert rebooted.vm_state is VmState.RESCUED
    assert _begin(rebooted, Action.UNRESCUE).request.guest.rescue is None


def test_a_rescued_guest_that_goes_off_is_stopped_and_started_as_what_it_was() -> None:
    stopped = _settled(_rescued(), HostState.STOPPED)

    assert (stopped.vm_state, stopped.want) == (VmState.STOPPED, Want.STOP)
    assert _settled(_begin(stopped, Action.START), HostState.ACTIVE).vm_state is VmState.RESCUED
