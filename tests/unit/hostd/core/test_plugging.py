"""Which device of a running guest is next, and when it is left as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fabric.model.instance import Guest
from fabric.model.session import HostState
from fabric.model.states import PowerState
from fabric.model.volume import GuestVolume
from hostd.core import reconcile
from hostd.core.faults import FaultCode
from hostd.core.plugging import ASK_AGAIN_S, LET_GO_S, Next, is_plugged, next_plug
from hostd.core.steps import (
    AttachDisk,
    AttachInterface,
    DetachDisk,
    DetachInterface,
    Effort,
    Rewire,
    Settled,
    Wait,
)
from hostd.driver.base import Domain, Interface
from tests.unit.hostd.orders import VOLUME, guest, instance_id, order

OTHER = GuestVolume(id=VOLUME.id[:-1] + "2", size_gib=1)
MAC = guest().ports[0].mac
PORT = guest(2).ports[0]
INTERFACE = Interface(tap="cft2", mac=PORT.mac, mtu=1500)
FRESH = Effort(began_s=0)
PLAIN = guest()
WITH_VOLUME = replace(PLAIN, volumes=(VOLUME,))
WITH_PORT = replace(PLAIN, ports=(*PLAIN.ports, PORT))


def domain(*disks: str, macs: tuple[str, ...] = (MAC,), power: PowerState = PowerState.RUNNING) -> Domain:
    return Domain(
        name="d",
        instance_id=instance_id(),
        placement_epoch=1,
        generation=1,
        power=power,
        disks=("root", "config-2", *disks),
        macs=macs,
    )


def plug(
    wanted: Guest, seen: Domain | None, effort: Effort = FRESH, *, now_s: float = 0.0, **other: Any
) -> Next | FaultCode | None:
    wired = other.get("wired", frozenset(port.mac for port in wanted.ports))
    return next_plug(wanted, seen, wired, effort, now_s=now_s)


@pytest.mark.parametrize("power", [PowerState.RUNNING, PowerState.PAUSED, PowerState.SUSPENDED])
def test_a_guest_with_its_devices_needs_nothing(power: PowerState) -> None:
    assert plug(WITH_VOLUME, domain(VOLUME.serial, power=power)) is None


@pytest.mark.parametrize(
    "seen", [None, domain(power=PowerState.SHUTDOWN), domain(power=PowerState.CRASHED)], ids=str
)
def test_who_is_off_is_given_its_devices_by_its_next_definition(seen: Domain | None) -> None:
    assert plug(WITH_VOLUME, seen) is None


def test_a_volume_that_is_missing_is_plugged_in_once() -> None:
    assert plug(WITH_VOLUME, domain()) == AttachDisk(VOLUME)

    done = reconcile.after(FRESH, AttachDisk(VOLUME), now_s=0)
    assert plug(WITH_VOLUME, domain(), done) is FaultCode.VOLUME_ATTACH_FAILED


def test_the_guests_own_disks_are_never_pulled_out() -> None:
    assert plug(PLAIN, replace(domain(), disks=("root", "config-2", "rescue", "vda"))) is None


def test_a_volume_that_is_not_wanted_is_asked_for_again_and_again_and_then_left() -> None:
    effort = FRESH
    asked = []
    now_s = 100.0
    step = plug(PLAIN, domain(VOLUME.serial), effort, now_s=now_s)
    while not isinstance(step, FaultCode):
        if isinstance(step, DetachDisk):
            asked.append(now_s)
            effort = reconcile.after(effort, step, now_s=now_s)
        else:
            assert isinstance(step, Wait)
            assert step.until_s is not None
            now_s = step.until_s
        step = plug(PLAIN, domain(VOLUME.serial), effort, now_s=now_s)

    assert asked == [100.0 + ASK_AGAIN_S * turn for turn in range(int(LET_GO_S / ASK_AGAIN_S))]
    assert (step, now_s) == (FaultCode.DEVICE_HELD, 100.0 + LET_GO_S)


def test_what_goes_goes_before_what_comes() -> None:
    assert plug(replace(PLAIN, volumes=(OTHER,)), domain(VOLUME.serial)) == DetachDisk(VOLUME.serial)


def test_an_interface_is_wired_before_it_is_plugged_in() -> None:
    assert plug(WITH_PORT, domain(), wired=frozenset({MAC})) == Rewire()

    wired = replace(reconcile.after(FRESH, Rewire(), now_s=0), interfaces=(INTERFACE,))
    assert plug(WITH_PORT, domain(), wired) == AttachInterface(INTERFACE)
    assert plug(WITH_PORT, domain(macs=(MAC, PORT.mac)), wired) is None


def test_a_daemon_that_forgot_the_taps_names_asks_for_them_again() -> None:
    assert plug(WITH_PORT, domain()) == Rewire()


def test_a_tap_goes_only_when_the_guest_has_let_go_of_it() -> None:
    both = frozenset({MAC, PORT.mac})

    assert plug(PLAIN, domain(macs=(MAC, PORT.mac)), wired=both) == DetachInterface(PORT.mac)
    asked = reconcile.after(FRESH, DetachInterface(PORT.mac), now_s=0)
    assert isinstance(plug(PLAIN, domain(macs=(MAC, PORT.mac)), asked, wired=both), Wait)
    assert plug(PLAIN, domain(), asked, wired=both) == Rewire()


def test_a_network_that_does_not_take_the_ports_is_not_asked_for_ever() -> None:
    tried = reconcile.after(FRESH, Rewire(), now_s=0)

    assert plug(WITH_PORT, domain(), tried, wired=frozenset({MAC})) is FaultCode.NETWORK_FAILED


def test_a_device_that_fails_leaves_the_guest_as_it_is_and_says_why() -> None:
    effort, told = reconcile.after_failure(
        order(),
        FRESH,
        AttachDisk(VOLUME),
        FaultCode.DISK_FULL,
        now_s=0,
        patience=reconcile.Patience(),
    )

    assert told is None
    assert plug(WITH_VOLUME, domain(), effort) is FaultCode.DISK_FULL


def test_who_is_suspended_with_other_devices_is_told_so() -> None:
    assert plug(PLAIN, domain(VOLUME.serial, power=PowerState.SUSPENDED)) is FaultCode.DEVICE_HELD


def test_a_guest_that_lets_go_late_is_told_of() -> None:
    said = Settled(HostState.ACTIVE, PowerState.RUNNING, FaultCode.DEVICE_HELD)

    assert reconcile.drift(order(), said, domain(VOLUME.serial)) is None
    assert reconcile.drift(order(), said, domain()) == replace(said, fault=None)
    assert is_plugged(order().guest, domain())


def test_a_guest_that_is_off_gives_up_the_wires_that_it_is_to_have_no_more() -> None:
    both = frozenset({MAC, PORT.mac})

    assert plug(PLAIN, None, wired=both) == Rewire()
    assert plug(PLAIN, domain(power=PowerState.SHUTDOWN), wired=both) == Rewire()
    rewired = reconcile.after(FRESH, Rewire(), now_s=0)
    assert plug(PLAIN, None, rewired, wired=both) is FaultCode.NETWORK_FAILED
    assert plug(PLAIN, None, rewired, wired=frozenset({MAC})) is None
    # What it is to have comes with its start.
    assert plug(WITH_PORT, None, wired=frozenset()) is None
