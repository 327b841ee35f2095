"""What a simulated guest shows and says: a serial port that repeats what is typed, a small blank screen, counters, and an agent.

Enough for everything between a person and a guest to be tried without one. The screen speaks RFB 3.8 as far as viewers need (RFC 6143).
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from fabric.model.console import ConsoleKind
from fabric.model.session import Diagnostics, DiskCounters, InterfaceCounters
from fabric.rpc.stream import MemoryStream, Stream, StreamClosed, memory_pair
from hostd.core.faults import FaultCode
from hostd.driver.base import DomainSpec, driver_error
from hostd.images.base import Held

if TYPE_CHECKING:
    from hostd.driver.fake_machine import FakeMachine
    from hostd.driver.fake_parts import FakeDomain

T = TypeVar("T")

LONGEST_LINE_BYTES: Final = 4096
_SIDE: Final = 16
"""Pixels of the screen, each way."""


class FakeConsoles:
    """The part of the driver that is about what guests show and say."""

    _machine: FakeMachine

    async def open_console(self, instance_id: str, kind: ConsoleKind) -> Stream:
        return await self._at_once("open_console", lambda: open_console(self._machine, instance_id, kind))

    async def diagnostics(self, instance_id: str) -> Diagnostics:
        return await self._at_once("diagnostics", lambda: diagnostics(self._machine, instance_id))

    async def agent(
        self, instance_id: str, command: str, arguments: Mapping[str, object], *, timeout_s: float
    ) -> object:
        return await self._at_once("agent", lambda: agent(self._machine, instance_id, command, arguments))

    async def _at_once(self, step: str, work: Callable[[], T]) -> T:
        return await self._do("", step, self._machine.delays.observe_s, work)

    async def _do(self, lock: str, step: str, delay_s: float, work: Callable[[], T]) -> T:
        """An operation of the machine's, by the driver that this is part of."""
        raise NotImplementedError  # FakeDriver, which these consoles are mixed into, has it


def open_console(machine: FakeMachine, instance_id: str, kind: ConsoleKind) -> Stream:
    """A running guest's serial port or screen. It goes with the guest. Raises DriverError."""
    domain = _running(machine, instance_id)
    ours, guests = memory_pair()
    off = asyncio.Event()
    machine.off_bells.setdefault(instance_id, []).append(off)
    behave = _serial if kind is ConsoleKind.SERIAL else _screen
    machine.work(_until(off, guests, lambda: behave(machine, domain, guests)))
    return ours


def diagnostics(machine: FakeMachine, instance_id: str) -> Diagnostics:
    """Made-up counters, one for each device that the guest has."""
    domain = _running(machine, instance_id)
    spec = domain.spec
    ram_kib = spec.guest.ram_mib * 1024
    return Diagnostics(
        power=domain.power,
        uptime_s=domain.boots,
        vcpu_time_ms=(1000 * domain.boots,) * spec.guest.vcpus,
        memory_kib=ram_kib,
        memory_resident_kib=ram_kib // 2,
        disks=tuple(
            DiskCounters(device=f"vd{chr(ord('a') + number)}", read_bytes=4096, read_requests=1)
            for number, _ in enumerate(spec.disks)
        ),
        interfaces=tuple(
            InterfaceCounters(mac=each.mac, rx_bytes=342, rx_packets=1) for each in spec.interfaces
        ),
    )


def agent(machine: FakeMachine, instance_id: str, command: str, arguments: Mapping[str, object]) -> object:
    """What the guest's agent does. Raises DriverError."""
    _running(machine, instance_id)
    if instance_id in machine.agentless:
        raise driver_error(FaultCode.AGENT_MISSING)
    if command == "guest-set-user-password":
        password = base64.b64decode(str(arguments["password"])).decode()
        machine.passwords[instance_id, str(arguments["username"])] = password
    elif command not in _HARMLESS:
        raise driver_error(FaultCode.AGENT_FAILED)
    return _HARMLESS.get(command, {})


_HARMLESS: Final[Mapping[str, object]] = {
    "guest-ping": {},
    "guest-fsfreeze-freeze": 1,
    "guest-fsfreeze-thaw": 1,
    "guest-fsfreeze-status": "thawed",
}


def _running(machine: FakeMachine, instance_id: str) -> FakeDomain:
    domain = machine.domains.get(instance_id)
    if domain is None:
        raise driver_error(FaultCode.DOMAIN_MISSING)
    if domain.running is None:
        raise driver_error(FaultCode.GUEST_OFF)
    return domain


async def _until(off: asyncio.Event, stream: MemoryStream, behave: Callable[[], Awaitable[None]]) -> None:
    """Be the guest's end, for as long as the guest is on and somebody listens."""
    behaving = asyncio.ensure_future(behave())
    going = asyncio.ensure_future(off.wait())
    await asyncio.wait({behaving, going}, return_when=asyncio.FIRST_COMPLETED)
    for job in (behaving, going):
        job.cancel()
    await asyncio.gather(behaving, going, return_exceptions=True)
    await stream.close()


# -- the serial port -----------------------------------------------------------------------------------


async def _serial(machine: FakeMachine, domain: FakeDomain, stream: MemoryStream) -> None:
    spec = domain.spec
    line = b""
    try:
        while True:
            for byte in await stream.receive():
                if byte in b"\r\n":
                    said = f"\r\n{spec.guest.hostname} heard: ".encode() + line + b"\r\n"
                    line = b""
                else:
                    said = bytes((byte,))
                    line = (line + said)[-LONGEST_LINE_BYTES:]
                _log(machine, spec, said)
                await stream.send(said)
    except StreamClosed:
        return


def _log(machine: FakeMachine, spec: DomainSpec, said: bytes) -> None:
    held = Held(spec.guest.id, spec.placement_epoch)
    machine.consoles[held] = machine.consoles.get(held, b"") + said


# -- the screen ----------------------------------------------------------------------------------------


class _Input:
    """What a viewer sends, by the byte."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream
        self._waiting = b""

    async def take(self, size: int) -> bytes:
        while len(self._waiting) < size:
            self._waiting += await self._stream.receive()
        taken, self._waiting = self._waiting[:size], self._waiting[size:]
        return taken


_FIXED_SIZES: Final[Mapping[int, int]] = {0: 19, 3: 9, 4: 7, 5: 5}
"""What follows the type of a viewer's message: SetPixelFormat, FramebufferUpdateRequest, KeyEvent, PointerEvent."""


async def _screen(_machine: FakeMachine, domain: FakeDomain, stream: MemoryStream) -> None:
    viewer = _Input(stream)
    name = domain.spec.guest.name.encode()[:255]
    try:
        await stream.send(b"RFB 003.008\n")
        await viewer.take(12)
        await stream.send(b"\x01\x01")
        await viewer.take(1)
        await stream.send(bytes(4))
        await viewer.take(1)
        pixels = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
        await stream.send(struct.pack(">HH", _SIDE, _SIDE) + pixels + struct.pack(">I", len(name)) + name)
        while True:
            kind = (await viewer.take(1))[0]
            if kind in _FIXED_SIZES:
                await viewer.take(_FIXED_SIZES[kind])
            elif kind == 2:
                await viewer.take(4 * struct.unpack(">xH", await viewer.take(3))[0])
            elif kind == 6:
                await viewer.take(struct.unpack(">3xI", await viewer.take(7))[0])
            else:
                return
            if kind == 3:
                header = struct.pack(">BxHHHHHi", 0, 1, 0, 0, _SIDE, _SIDE, 0)
                await stream.send(header + bytes(4 * _SIDE * _SIDE))
    except StreamClosed:
        return
