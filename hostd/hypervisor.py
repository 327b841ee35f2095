"""The watch over the hypervisor: connected whenever it can be, its events passed on, and looked at anyway, because events are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from hostd.core.faults import FaultCode, as_fault_code
from hostd.driver.base import Domain, DomainEvent, Driver, DriverError, Hypervisor
from hostd.settings import Timers

_log = structlog.get_logger(__name__)


class HypervisorWatch:
    """Keeps the driver open. `fault` says what is wrong with it now; a hypervisor that is away stops no guest and reports none dead."""

    def __init__(
        self,
        driver: Driver,
        timers: Timers,
        *,
        noticed: Callable[[DomainEvent], None],
        compared: Callable[[Sequence[Domain]], None],
        changed: Callable[[], None],
    ) -> None:
        self.hypervisor: Hypervisor | None = None
        self.fault: FaultCode | None = FaultCode.HYPERVISOR_UNAVAILABLE
        self._driver = driver
        self._timers = timers
        self._noticed = noticed
        self._compared = compared
        self._changed = changed

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            try:
                self.hypervisor = await self._driver.open()
                await self._serve()
            except DriverError as error:
                self._is_now(as_fault_code(error.code))
                _log.warning("hypervisor.unavailable", reason=error.message)
            except Exception:  # noqa: BLE001 - logged; the watch must not end
                self._is_now(FaultCode.HYPERVISOR_FAILED)
                _log.exception("hypervisor.failed")
            await asyncio.sleep(self._timers.hypervisor_retry_s)

    async def _serve(self) -> None:
        """Pass on events and poll, until either finds the connection gone."""
        # Listening begins before the first look, so that nothing falls in between.
        listening = asyncio.create_task(self._listen(), name="hypervisor/events")
        polling = asyncio.create_task(self._poll(), name="hypervisor/poll")
        try:
            done, _ = await asyncio.wait({listening, polling}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            listening.cancel()
            polling.cancel()
            await asyncio.gather(listening, polling, return_exceptions=True)

    async def _listen(self) -> None:
        async for event in self._driver.events():
            self._noticed(event)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(0)
            domains = await self._driver.domains()
            self._is_now(None)
            self._compared(domains)
            await asyncio.sleep(self._timers.poll_s)

    def _is_now(self, fault: FaultCode | None) -> None:
        if fault is not self.fault:
            self.fault = fault
            self._changed()
