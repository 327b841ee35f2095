"""Stores what hosts measured, many hosts' measurements in one transaction.

They are shown to people and grant nothing, so they may be seconds late; but guests that come and go change them, and written one by one
every create would cost the store a transaction more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

import structlog

from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.core import fence, guard, reports
from fabric.conductor.core.draft import Draft, ref
from fabric.errors import FabricError, Unavailable
from fabric.model.session import Report
from fabric.store.base import Store
from fabric.store.keys import HOST, REPORT, SESSION

log = structlog.get_logger()

TOGETHER: Final = 40
"""Hosts in one transaction: three keys of each are read, and the store reads and compares 128 at once."""


@dataclass(frozen=True, slots=True)
class _Measured:
    epoch: int
    report: Report


class Reporter:
    """`tell` it what a host measured; `run` writes what is worth it, under the host's session (R1)."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        # By host; a later measurement takes the place of one that waits.
        self._waiting: dict[str, _Measured] = {}
        self._news = asyncio.Event()

    def tell(self, host: str, epoch: int, report: Report) -> None:
        """A host with a session of this epoch has measured."""
        self._waiting[host] = _Measured(epoch, report)
        self._news.set()

    async def run(self) -> None:
        """Write for ever, each host's at most once in `LEAST_PAUSE_S`."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self._write_all()
            await asyncio.sleep(reports.LEAST_PAUSE_S)

    async def _write_all(self) -> None:
        while self._waiting:
            batch = dict(islice(self._waiting.items(), TOGETHER))
            for host in batch:
                del self._waiting[host]
            try:
                await self._write(batch)
            except Unavailable:
                self._waiting = {**batch, **self._waiting}
                self._news.set()
                return

    async def _write(self, batch: Mapping[str, _Measured]) -> None:
        """All together; where a session has moved or a record is broken, each by itself, and the next measurement mends the rest."""
        try:
            if await self._together(batch) or len(batch) == 1:
                return
        except Unavailable:
            raise
        except FabricError as broken:
            if len(batch) == 1:
                log.error(
                    "report.dropped", hosts=list(batch), error=type(broken).__name__, why=broken.message
                )
                return
        for host, measured in batch.items():
            await self._write({host: measured})

    async def _together(self, batch: Mapping[str, _Measured]) -> bool:
        wanted = [each for host in batch for each in (ref(SESSION, host), ref(HOST, host), ref(REPORT, host))]
        draft = Draft(await records.read(self._store, wanted))
        for host, measured in batch.items():
            self._decide(draft, host, measured)
        return await records.commit(self._store, draft)

    def _decide(self, draft: Draft, host: str, measured: _Measured) -> None:
        """A session that is lost is found out elsewhere."""
        inventory = draft.get(HOST, host)
        if inventory is None or not fence.holds(draft.get(SESSION, host), measured.epoch):
            return
        now = reports.report_of(
            guard.clamped(measured.report, inventory.capacity), host, now_ms=self._clock.now_ms()
        )
        if reports.is_material(draft.get(REPORT, host), now):
            draft.rely_on(SESSION, host)
            draft.put(REPORT, host, value=now)
