"""A libvirtd that is there and answers nothing (SIGSTOP): seen in time, waited for at no growing price, and found again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from fabric.model.session import Report
from hostd.core import resources
from hostd.core.faults import FaultCode
from hostd.driver.base import DriverError
from hostd.driver.fake import INSTANT, FakeMachine
from hostd.driver.libvirt.driver import LibvirtDriver, LibvirtSettings
from hostd.hypervisor import HypervisorWatch
from hostd.images.fake import FakeDisks
from hostd.network.fake import FakeWires
from hostd.resources.audit import Audit
from hostd.settings import Timers
from tests.chaos.pausing import pause, resume
from tests.conformance.private_libvirt import ROOT, Machine, a_machine, missing_programs

pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}"),
]

PATIENCE_S = 60
UCRED = struct.Struct("3i")
"""What SO_PEERCRED gives (unix(7)): process, user and group of the other side."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with a_machine("hung") as made:
        # Its first look at QEMU takes longer than the deadlines here.
        connect = libvirt.open(made.uri)
        connect.getCapabilities()
        connect.close()
        try:
            yield made
        finally:
            resume(made.pid_of("libvirtd"))


@dataclass
class Host:
    """What a daemon has of its hypervisor: the driver, the watch over it, and what is reported."""

    driver: LibvirtDriver
    watch: HypervisorWatch
    audit: Audit
    reports: list[Report]

    async def health(self) -> str:
        await self.audit.measure()
        return self.reports[-1].health

    async def until(self, fault: FaultCode | None, *others: FaultCode) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.watch.hypervisor is None or self.watch.fault not in {fault, *others}:
                await asyncio.sleep(0.05)


@pytest.fixture
async def host(machine: Machine) -> AsyncIterator[Host]:
    driver = LibvirtDriver(
        LibvirtSettings(uri=machine.uri, host="h", storage=machine.folder, call_deadline_s=1.0)
    )
    timers = Timers(poll_s=0.2, hypervisor_retry_s=0.1)
    watch = HypervisorWatch(
        driver,
        timers,
        noticed=lambda _: None,
        compared=lambda _: None,
        changed=lambda: None,
    )
    reports: list[Report] = []
    simulated = FakeMachine("h", delays=INSTANT)
    audit = Audit(
        driver,
        FakeDisks(simulated),
        FakeWires(simulated),
        agent_version="1",
        every_s=60,
        guests=dict,
        state=lambda: (watch.hypervisor, watch.fault),
        report=reports.append,
    )
    watching = asyncio.create_task(watch.run())
    yield Host(driver, watch, audit, reports)
    watching.cancel()
    await asyncio.wait({watching})
    await driver.close()
    await until_connections(0, machine)


def threads() -> int:
    return sum(thread.name.startswith("libvirt") for thread in threading.enumerate())


def connections(machine: Machine) -> int:
    """How many sockets this process has to that libvirtd. Other sockets are not counted: they come and go whenever garbage is collected."""
    libvirtd = machine.pid_of("libvirtd")
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        # The folder's own descriptor is gone by now, and most of the others are no sockets.
        with contextlib.suppress(OSError):
            borrowed = socket.socket(fileno=int(file.name))
            try:
                if borrowed.family == socket.AF_UNIX:
                    credentials = borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
                    found += UCRED.unpack(credentials)[0] == libvirtd
            finally:
                borrowed.detach()
    return found


async def until_connections(wanted: int, machine: Machine) -> None:
    """Wait for as many connections as these: libvirt's own thread closes what is closed, a moment later. A leak never comes down."""
    async with asyncio.timeout(PATIENCE_S):
        while connections(machine) != wanted:
            await asyncio.sleep(0.05)


async def test_a_hung_libvirtd_is_reported_and_found_again_when_it_goes_on(
    host: Host, machine: Machine
) -> None:
    await host.until(None)
    assert await host.health() == resources.HEALTHY
    await until_connections(1, machine)

    pause(machine.pid_of("libvirtd"))
    await host.until(FaultCode.HYPERVISOR_TIMEOUT, FaultCode.HYPERVISOR_UNAVAILABLE)
    assert await host.health() in {FaultCode.HYPERVISOR_TIMEOUT, FaultCode.HYPERVISOR_UNAVAILABLE}
    with pytest.raises(DriverError):
        await host.driver.domains()

    resume(machine.pid_of("libvirtd"))
    await host.until(None)
    assert await host.health() == resources.HEALTHY
    assert await host.driver.domains() == ()
    # The old connection is closed by its keepalive where it could not be by us.
    await until_connections(1, machine)


async def test_trying_again_and_again_takes_no_more_threads_or_connections(machine: Machine) -> None:
    driver = LibvirtDriver(
        LibvirtSettings(uri=machine.uri, host="h", storage=machine.folder, call_deadline_s=0.4)
    )
    await until_connections(0, machine)
    pause(machine.pid_of("libvirtd"))
    with pytest.raises(DriverError):
        await driver.open()
    threads_before = threads()
    for _ in range(8):
        with pytest.raises(DriverError) as refused:
            await driver.open()
        assert refused.value.code == FaultCode.HYPERVISOR_TIMEOUT
    assert connections(machine) == 1
    # Fewer is no fault: those of a driver closed before end in their own time.
    assert threads() <= threads_before

    resume(machine.pid_of("libvirtd"))
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await driver.open()
                break
            except DriverError:
                await asyncio.sleep(0.1)
    await until_connections(1, machine)
    await driver.close()
    await until_connections(0, machine)


OPEN_AND_END = """
import asyncio, pathlib, sys
from hostd.driver.base import DriverError
from hostd.driver.libvirt.driver import LibvirtDriver, LibvirtSettings
from tests.chaos.pausing import pause

async def main():
    driver = LibvirtDriver(
        LibvirtSettings(uri=sys.argv[1], host="h", storage=pathlib.Path("/"), call_deadline_s=1.5)
    )
    await driver.open()
    pause(int(sys.argv[2]))
    for _ in range(2):
        try:
            await driver.open()
        except DriverError as error:
            print(error.code)
    await driver.close()

asyncio.run(main())
"""


def test_a_daemon_can_end_while_libvirtd_hangs(machine: Machine) -> None:
    command = (sys.executable, "-c", OPEN_AND_END, machine.uri, str(machine.pid_of("libvirtd")))

    ended = subprocess.run(
        command, cwd=Path(ROOT), capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )

    said = [line for line in ended.stdout.splitlines() if line.startswith("HYPERVISOR")]
    assert (ended.returncode, said) == (0, ["HYPERVISOR_TIMEOUT"] * 2), ended.stderr


async def test_a_connection_that_is_replaced_or_closed_is_gone(machine: Machine) -> None:
    driver = LibvirtDriver(LibvirtSettings(uri=machine.uri, host="h", storage=machine.folder))
    await until_connections(0, machine)
    await driver.open()
    assert connections(machine) == 1

    await driver.open()
    await until_connections(1, machine)
    await driver.close()
    await until_connections(0, machine)
