"""A host without hardware: the driver that works on a machine that only pretends.

For simulations and benchmarks. Laws: `tests/conformance/driver`, the same that real QEMU is held to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from fabric.model.states import PowerState
from hostd.core.faults import FaultCode
from hostd.driver.base import (
    DiskFile,
    Domain,
    DomainEvent,
    DomainSpec,
    Hypervisor,
    Interface,
    driver_error,
)
from hostd.driver.fake_consoles import FakeConsoles
from hostd.driver.fake_machine import FakeMachine
from hostd.driver.fake_parts import (
    INSTANT,
    POWER_LOST,
    Delays,
    FakeCopy,
    FakeDomain,
    FakeShelf,
    MachineEvent,
    seen,
)
from hostd.images.base import Held

__all__ = [
    "INSTANT",
    "POWER_LOST",
    "Delays",
    "FakeCopy",
    "FakeDomain",
    "FakeDriver",
    "FakeMachine",
    "FakeShelf",
    "MachineEvent",
]

_T = TypeVar("_T")


class FakeDriver(FakeConsoles):
    """`Driver` on a `FakeMachine`. Any number of them may come and go on one machine, as daemons do."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine
        self._queues: list[asyncio.Queue[DomainEvent | None]] = []

    async def open(self) -> Hypervisor:
        self._hang_up()
        await self._do("", "open", self._machine.delays.observe_s, lambda: None)
        return Hypervisor(
            kind="fake",
            version="1.0.0",
            accelerator="none",
            architecture="x86_64",
            total=self._machine.total,
            traits=("HW_ARCH_X86_64",),
        )

    async def domains(self) -> tuple[Domain, ...]:
        def read() -> tuple[Domain, ...]:
            ours = tuple(seen(domain) for _, domain in sorted(self._machine.domains.items()))
            strays = tuple(
                Domain(
                    name=name,
                    instance_id="",
                    placement_epoch=0,
                    generation=0,
                    power=PowerState.RUNNING,
                    ours=False,
                )
                for name in self._machine.strays
            )
            return ours + strays

        return await self._do("", "domains", self._machine.delays.observe_s, read)

    async def observe(self, instance_id: str) -> Domain | None:
        def read() -> Domain | None:
            domain = self._machine.domains.get(instance_id)
            return None if domain is None else seen(domain, in_full=True)

        return await self._do("", "observe", self._machine.delays.observe_s, read)

    async def define(self, spec: DomainSpec) -> None:
        await self._do(
            spec.guest.id, "define", self._machine.delays.define_s, lambda: self._machine.define(spec)
        )

    async def start(self, instance_id: str) -> None:
        def boot() -> None:
            self._need(instance_id)
            self._machine.start(instance_id)

        await self._do(instance_id, "start", self._machine.delays.start_s, boot)

    async def hold(self, instance_id: str, power: PowerState) -> None:
        def stop() -> None:
            self._need(instance_id)
            self._machine.hold(instance_id, power)

        await self._do(instance_id, "hold", self._machine.delays.hold_s, stop)

    async def go_on(self, instance_id: str) -> None:
        def let_go() -> None:
            self._need(instance_id)
            self._machine.go_on(instance_id)

        await self._do(instance_id, "go_on", self._machine.delays.hold_s, let_go)

    async def copy_disk(self, instance_id: str, serial: str, target: DiskFile) -> None:
        def copy() -> None:
            domain = self._need(instance_id)
            if domain.running is None:
                raise driver_error(FaultCode.GUEST_OFF)
            held = Held(instance_id, domain.running.placement_epoch)
            made = next((each for each in self._machine.copies.values() if each.path == target.path), None)
            if made is None or serial not in {disk.serial for disk in domain.running.disks}:
                raise driver_error(FaultCode.SNAPSHOT_FAILED)
            made.data = self._machine.written.get(held, b"")

        await self._do(instance_id, "copy_disk", self._machine.delays.copy_s, copy)

    async def attach_disk(self, instance_id: str, disk: DiskFile) -> None:
        await self._plug(instance_id, "attach_disk", lambda: self._machine.plug(instance_id, disk))

    async def detach_disk(self, instance_id: str, serial: str) -> None:
        await self._pull(instance_id, "detach_disk", serial)

    async def attach_interface(self, instance_id: str, interface: Interface) -> None:
        await self._plug(instance_id, "attach_interface", lambda: self._machine.plug(instance_id, interface))

    async def detach_interface(self, instance_id: str, mac: str) -> None:
        await self._pull(instance_id, "detach_interface", mac)

    async def _plug(self, instance_id: str, step: str, work: Callable[[], None]) -> None:
        def plug() -> None:
            self._need(instance_id)
            work()

        await self._do(instance_id, step, self._machine.delays.plug_s, plug)

    async def _pull(self, instance_id: str, step: str, name: str) -> None:
        def ask() -> None:
            running = self._need(instance_id).running
            if running is None:
                raise driver_error(FaultCode.GUEST_OFF)
            machine = self._machine
            # In its own time; a paused one does nothing until it goes on.
            machine.after(machine.delays.let_go_s, lambda: machine.unplug(instance_id, name))

        await self._do(instance_id, step, self._machine.delays.plug_s, ask)

    async def press_power_button(self, instance_id: str) -> None:
        def press() -> None:
            domain = self._need(instance_id)
            pressed = domain.running
            if pressed is None or instance_id in self._machine.deaf or domain.power is PowerState.PAUSED:
                return

            def obey() -> None:
                # The guest that heard the button may have been stopped, and another boot begun, since.
                if domain.running is pressed:
                    self._machine.shut_down_guest(instance_id)

            self._machine.after(self._machine.delays.guest_shutdown_s, obey)

        await self._do(instance_id, "press_power_button", self._machine.delays.observe_s, press)

    async def press_reset_button(self, instance_id: str) -> None:
        def press() -> None:
            if self._need(instance_id).running is None:
                raise driver_error(
                    FaultCode.DOMAIN_START_FAILED, "it is not running, so it cannot reboot itself"
                )
            if instance_id not in self._machine.deaf:
                self._machine.after(
                    self._machine.delays.guest_shutdown_s, lambda: self._machine.reset(instance_id)
                )

        await self._do(instance_id, "press_reset_button", self._machine.delays.observe_s, press)

    async def cut_power(self, instance_id: str) -> None:
        await self._do(
            instance_id, "cut_power", self._machine.delays.cut_power_s, lambda: self._machine.cut(instance_id)
        )

    async def forget(self, instance_id: str) -> None:
        await self._do(
            instance_id, "forget", self._machine.delays.cut_power_s, lambda: self._machine.forget(instance_id)
        )

    def events(self) -> AsyncIterator[DomainEvent]:
        queue = self._machine.listen()
        self._queues.append(queue)
        return self._listen(queue)

    async def close(self) -> None:
        self._hang_up()

    def _hang_up(self) -> None:
        for queue in self._queues:
            self._machine.unlisten(queue)
            queue.put_nowait(None)
        self._queues.clear()

    async def _listen(self, queue: asyncio.Queue[DomainEvent | None]) -> AsyncIterator[DomainEvent]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._machine.unlisten(queue)

    def _need(self, instance_id: str) -> FakeDomain:
        domain = self._machine.domains.get(instance_id)
        if domain is None:
            raise driver_error(FaultCode.DOMAIN_MISSING)
        return domain

    async def _do(self, lock: str, step: str, delay_s: float, work: Callable[[], _T]) -> _T:
        def checked() -> _T:
            if not self._machine.hypervisor_up:
                raise driver_error(FaultCode.HYPERVISOR_UNAVAILABLE)
            fault = self._machine.pop_fault(step)
            if fault is not None:
                raise driver_error(fault)
            return work()

        if not self._machine.hypervisor_up:
            raise driver_error(FaultCode.HYPERVISOR_UNAVAILABLE)
        return await self._machine.operate(
            f"domain/{lock or step}", delay_s, checked, lambda: driver_error(FaultCode.HYPERVISOR_UNAVAILABLE)
        )
