"""The hypervisor as a port: what a driver must be able to do, and nothing more.

Every method is idempotent: asking for what already is, is success. No method decides anything: hostd's core does, and
re-checks epoch, generation and permit immediately before each call that cannot be taken back (R2). The laws are in
`tests/conformance/driver`; the fake and libvirt are held to the same ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from fabric.model.console import ConsoleKind
from fabric.model.host import Resources
from fabric.model.instance import Guest
from fabric.model.session import Diagnostics
from fabric.model.states import PowerState
from hostd.core.faults import FaultCode, fault_text


class DriverError(Exception):
    """The hypervisor refused or failed. `code` is from hostd/core/faults.py; the message is for people, without host paths."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def driver_error(code: FaultCode, detail: str = "") -> DriverError:
    """A fault, in its own words."""
    return DriverError(code, fault_text(code, detail))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypervisor:
    """What this host is: for the report and for people."""

    kind: str
    version: str
    accelerator: str
    architecture: str
    total: Resources
    traits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A domain as the hypervisor has it. The marks are read from the domain's own metadata (R3), empty/0 where it carries none.

    `ours` tells whether it carries our mark: what does not is never touched, only reported. `disks` are the serial numbers of its disks and
    `macs` its interfaces, of one that holds memory (as it runs, or as it was saved); only `Driver.observe` says them.
    """

    name: str
    instance_id: str
    placement_epoch: int
    generation: int
    power: PowerState
    ours: bool = True
    disks: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFile:
    """One disk of a domain: an absolute path on the host and its format, always explicit (CVE-2026-24708).

    `backing` is the file underneath an overlay, read only and shared: explicit too, so that nothing ever probes a header.
    """

    path: str
    format: str
    serial: str
    readonly: bool = False
    backing: DiskFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One interface of a domain: the tap's name on the host and the guest's MAC."""

    tap: str
    mac: str
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSpec:
    """Everything that a domain's definition is made of."""

    guest: Guest
    placement_epoch: int
    generation: int
    disks: tuple[DiskFile, ...]
    interfaces: tuple[Interface, ...]
    kernel_path: str = ""
    ramdisk_path: str = ""
    console_log_path: str = ""


REBOOTED: Final = "rebooted"
"""The detail of an event that says a guest has rebooted itself: the only evidence there is of a soft reboot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainEvent:
    """The hypervisor says a domain changed by itself or by us. A hint: whoever gets it observes (events may be lost)."""

    instance_id: str
    power: PowerState
    detail: str = ""


class Console(Protocol):
    """A guest's serial port or screen, opened: what `fabric.rpc.stream.Stream` is, with bytes in no particular pieces."""

    async def send(self, data: bytes) -> None:
        """Hand bytes to the guest, waiting until it takes them. Raises StreamClosed."""
        ...

    async def receive(self) -> bytes:
        """The next bytes. Raises StreamClosed when the guest is off."""
        ...

    async def close(self) -> None:
        """Let go of it. Safe to call at any time, and again."""
        ...


class Driver(Protocol):
    """A hypervisor on this host."""

    async def open(self) -> Hypervisor:
        """Connect (again), and say what is there. Raises DriverError('HYPERVISOR_UNAVAILABLE')."""
        ...

    async def domains(self) -> tuple[Domain, ...]:
        """Every domain, ours or not, running or not."""
        ...

    async def observe(self, instance_id: str) -> Domain | None:
        """The instance's domain as it is now, None where there is none."""
        ...

    async def define(self, spec: DomainSpec) -> None:
        """Write or replace the persistent definition; a running domain goes on unchanged until its next start."""
        ...

    async def start(self, instance_id: str) -> None:
        """Boot the defined domain, or bring a suspended one back as it was; running already is success."""
        ...

    async def hold(self, instance_id: str, power: PowerState) -> None:
        """Hold the running domain: PAUSED in memory, or SUSPENDED with its memory on disk. Held so already is success.

        Raises DriverError with the fault of that hold: what is off cannot be held.
        """
        ...

    async def go_on(self, instance_id: str) -> None:
        """Let a paused domain go on; running already is success. Raises DriverError('DOMAIN_RESUME_FAILED')."""
        ...

    async def copy_disk(self, instance_id: str, serial: str, target: DiskFile) -> None:
        """Copy a disk of a running or paused domain, as it is at one instant, into a file that is there and empty.

        The copy has no backing file; the guest goes on meanwhile. What is in flight of an earlier copy is ended first, and this one is when
        the caller gives up. Raises DriverError: GUEST_OFF where the domain does not run, DISK_FULL, SNAPSHOT_FAILED.
        """
        ...

    async def attach_disk(self, instance_id: str, disk: DiskFile) -> None:
        """Plug a disk into a running or paused domain; one with its serial number there already is success.

        Raises DriverError: GUEST_OFF, VOLUME_ATTACH_FAILED.
        """
        ...

    async def detach_disk(self, instance_id: str, serial: str) -> None:
        """Ask the guest to let go of a disk. Returns at once: it is gone when `observe` does not show it any more. Absent is success.

        Raises DriverError: GUEST_OFF, HYPERVISOR_FAILED.
        """
        ...

    async def attach_interface(self, instance_id: str, interface: Interface) -> None:
        """Plug an interface into a running or paused domain; one with its MAC there already is success.

        Raises DriverError: GUEST_OFF, INTERFACE_ATTACH_FAILED.
        """
        ...

    async def detach_interface(self, instance_id: str, mac: str) -> None:
        """Ask the guest to let go of an interface, as `detach_disk`."""
        ...

    async def press_power_button(self, instance_id: str) -> None:
        """Ask the guest to shut down (ACPI). Returns at once; the guest may ignore it."""
        ...

    async def press_reset_button(self, instance_id: str) -> None:
        """Ask the guest to reboot itself (soft). Returns at once; the guest may ignore it."""
        ...

    async def cut_power(self, instance_id: str) -> None:
        """Stop the domain at once, and forget the memory it may have saved; stopped or absent already is success."""
        ...

    async def forget(self, instance_id: str) -> None:
        """Cut power and remove the definition with its NVRAM; absent already is success. Disks are not the driver's."""
        ...

    async def open_console(self, instance_id: str, kind: ConsoleKind) -> Console:
        """The running domain's serial port or screen, as bytes in no particular pieces, until it is closed or the guest goes off.

        A guest is never held up by who looks at it: of a serial port's output what a slow reader does not take is left out, with a
        note. The log of the serial port goes on beside. Raises DriverError: GUEST_OFF, CONSOLE_UNAVAILABLE.
        """
        ...

    async def diagnostics(self, instance_id: str) -> Diagnostics:
        """The running domain's counters, for no question yet. Raises DriverError."""
        ...

    async def agent(
        self, instance_id: str, command: str, arguments: Mapping[str, object], *, timeout_s: float
    ) -> object:
        """Have the agent in the running guest do something, and return what it returns (QEMU guest agent protocol).

        A command is the guest's to refuse, and its answer the guest's to choose. Raises DriverError: AGENT_MISSING where no agent answers
        in time, AGENT_FAILED where it refuses, GUEST_OFF.
        """
        ...

    def events(self) -> AsyncIterator[DomainEvent]:
        """Changes as they come, for ever; ends when the connection does."""
        ...

    async def close(self) -> None:
        """Let go of the hypervisor; guests run on."""
        ...
