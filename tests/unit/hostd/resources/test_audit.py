"""The audit goes on, whatever a measurement comes to."""

from __future__ import annotations

import asyncio

from fabric.model.session import Report
from hostd.driver.base import Domain
from hostd.driver.fake import FakeDriver
from hostd.images.fake import FakeDisks
from hostd.network.fake import FakeWires
from hostd.resources.audit import Audit
from tests.unit.hostd.bench import Bench, on_a_bench


class WordlessDriver(FakeDriver):
    """A hypervisor that fails, at its second look, in a way it has no word for."""

    looks = 0

    async def domains(self) -> tuple[Domain, ...]:
        self.looks += 1
        if self.looks == 2:
            raise ValueError("a name that is no text")
        return await super().domains()


def test_a_measurement_that_fails_without_a_word_is_made_again() -> None:
    """That held for those made each minute only. One made because something had changed ended the audit, and with it the daemon."""
    reports: list[Report] = []

    async def scenario(bench: Bench) -> None:
        machine = bench.machine
        driver = WordlessDriver(machine)
        hypervisor = await driver.open()
        audit = Audit(
            driver,
            FakeDisks(machine),
            FakeWires(machine),
            agent_version="1",
            every_s=60,
            guests=dict,
            state=lambda: (hypervisor, None),
            report=reports.append,
        )
        running = asyncio.create_task(audit.run())
        for _ in range(2):
            await asyncio.sleep(5)
            audit.ring()
        await asyncio.sleep(5)

        assert not running.done()
        assert (driver.looks, len(reports)) == (3, 2)
        running.cancel()

    on_a_bench(scenario)
