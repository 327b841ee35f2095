"""libvirt's own simulator (test:///default) under the laws: our calls, XML, marks and events through the real library, without a machine.

It runs in this process, so these laws are kept wherever libvirt's library is, without root, QEMU or a daemon.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from fabric.deadlines import within
from fabric.model.console import ConsoleKind
from fabric.model.volume import serial_of
from hostd.driver.base import DiskFile, DomainSpec, Driver, DriverError, Interface
from hostd.driver.libvirt import guests
from hostd.driver.libvirt.driver import LibvirtDriver, LibvirtSettings
from hostd.driver.libvirt.xml import Platform
from tests.conformance.driver import laws
from tests.conformance.driver.laws import ID, LAWS, Law
from tests.conformance.guests import a_guest, an_id

URI = "test:///default"

NO_PLUGS = "plugs nothing in while a domain runs"

NOT_KEPT: dict[Law, str] = {
    laws.consoles_go_with_their_domain: "its guests have neither a serial port nor a screen",
    laws.counters_are_of_what_the_domain_has: "it counts nothing that libvirt's statistics have",
    laws.forgetting_twice_is_success_and_leaves_nothing: "undefines no NVRAM and no checkpoints: refuses the flags",
    laws.forgetting_who_is_suspended_leaves_nothing: "undefines no NVRAM and no checkpoints: refuses the flags",
    laws.guests_run_on_when_the_daemon_goes: "ends by forgetting, see above; and its guests live in this process",
    laws.buttons_of_a_running_domain_return_at_once: "has no ACPI button: refuses the flag that presses it",
    laws.the_disk_of_a_guest_that_runs_or_is_paused_is_copied: "runs no jobs: knows no backup",
    laws.a_copy_that_is_given_up_does_not_hinder_the_next: "runs no jobs: knows no backup",
    laws.a_crash_is_told_and_seen: "its guests have no process that could be killed",
    laws.a_disk_plugged_in_is_seen_and_twice_is_success: NO_PLUGS,
    laws.what_was_plugged_in_goes_with_the_power: NO_PLUGS,
    laws.what_was_plugged_in_is_seen_while_it_is_held: NO_PLUGS,
    laws.an_interface_plugged_in_is_seen_and_twice_is_success: NO_PLUGS,
    laws.who_is_asked_twice_for_a_disk_is_no_failure: NO_PLUGS,
}
"""The laws that the simulator cannot keep, and why. Real QEMU keeps them all (test_libvirt.py)."""


class SimulatedDriver(LibvirtDriver):
    """The driver as it is, but for the one kind of domain that the simulator runs."""

    def _platform(self, spec: DomainSpec) -> Platform:
        return replace(super()._platform(spec), accelerator="test", architecture="x86_64")

    def _document(self, spec: DomainSpec) -> str:
        return super()._document(spec).replace('arch="x86_64" machine="q35"', 'arch="i686"')


class SimulatorRig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # What it simulates lasts as long as anybody is connected.
        self.beside = libvirt.open(URI)
        self.remove_all()
        self.driver: Driver = self._make()

    def _make(self) -> Driver:
        return SimulatedDriver(LibvirtSettings(uri=URI, host="h", storage=self.folder, own_users=False))

    async def another_driver(self) -> Driver:
        driver = self._make()
        await driver.open()
        return driver

    def spec(self, *, placement_epoch: int = 1, generation: int = 1) -> DomainSpec:
        return DomainSpec(
            guest=a_guest(id=ID, name='a <name> & "more"\x07'),
            placement_epoch=placement_epoch,
            generation=generation,
            disks=(DiskFile(path="/simulated/root", format="qcow2", serial="root"),),
            interfaces=(),
        )

    def empty_disk(self) -> DiskFile:
        return DiskFile(path="/simulated/copy", format="qcow2", serial="")

    def holds_a_copy(self, target: DiskFile) -> bool:
        raise AssertionError(NOT_KEPT[laws.the_disk_of_a_guest_that_runs_or_is_paused_is_copied])

    def crash(self) -> None:
        raise AssertionError(NOT_KEPT[laws.a_crash_is_told_and_seen])

    def another_disk(self, word: str) -> DiskFile:
        return DiskFile(path=f"/simulated/{word}", format="raw", serial=serial_of(an_id(word)))

    def interface(self, number: int) -> Interface | None:
        return Interface(tap=f"cft{number}", mac=f"fa:16:3e:00:00:{number:02x}", mtu=1500)

    async def add_foreign(self) -> str:
        self.beside.defineXML(
            "<domain type='test'><name>foreign</name><memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>"
        )
        return "foreign"

    def remove_all(self) -> None:
        """Begin with nothing: it comes with a domain of its own."""
        for domain in self.beside.listAllDomains():
            if domain.isActive():
                domain.destroy()
            if domain.isPersistent():
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[SimulatorRig]:
    made = SimulatorRig(tmp_path)
    await made.driver.open()
    yield made
    await made.driver.close()
    made.remove_all()
    made.beside.close()


@pytest.mark.parametrize("law", [law for law in LAWS if law not in NOT_KEPT], ids=lambda law: law.__name__)
async def test_the_libvirt_driver_on_the_simulator(law: Law, rig: SimulatorRig) -> None:
    await law(rig)


@pytest.mark.parametrize("law", NOT_KEPT, ids=lambda law: law.__name__)
async def test_no_law_is_left_out_that_the_simulator_keeps(law: Law, rig: SimulatorRig) -> None:
    """A newer libvirt may keep it: then it has no place in the list."""
    with pytest.raises((DriverError, AssertionError)):
        await law(rig)


async def test_a_console_that_nobody_waits_for_any_more_is_closed(
    rig: SimulatorRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that ends while libvirt opens a screen, or a libvirtd that takes too long, left the descriptor open for as long as hostd
    lived, and QEMU drawing for a viewer who was not there.
    """
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    asked, answered = threading.Event(), threading.Event()
    reading, writing = os.pipe()

    def open_late(_domain: libvirt.virDomain) -> guests.Opened:
        asked.set()
        answered.wait(10)
        return guests.Opened(reading)

    # The simulator's guests have neither a serial port nor a screen.
    monkeypatch.setattr(guests, "open_screen", open_late)
    opening = asyncio.create_task(rig.driver.open_console(ID, ConsoleKind.VNC))
    await asyncio.to_thread(asked.wait, 10)
    opening.cancel()
    await asyncio.wait({opening})
    answered.set()

    async with within(10):
        while is_open(reading):
            await asyncio.sleep(0.01)
    os.close(writing)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
