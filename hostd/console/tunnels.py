"""Consoles of this host's guests, each through a tunnel that is dialled when the conductor asks for it.

A guest has one serial port, so one person is at it at a time: who comes second is refused, or takes it over, as with `virsh console`. Its
screen shows the same to several.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import FabricError, InvalidRequest
from fabric.model.console import ConsoleEnd, ConsoleKind
from fabric.model.session import TunnelWanted
from fabric.rpc import frames, relay
from fabric.rpc.stream import Stream, StreamClosed
from hostd.core.faults import FaultCode
from hostd.driver.base import Driver, driver_error

_log = structlog.get_logger(__name__)

SCREENS_AT_ONCE: Final = 4
"""Viewers of one guest's screen: each has the hypervisor encode it anew."""

_HANDOVER_S: Final = 5.0
_LAST_WORDS_S: Final = 2.0


class Guest:
    """The guest's end of a console, as speech. It ends when the guest does."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def send(self, data: bytes) -> None:
        await self._stream.send(data)

    async def receive(self) -> bytes | ConsoleEnd:
        try:
            return await self._stream.receive()
        except StreamClosed:
            return ConsoleEnd.GUEST_OFF

    async def end(self, why: ConsoleEnd) -> None:
        """A guest is not told who looks at it."""


class _Holder:
    """Whoever has a serial console: asked to leave, and waited for."""

    def __init__(self) -> None:
        self.must_leave = asyncio.Event()
        self.has_left = asyncio.Event()

    async def until_taken_over(self) -> ConsoleEnd:
        await self.must_leave.wait()
        return ConsoleEnd.TAKEN_OVER


class Tunnels:
    """See the module. `dial` opens a tunnel to the conductor of the session that `epoch` is of."""

    def __init__(
        self,
        driver: Driver,
        *,
        clock: Clock,
        dial: Callable[[], Awaitable[Stream]],
        epoch: Callable[[], int],
    ) -> None:
        self._driver = driver
        self._clock = clock
        self._dial = dial
        self._epoch = epoch
        self._serial: dict[str, _Holder] = {}
        self._screens: Counter[str] = Counter()

    async def serve(self, wanted: TunnelWanted) -> None:
        """Open the console and carry it until it is over. Raises DriverError where it cannot be opened."""
        if wanted.kind is ConsoleKind.SERIAL:
            await self._serve_serial(wanted)
        else:
            await self._serve_screen(wanted)

    async def _serve_serial(self, wanted: TunnelWanted) -> None:
        await self._make_way(wanted)
        holder = self._serial[wanted.instance_id] = _Holder()
        try:
            await self._carry(wanted, (holder.until_taken_over,))
        finally:
            holder.has_left.set()
            if self._serial.get(wanted.instance_id) is holder:
                del self._serial[wanted.instance_id]

    async def _make_way(self, wanted: TunnelWanted) -> None:
        """See to it that nobody has the serial console. Of several who take it over at once the last has it."""
        while (holder := self._serial.get(wanted.instance_id)) is not None:
            if not wanted.take_over:
                raise driver_error(FaultCode.CONSOLE_IN_USE)
            holder.must_leave.set()
            try:
                async with within(_HANDOVER_S):
                    await holder.has_left.wait()
            except TimeoutError:
                raise driver_error(FaultCode.CONSOLE_IN_USE) from None

    async def _serve_screen(self, wanted: TunnelWanted) -> None:
        if self._screens[wanted.instance_id] >= SCREENS_AT_ONCE:
            raise driver_error(FaultCode.CONSOLE_IN_USE)
        self._screens[wanted.instance_id] += 1
        try:
            await self._carry(wanted, ())
        finally:
            self._screens[wanted.instance_id] -= 1
            if not self._screens[wanted.instance_id]:
                del self._screens[wanted.instance_id]

    async def _carry(self, wanted: TunnelWanted, watches: tuple[relay.Watch, ...]) -> None:
        guest = await self._driver.open_console(wanted.instance_id, wanted.kind)
        try:
            stream = await self._dial()
            try:
                await self._join(wanted, Guest(guest), frames.to_tunnel(stream), watches)
            finally:
                await stream.close()
        except (FabricError, StreamClosed) as lost:
            # The conductor knows: it is its own stream, or the lack of one.
            _log.info("console.lost", instance=wanted.instance_id, reason=type(lost).__name__)
        finally:
            await guest.close()

    async def _join(
        self,
        wanted: TunnelWanted,
        guest: Guest,
        line: frames.Tunnel,
        watches: tuple[relay.Watch, ...],
    ) -> None:
        await frames.say_hello(line, epoch=self._epoch(), question=wanted.question)
        _log.info("console.opened", instance=wanted.instance_id, kind=wanted.kind.name)
        why = await relay.join(guest, line, clock=self._clock, watches=watches)
        _log.info("console.over", instance=wanted.instance_id, why=why.name)
        # Hanging up at once would lose what is still on its way there: the conductor does when it has it all.
        with contextlib.suppress(StreamClosed, InvalidRequest, TimeoutError):
            async with within(_LAST_WORDS_S):
                while True:
                    await line.receive()
