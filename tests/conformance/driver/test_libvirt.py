"""libvirt with real QEMU under the laws, on a libvirtd of this module's own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from fabric.model.volume import serial_of
from hostd.core.faults import FaultCode
from hostd.driver.base import DiskFile, DomainSpec, Driver, DriverError, Interface
from hostd.driver.libvirt.driver import LibvirtDriver, LibvirtSettings
from hostd.driver.libvirt.xml import Platform, domain_name, domain_xml
from tests.chaos.pausing import pause, resume
from tests.conformance.driver.laws import ID, LAWS, PATIENCE_S, Law
from tests.conformance.guests import a_guest, an_id
from tests.conformance.private_libvirt import Machine, a_machine, missing_programs

pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}"),
]

GUEST_USER = 1_900_000_001
BOOT_S = 120.0
"""What a guest's firmware may take in software emulation, on a machine that has other things to do."""

FOREIGN = an_id("foreign")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with a_machine("driver") as made:
        yield made


class LibvirtRig:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.disk = machine.folder / "root.qcow2"
        self.driver: Driver = self._make()

    def _make(self) -> Driver:
        return LibvirtDriver(
            LibvirtSettings(uri=self.machine.uri, host=self.machine.hostname, storage=self.machine.folder)
        )

    async def another_driver(self) -> Driver:
        driver = self._make()
        await driver.open()
        return driver

    def spec(self, *, placement_epoch: int = 1, generation: int = 1) -> DomainSpec:
        return DomainSpec(
            guest=a_guest(id=ID, name='a <name> & "more"\x07'),
            placement_epoch=placement_epoch,
            generation=generation,
            disks=(DiskFile(path=str(self.disk), format="qcow2", serial="root"),),
            interfaces=(),
            console_log_path=str(self.machine.folder / "console.log"),
        )

    def empty_disk(self) -> DiskFile:
        path = self.disk.with_name("copy.qcow2")
        path.unlink(missing_ok=True)
        make_disk(path)
        return DiskFile(path=str(path), format="qcow2", serial="")

    def holds_a_copy(self, target: DiskFile) -> bool:
        command = ("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", str(self.disk), target.path)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def crash(self) -> None:
        self.machine.kill(domain_name(ID))

    def another_disk(self, word: str) -> DiskFile:
        path = self.machine.folder / f"{word}.raw"
        if not path.exists():
            path.touch(mode=0o600)
            os.truncate(path, 1 << 20)
            os.chown(path, GUEST_USER, GUEST_USER)
        return DiskFile(path=str(path), format="raw", serial=serial_of(an_id(word)))

    def interface(self, number: int) -> Interface | None:
        name = f"cft{number}"
        tuntap = ("tuntap", "add", "dev", name, "mode", "tap", "user", str(GUEST_USER))
        subprocess.run(("ip", "-n", self.machine.netns, *tuntap), check=True)
        return Interface(tap=name, mac=f"fa:16:3e:00:00:{number:02x}", mtu=1500)

    async def add_foreign(self) -> str:
        define(self.machine, f"<domain type='qemu'><name>foreign</name><uuid>{FOREIGN}</uuid>{TINY}</domain>")
        return "foreign"


TINY = "<memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os>"


def define(machine: Machine, document: str) -> None:
    connect = libvirt.open(machine.uri)
    try:
        connect.defineXML(document)
    finally:
        connect.close()


def undefine_all(machine: Machine) -> None:
    connect = libvirt.open(machine.uri)
    try:
        for domain in connect.listAllDomains():
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
    finally:
        connect.close()


@pytest.fixture
async def rig(machine: Machine) -> AsyncIterator[LibvirtRig]:
    made = LibvirtRig(machine)
    make_disk(made.disk)
    write_to(made.disk)
    await made.driver.open()
    yield made
    await made.driver.close()
    undefine_all(machine)


def make_disk(path: Path) -> None:
    subprocess.run(("qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"), check=True)
    os.chown(path, GUEST_USER, GUEST_USER)
    path.chmod(0o600)


def write_to(path: Path) -> None:
    """Put something on a disk that is not in use."""
    command = ("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 4M", str(path))
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
async def test_the_libvirt_driver(law: Law, rig: LibvirtRig) -> None:
    await law(rig)


async def test_a_guest_runs_as_its_disks_owner_without_any_capability(rig: LibvirtRig) -> None:
    """Two escaped guests share no user: neither can open the other's disk, nor become anybody else."""
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)

    status, devices = look_at(rig.machine.pid_of(domain_name(ID)))

    assert set(status["Uid"].split()) == {str(GUEST_USER)}
    assert set(status["Gid"].split()) == {str(GUEST_USER)}
    assert set(status["Groups"].split()) == {str(GUEST_USER)}
    assert int(status["CapEff"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert not any(name.startswith(("sd", "vd", "nvme", "mem", "tty")) for name in devices)


def look_at(pid: int) -> tuple[dict[str, str], set[str]]:
    """A process as the kernel sees it, and the devices that it sees."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return status, {path.name for path in Path(f"/proc/{pid}/root/dev").iterdir()}


@pytest.mark.parametrize("accelerator", ["qemu", "kvm"])
@pytest.mark.parametrize("firmware", ["bios", "uefi"])
@pytest.mark.parametrize("kernel", ["", "/boot/vmlinuz"])
def test_every_definition_fits_libvirts_schema(
    machine: Machine, accelerator: str, firmware: str, kernel: str
) -> None:
    """Left out of the driver itself, which would check each domain again and again: it takes longer than all the rest of a define."""
    base = DiskFile(path="/base.raw", format="raw", serial="", readonly=True)
    spec = DomainSpec(
        guest=a_guest(firmware=firmware, kernel_args="console=ttyS0"),
        placement_epoch=1,
        generation=1,
        disks=(
            DiskFile(path="/root.qcow2", format="qcow2", serial="root", backing=base),
            DiskFile(path="/config.iso", format="raw", serial="config-2", readonly=True),
        ),
        interfaces=(Interface(tap="cft0123456789ab", mac="fa:16:3e:00:00:01", mtu=1450),),
        kernel_path=kernel,
        ramdisk_path=kernel,
        console_log_path="/console.log",
    )
    platform = Platform(accelerator=accelerator, architecture="x86_64", host="h", owner=(1, 2))
    connect = libvirt.open(machine.uri)
    try:
        connect.defineXMLFlags(domain_xml(spec, platform), libvirt.VIR_DOMAIN_DEFINE_VALIDATE).undefine()
    except libvirt.libvirtError as error:
        # No KVM or no UEFI firmware on this machine is no fault of the document.
        if error.get_error_code() not in {
            libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
            libvirt.VIR_ERR_OPERATION_FAILED,
        }:
            raise
    finally:
        connect.close()


async def test_a_foreign_domain_with_the_servers_id_is_never_touched(rig: LibvirtRig) -> None:
    document = f"<domain type='qemu'><name>taken</name><uuid>{ID}</uuid>{TINY}</domain>"
    define(rig.machine, document)

    for act in (rig.driver.start, rig.driver.cut_power, rig.driver.forget):
        with pytest.raises(DriverError, match="not ours"):
            await act(ID)
    with pytest.raises(DriverError, match="not ours"):
        await rig.driver.define(rig.spec())
    assert [domain.name for domain in await rig.driver.domains()] == ["taken"]


async def test_a_dead_libvirtd_is_said_and_its_guest_found_again(rig: LibvirtRig) -> None:
    await rig.driver.define(rig.spec(placement_epoch=9))
    await rig.driver.start(ID)
    events = rig.driver.events()
    rig.machine.kill("libvirtd", signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        assert [event async for event in events] == []
    with pytest.raises(DriverError) as refused:
        await rig.driver.observe(ID)
    assert refused.value.code == FaultCode.HYPERVISOR_UNAVAILABLE

    async with asyncio.timeout(PATIENCE_S):
        # Nothing tells a client that libvirtd is back.
        while not await opens(rig.driver):
            await asyncio.sleep(0.1)
    domain = await rig.driver.observe(ID)
    assert domain is not None
    assert (domain.placement_epoch, domain.power.name) == (9, "RUNNING")


async def opens(driver: Driver) -> bool:
    try:
        await driver.open()
    except DriverError:
        return False
    return True


async def test_a_silent_libvirtd_costs_a_deadline_and_no_more(rig: LibvirtRig) -> None:
    driver = LibvirtDriver(
        LibvirtSettings(
            uri=rig.machine.uri, host=rig.machine.hostname, storage=rig.machine.folder, call_deadline_s=2.0
        )
    )
    await driver.open()
    pause(rig.machine.pid_of("libvirtd"))
    try:
        with pytest.raises(DriverError) as refused:
            await driver.domains()
    finally:
        resume(rig.machine.pid_of("libvirtd"))
    assert refused.value.code == FaultCode.HYPERVISOR_TIMEOUT
    assert await driver.domains() == ()
    await driver.close()


async def test_a_guest_has_the_uefi_that_it_asked_for(rig: LibvirtRig) -> None:
    """Left to itself libvirt took Debian's first choice for every guest, which boots nothing that is not signed. What is not signed here
    is the firmware's own shell, which is all there is to boot.
    """
    for word, secure_boot, shown in (("plain", False, b"Shell>"), ("secure", True, b"Security Violation")):
        console = rig.machine.folder / f"{word}.log"
        spec = replace(
            rig.spec(),
            guest=a_guest(word, firmware="uefi", secure_boot=secure_boot, ram_mib=128),
            console_log_path=str(console),
        )
        await rig.driver.define(spec)
        await rig.driver.start(an_id(word))
        async with asyncio.timeout(BOOT_S):
            while not console.exists() or shown not in console.read_bytes():
                await asyncio.sleep(0.2)
        await rig.driver.forget(an_id(word))
