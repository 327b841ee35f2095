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
    """Keeps the driver open. A hypervisor that is away stops no guest, and reports none dead.

    `hypervisor` is None until it was reached for the first time; `fault` says what is wrong with it now.
    """

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
        self.fault: FaultCode | None = None
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
                self.fault = None
                self._changed()
                # Listening begins before the first look, so that nothing falls in between. Either ends both.
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._listen(), name="hypervisor/events")
                    tasks.create_task(self._poll(), name="hypervisor/poll")
            except* DriverError as lost:
                self._is_now(_word_for(lost))
                _log.warning("hypervisor.unavailable", fault=self.fault)
            except* Exception:  # noqa: BLE001 - logged; the watch must not end
                self._is_now(FaultCode.HYPERVISOR_FAILED)
                _log.exception("hypervisor.failed")
            await asyncio.sleep(self._timers.hypervisor_retry_s)

    async def _listen(self) -> None:
        async for event in self._driver.events():
            self._noticed(event)
        raise DriverError(FaultCode.HYPERVISOR_UNAVAILABLE, "the hypervisor's events have ended")

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


def _word_for(group: BaseExceptionGroup[DriverError]) -> FaultCode:
    """The fault of the first of them."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, DriverError)
    return as_fault_code(found.code)
