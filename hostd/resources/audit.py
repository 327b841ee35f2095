"""The resource tracker's loop: what the host has and holds, measured every minute and at each change, told when it differs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from fabric.deadlines import within
from fabric.model.instance import Guest
from fabric.model.session import Inventory, Report
from hostd.core import resources
from hostd.core.faults import FaultCode, as_fault_code
from hostd.driver.base import Domain, Driver, DriverError, Hypervisor
from hostd.images.base import DiskError, Disks
from hostd.network.base import NetworkError, Wires

_log = structlog.get_logger(__name__)

_SETTLE_S = 1.0
"""Changes come in bursts; one measurement answers all of a burst."""


class Audit:
    """Measures, compares and reports. Destroys nothing: what no order explains is named in the log and the inventory (R4)."""

    def __init__(
        self,
        driver: Driver,
        disks: Disks,
        wires: Wires,
        *,
        agent_version: str,
        directories: tuple[str, ...] = (),
        every_s: float,
        guests: Callable[[], Mapping[str, Guest]],
        state: Callable[[], tuple[Hypervisor | None, FaultCode | None]],
        report: Callable[[Report], None],
    ) -> None:
        self._driver = driver
        self._disks = disks
        self._wires = wires
        self._agent_version = agent_version
        self._directories = directories
        self._every_s = every_s
        self._guests = guests
        self._state = state
        self._report = report
        self._bell = asyncio.Event()
        self._domains: tuple[Domain, ...] = ()
        self._wires_fault: FaultCode | None = None
        self._named: frozenset[str] = frozenset()
        self._knows_orders = False

    def ring(self) -> None:
        """Something changed: measure soon."""
        self._bell.set()

    def orders_known(self) -> None:
        """A whole snapshot came: from now on, what no order explains is unexplained, and an image no guest uses is unused."""
        self._knows_orders = True
        self._bell.set()

    async def run(self) -> None:
        """Audit for ever."""
        while True:
            await self._try(self._converge)
            await self._try(self.measure)
            with contextlib.suppress(TimeoutError):
                async with within(self._every_s):
                    await self._measure_changes()

    async def _measure_changes(self) -> None:
        while True:
            await self._bell.wait()
            await asyncio.sleep(_SETTLE_S)
            self._bell.clear()
            await self._try(self.measure)

    @staticmethod
    async def _try(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001 - logged; measuring must not end the daemon
            _log.exception("audit.failed")

    async def _converge(self) -> None:
        """What the host itself needs: its bridge and servers in place, its image cache within bounds."""
        try:
            await self._wires.prepare()
            self._wires_fault = None
        except NetworkError as error:
            self._wires_fault = as_fault_code(error.code)
            _log.warning("wires.failed", reason=error.message)
        if self._knows_orders:
            guests = self._guests().values()
            used = {
                image.sha256
                for guest in guests
                for image in guest.images()
                if not (guest.standalone and image is guest.image)
            }
            # One of these may be about to be made.
            used |= {each.image.sha256 for guest in guests for each in guest.volume_images}
            try:
                await self._disks.prune(frozenset(used))
            except DiskError as error:
                _log.warning("images.unpruned", reason=error.message)

    async def measure(self) -> None:
        """One measurement and its report. With the hypervisor away the guests last seen count: they run on."""
        fault: FaultCode | None = None
        try:
            self._domains = await self._driver.domains()
        except DriverError as error:
            fault = as_fault_code(error.code)
        hypervisor, watched = self._state()
        if hypervisor is None and watched is None:
            return  # not reached yet, and not known to be away: there is nothing to tell
        self._report(
            resources.report(
                hypervisor,
                self._domains,
                self._guests(),
                agent_version=self._agent_version,
                directories=self._directories,
                health=fault or watched or self._wires_fault or resources.HEALTHY,
            )
        )
        if fault is None and self._knows_orders:
            held = await self._held(self._domains)
            if held is not None:
                self._name_strangers(held)

    async def inventory(self) -> Inventory | None:
        """Everything held here; None while that cannot be measured."""
        try:
            return await self._held(await self._driver.domains())
        except DriverError as error:
            _log.warning("inventory.unmeasured", reason=error.message)
            return None

    async def _held(self, domains: Sequence[Domain]) -> Inventory | None:
        try:
            return resources.inventory(domains, await self._disks.held(), await self._wires.plugged())
        except (DiskError, NetworkError) as error:
            _log.warning("inventory.unmeasured", reason=error.message)
            return None

    def _name_strangers(self, held: Inventory) -> None:
        strangers = frozenset({*held.strays, *resources.unexplained(held, self._guests())})
        for name in sorted(strangers - self._named):
            _log.warning("stray.found", name=name)
        self._named = strangers
