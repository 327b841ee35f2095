"""`Driver` on libvirt.

A domain is found by its UUID, which is the instance's id, and is ours only with our mark in it, made by this host. Marks and power
of a running domain are those it was started with, not those of a definition written since.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import libvirt
import structlog

from fabric.model.console import ConsoleKind
from fabric.model.session import Diagnostics
from fabric.model.states import PowerState
from fabric.rpc.stream import Stream
from hostd.core.faults import FaultCode
from hostd.driver.base import (
    REBOOTED,
    DiskFile,
    Domain,
    DomainEvent,
    DomainSpec,
    DriverError,
    Hypervisor,
    Interface,
    driver_error,
)
from hostd.driver.libvirt import copying, guests
from hostd.driver.libvirt.connection import REBOOT, Connection, Lifecycle
from hostd.driver.libvirt.descriptors import DescriptorStream
from hostd.driver.libvirt.probe import gather, judge
from hostd.driver.libvirt.xml import (
    NAMESPACE,
    Mark,
    Platform,
    disk_xml,
    domain_xml,
    interface_xml,
    offers_kvm,
    parse_architecture,
    parse_devices,
    parse_mark,
)
from hostd.resources.tracker import measure_total

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)

_POWER: Final = {
    libvirt.VIR_DOMAIN_NOSTATE: PowerState.NOSTATE,
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.SHUTDOWN,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: PowerState.PAUSED,
}
"""`SHUTDOWN` in libvirt's words is a guest on its way down, and still runs. One that sleeps by its own will is held in memory, like a
paused one; ours are SUSPENDED where libvirt keeps their memory in a file."""

_HOLD: Final[Mapping[PowerState, tuple[Callable[[libvirt.virDomain], object], FaultCode]]] = {
    PowerState.PAUSED: (lambda domain: domain.suspend(), FaultCode.DOMAIN_PAUSE_FAILED),
    PowerState.SUSPENDED: (lambda domain: domain.managedSave(0), FaultCode.DOMAIN_SUSPEND_FAILED),
}
"""How each hold is made, and the fault of failing."""

_ASKED_ALREADY: Final = frozenset(
    {libvirt.VIR_ERR_DEVICE_MISSING, libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_OPERATION_INVALID}
)
"""What libvirt says of a device that is on its way out, or gone."""

SAVE_DEADLINE_S: Final = 600.0
"""How long a guest's memory may take to or from the disk: 64 GiB at 110 MB/s."""

_COPY_POLL_S: Final = 0.1
"""Between two looks at a copy under way: a small disk takes a quarter of a second."""

_HOLDING: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED, PowerState.SUSPENDED})
"""Powers of a domain that has devices, open or to be opened again."""

_ENDED_BADLY: Final = frozenset({libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_FAILED})

_EVENTS: Final = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: (PowerState.RUNNING, "started"),
    libvirt.VIR_DOMAIN_EVENT_RESUMED: (PowerState.RUNNING, "resumed"),
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: (PowerState.PAUSED, "suspended"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED: (PowerState.SHUTDOWN, "stopped"),
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: (PowerState.PAUSED, "suspended by the guest"),
    libvirt.VIR_DOMAIN_EVENT_CRASHED: (PowerState.CRASHED, "crashed"),
    REBOOT: (PowerState.RUNNING, REBOOTED),
}
"""Which events are news. Being defined, undefined or on the way down is not: the next one is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtSettings:
    """How to reach libvirt and what to make of the machine.

    `host` is the name in our marks. `accelerator` is `auto`, `kvm` or `qemu`. `storage` is any path on the filesystem of the
    guests' disks. `own_users` runs each guest as the owner of its root disk; off, it is libvirt's configuration that decides.
    """

    uri: str = "qemu:///system"
    host: str
    storage: Path
    accelerator: str = "auto"
    own_users: bool = True
    call_deadline_s: float = 30.0


class LibvirtDriver:
    """`Driver` on one libvirtd. The laws are in `tests/conformance/driver`."""

    def __init__(self, settings: LibvirtSettings) -> None:
        self._settings = settings
        self._connection = Connection(settings.uri, call_deadline_s=settings.call_deadline_s)
        self._hypervisor: Hypervisor | None = None

    async def open(self) -> Hypervisor:
        await self._connection.open()
        self._hypervisor = await self._connection.call(FaultCode.HYPERVISOR_FAILED, self._describe)
        return self._hypervisor

    async def domains(self) -> tuple[Domain, ...]:
        def read(connect: libvirt.virConnect) -> tuple[Domain, ...]:
            found = []
            for domain in connect.listAllDomains():
                # One that goes away while the list is read is not there.
                with _absent_is_fine():
                    found.append(self._seen(domain))
            return tuple(sorted(found, key=lambda domain: domain.name))

        return await self._connection.call(FaultCode.HYPERVISOR_FAILED, read)

    async def observe(self, instance_id: str) -> Domain | None:
        def read(connect: libvirt.virConnect) -> Domain | None:
            try:
                return self._seen_in_full(connect.lookupByUUIDString(instance_id))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise

        return await self._connection.call(FaultCode.HYPERVISOR_FAILED, read)

    async def define(self, spec: DomainSpec) -> None:
        def write(connect: libvirt.virConnect) -> None:
            with _absent_is_fine():
                self._refuse_foreign(connect.lookupByUUIDString(spec.guest.id))
            connect.defineXML(self._document(spec))

        await self._connection.call(FaultCode.DOMAIN_INVALID, write)

    async def start(self, instance_id: str) -> None:
        def boot(domain: libvirt.virDomain) -> None:
            if not domain.isActive():
                domain.create()

        before = await self.observe(instance_id)
        is_saved = before is not None and before.power is PowerState.SUSPENDED
        try:
            await self._on(
                instance_id,
                FaultCode.DOMAIN_START_FAILED,
                boot,
                deadline_s=SAVE_DEADLINE_S if is_saved else None,
            )
        except DriverError as error:
            # Two daemons, or a start that outlived its caller: what counts is whether it runs.
            if error.code != FaultCode.DOMAIN_START_FAILED or not await self._runs(instance_id):
                raise

    async def hold(self, instance_id: str, power: PowerState) -> None:
        act, fault = _HOLD[power]

        def stop(domain: libvirt.virDomain) -> None:
            if _power(domain) is not power:
                act(domain)

        await self._on(instance_id, fault, stop, deadline_s=SAVE_DEADLINE_S)

    async def go_on(self, instance_id: str) -> None:
        def let_go(domain: libvirt.virDomain) -> None:
            state = domain.state()[0]
            if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
                domain.pMWakeup()
            elif _power(domain) is not PowerState.RUNNING:
                domain.resume()

        await self._on(instance_id, FaultCode.DOMAIN_RESUME_FAILED, let_go)

    async def copy_disk(self, instance_id: str, serial: str, target: DiskFile) -> None:
        fault = FaultCode.SNAPSHOT_FAILED
        try:
            await self._on(instance_id, fault, lambda domain: copying.begin(domain, serial, target))
            # Looked at, not waited for: an event may be lost, and the job outlives a connection.
            while not await self._on(instance_id, fault, copying.is_done):  # noqa: ASYNC110 - see above
                await asyncio.sleep(_COPY_POLL_S)
        except BaseException:
            # Given up, or failed: whichever it was, nothing goes on writing. What libvirt says to that changes nothing.
            with contextlib.suppress(DriverError):
                await asyncio.shield(self._on(instance_id, fault, copying.end))
            raise

    async def attach_disk(self, instance_id: str, disk: DiskFile) -> None:
        def plug(domain: libvirt.virDomain) -> None:
            devices = parse_devices(_running(domain))
            if disk.serial not in devices.serials:
                _plug(domain, disk_xml(disk, devices.targets))

        await self._on(instance_id, FaultCode.VOLUME_ATTACH_FAILED, plug)

    async def detach_disk(self, instance_id: str, serial: str) -> None:
        await self._pull(instance_id, serial)

    async def attach_interface(self, instance_id: str, interface: Interface) -> None:
        def plug(domain: libvirt.virDomain) -> None:
            if interface.mac not in parse_devices(_running(domain)).macs:
                _plug(domain, interface_xml(interface))

        await self._on(instance_id, FaultCode.INTERFACE_ATTACH_FAILED, plug)

    async def detach_interface(self, instance_id: str, mac: str) -> None:
        await self._pull(instance_id, mac)

    async def _pull(self, instance_id: str, name: str) -> None:
        def ask(domain: libvirt.virDomain) -> None:
            document = parse_devices(_running(domain)).documents.get(name)
            if document is None:
                return
            try:
                domain.detachDeviceFlags(document, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except libvirt.libvirtError as error:
                # It was asked before and has not answered yet, or has let go since we looked.
                if error.get_error_code() not in _ASKED_ALREADY:
                    raise

        await self._on(instance_id, FaultCode.HYPERVISOR_FAILED, ask)

    async def press_power_button(self, instance_id: str) -> None:
        def press(domain: libvirt.virDomain) -> None:
            if domain.isActive():
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

        with _stopped_meanwhile_is_fine():
            await self._on(instance_id, FaultCode.DOMAIN_STOP_FAILED, press)

    async def press_reset_button(self, instance_id: str) -> None:
        def press(domain: libvirt.virDomain) -> None:
            domain.reboot(libvirt.VIR_DOMAIN_REBOOT_DEFAULT)

        await self._on(instance_id, FaultCode.DOMAIN_START_FAILED, press)

    async def cut_power(self, instance_id: str) -> None:
        with contextlib.suppress(_Absent):
            await self._on(instance_id, FaultCode.DOMAIN_STOP_FAILED, _destroy)

    async def forget(self, instance_id: str) -> None:
        def drop(domain: libvirt.virDomain) -> None:
            _destroy(domain)
            with _absent_is_fine():
                domain.undefineFlags(
                    libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
                    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                )

        with contextlib.suppress(_Absent):
            await self._on(instance_id, FaultCode.DOMAIN_STOP_FAILED, drop)

    async def open_console(self, instance_id: str, kind: ConsoleKind) -> Stream:
        is_serial = kind is ConsoleKind.SERIAL
        opened = await self._on(
            instance_id,
            FaultCode.CONSOLE_UNAVAILABLE,
            guests.open_serial if is_serial else guests.open_screen,
        )
        return DescriptorStream(opened.take(), is_lossy=is_serial)

    async def diagnostics(self, instance_id: str) -> Diagnostics:
        def read(domain: libvirt.virDomain) -> Diagnostics:
            return guests.diagnostics(domain.connect(), domain, _power(domain))

        return await self._on(instance_id, FaultCode.HYPERVISOR_FAILED, read)

    async def agent(
        self, instance_id: str, command: str, arguments: Mapping[str, object], *, timeout_s: float
    ) -> object:
        def ask(domain: libvirt.virDomain) -> object:
            return guests.ask_agent(domain, command, arguments, timeout_s)

        # libvirt makes sure that the agent is there before it asks it, which takes as long again.
        return await self._on(instance_id, FaultCode.AGENT_FAILED, ask, deadline_s=2 * timeout_s + 5)

    def events(self) -> AsyncIterator[DomainEvent]:
        return self._listen(self._connection.listen())

    async def close(self) -> None:
        await self._connection.close()

    async def _listen(self, queue: asyncio.Queue[Lifecycle | None]) -> AsyncIterator[DomainEvent]:
        try:
            while (lifecycle := await queue.get()) is not None:
                event = _news(lifecycle)
                if event is not None:
                    yield event
        finally:
            self._connection.unlisten(queue)

    def _describe(self, connect: libvirt.virConnect) -> Hypervisor:
        capabilities = connect.getCapabilities()
        architecture = parse_architecture(capabilities)
        kind = str(connect.getType()).lower()
        verdict = judge(
            gather(architecture=architecture, offered=offers_kvm(capabilities, architecture)),
            self._settings.accelerator,
        )
        _log.info("hypervisor.open", kind=kind, accelerator=verdict.accelerator, reason=verdict.reason)
        return Hypervisor(
            kind=kind,
            version=_version(connect.getVersion()),
            accelerator=verdict.accelerator,
            architecture=architecture,
            total=measure_total(self._settings.storage),
            traits=(f"HW_ARCH_{architecture.upper()}",),
        )

    def _document(self, spec: DomainSpec) -> str:
        return domain_xml(spec, self._platform(spec))

    def _platform(self, spec: DomainSpec) -> Platform:
        if self._hypervisor is None:
            # An order may come before the first connection has learnt what this machine can do; it passes.
            raise DriverError(FaultCode.HYPERVISOR_UNAVAILABLE, "the hypervisor is not known yet")
        accelerator = self._hypervisor.accelerator
        return Platform(
            accelerator=accelerator,
            architecture=self._hypervisor.architecture,
            host=self._settings.host,
            owner=_owner(spec, accelerator) if self._settings.own_users else None,
        )

    def _seen(self, domain: libvirt.virDomain) -> Domain:
        power = _power(domain)
        mark = self._mark(domain)
        return Domain(
            name=domain.name(),
            instance_id=mark.instance_id if mark else "",
            placement_epoch=mark.placement_epoch if mark else 0,
            generation=mark.generation if mark else 0,
            power=power,
            ours=mark is not None,
        )

    def _seen_in_full(self, domain: libvirt.virDomain) -> Domain:
        seen = self._seen(domain)
        if not seen.ours or seen.power not in _HOLDING:
            return seen
        devices = parse_devices(_saved(domain) if seen.power is PowerState.SUSPENDED else domain.XMLDesc(0))
        return replace(seen, disks=devices.serials, macs=devices.macs)

    def _mark(self, domain: libvirt.virDomain) -> Mark | None:
        """Our mark, where it is ours: by this host, and about the instance whose UUID the domain has."""
        try:
            text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                return None
            raise
        mark = parse_mark(text)
        if mark is None or mark.host != self._settings.host or mark.instance_id != domain.UUIDString():
            return None
        return mark

    def _refuse_foreign(self, domain: libvirt.virDomain) -> None:
        if self._mark(domain) is None:
            raise driver_error(FaultCode.DOMAIN_INVALID, "a domain that is not ours has its id")

    async def _on(
        self,
        instance_id: str,
        otherwise: FaultCode,
        act: Callable[[libvirt.virDomain], _T],
        *,
        deadline_s: float | None = None,
    ) -> _T:
        """Do something to a domain of ours. Raises DriverError, `_Absent` where there is none."""

        def run(connect: libvirt.virConnect) -> _T:
            domain = connect.lookupByUUIDString(instance_id)
            self._refuse_foreign(domain)
            return act(domain)

        try:
            return await self._connection.call(otherwise, run, deadline_s=deadline_s)
        except DriverError as error:
            if error.code == FaultCode.DOMAIN_MISSING:
                raise _Absent(error.code, error.message) from error
            raise

    async def _runs(self, instance_id: str) -> bool:
        seen = await self.observe(instance_id)
        return seen is not None and seen.ours and seen.power is PowerState.RUNNING


class _Absent(DriverError):
    """There is no such domain."""


def _power(domain: libvirt.virDomain) -> PowerState:
    state, reason = domain.state()
    power = _POWER.get(state, PowerState.NOSTATE)
    if power is not PowerState.SHUTDOWN:
        return power
    if domain.hasManagedSaveImage(0):
        return PowerState.SUSPENDED
    return PowerState.CRASHED if reason in _ENDED_BADLY else power


def _saved(domain: libvirt.virDomain) -> str:
    """The XML of what a suspended domain comes back as; its definition, of hypervisors that cannot say."""
    try:
        return str(domain.managedSaveGetXMLDesc(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return str(domain.XMLDesc(0))


def _running(domain: libvirt.virDomain) -> str:
    """The XML of a domain that runs. Raises DriverError: GUEST_OFF."""
    if not domain.isActive():
        raise driver_error(FaultCode.GUEST_OFF)
    return str(domain.XMLDesc(0))


def _plug(domain: libvirt.virDomain, document: str) -> None:
    """Plug a device into the domain as it runs. Its definition is written anew at each start, and is left alone."""
    domain.attachDeviceFlags(document, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _destroy(domain: libvirt.virDomain) -> None:
    """Cut the power and drop what memory was saved; a domain that stopped by itself meanwhile is as stopped."""
    try:
        if domain.isActive():
            domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_DEFAULT)
        if domain.hasManagedSaveImage(0):
            domain.managedSaveRemove(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN}:
            raise


def _owner(spec: DomainSpec, accelerator: str) -> tuple[int, int]:
    """Who the guest's QEMU runs as: the owner of its root disk, in the group that may use KVM.

    Guests' files are readable to their owner alone, so guests that share KVM's group share nothing else.
    """
    disk = os.stat(spec.disks[0].path)  # noqa: PTH116 - a device - one system call
    if accelerator != "kvm":
        return disk.st_uid, disk.st_gid
    device = os.stat("/dev/kvm")  # noqa: PTH116 - as above
    if device.st_mode & stat.S_IRWXO & (stat.S_IROTH | stat.S_IWOTH):
        return disk.st_uid, disk.st_gid
    return disk.st_uid, device.st_gid


def _news(lifecycle: Lifecycle) -> DomainEvent | None:
    known = _EVENTS.get(lifecycle.event)
    if known is None:
        return None
    power, detail = known
    if lifecycle.event == libvirt.VIR_DOMAIN_EVENT_STOPPED and lifecycle.detail in {
        libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED,
        libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED,
    }:
        power, detail = PowerState.CRASHED, "ended by a fault"
    return DomainEvent(instance_id=lifecycle.instance_id, power=power, detail=detail)


def _version(number: int) -> str:
    """A version packed as libvirt does: 1,000,000 · major + 1,000 · minor + release."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


@contextlib.contextmanager
def _absent_is_fine() -> Iterator[None]:
    """End the block quietly where libvirt says that the domain is not there (any more)."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


@contextlib.contextmanager
def _stopped_meanwhile_is_fine() -> Iterator[None]:
    """End the block quietly where the domain stopped between the look and the press."""
    try:
        yield
    except DriverError as error:
        cause = error.__cause__
        if not isinstance(cause, libvirt.libvirtError):
            raise
        if cause.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise
