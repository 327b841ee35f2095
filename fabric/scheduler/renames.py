"""Brings new names of servers to the index, from what their cells say is to be done.

Every scheduler does this for every cell it reaches; each write compares what it read, so they do each other's work at most once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from fabric.errors import FabricError
from fabric.model.instance import Instance, Location, Renamed
from fabric.scheduler.commits import commit, read, seen
from fabric.scheduler.core.names import brought
from fabric.scheduler.core.saga import forget
from fabric.scheduler.ports import Ports
from fabric.store import codec, keys
from fabric.store.base import Committed, Store
from fabric.store.picture import Change, Picture

log = structlog.get_logger()


class Renames:
    """The renames of one cell."""

    def __init__(self, cell: str, store: Store, global_store: Store, ports: Ports) -> None:
        self._cell, self._store, self._global = cell, store, global_store
        self._ports, self._settings, self._ids = ports, ports.settings, ports.ids
        self._news = asyncio.Event()
        self._work: Picture[Renamed] = Picture(
            store,
            keys.RENAMED.under(),
            lambda _, data: codec.decode(Renamed, data),
            clock=ports.clock,
            on_change=self._on_change,
        )

    async def run(self) -> None:
        """Bring every name, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._work.run())
            tasks.create_task(self._keep_bringing())

    def _on_change(self, _changes: Sequence[Change[Renamed]]) -> None:
        self._news.set()

    async def _keep_bringing(self) -> None:
        pause_s = self._settings.backoff_s
        while True:
            if not self._work.entries:
                self._news.clear()
                await self._news.wait()
                continue
            instance_id = next(iter(self._work.entries.values())).value.instance_id
            try:
                is_brought = await self._bring(instance_id)
            except FabricError as trouble:
                log.warning("rename.delayed", cell=self._cell, instance=instance_id, why=trouble.message)
                is_brought = False
            if is_brought:
                pause_s = self._settings.backoff_s
            else:
                # Somebody else is at it, or a store is away.
                await asyncio.sleep(self._ports.jittered_s(pause_s))
                pause_s = self._ports.longer_s(pause_s)

    async def _bring(self, instance_id: str) -> bool:
        """Bring one name, then forget that it was to be brought; False when something had changed meanwhile."""
        timeout_s = self._settings.store_timeout_s
        row_key, record_key = keys.LOCATION.at(instance_id), keys.INSTANCE.at(instance_id)
        work_key = keys.RENAMED.at(instance_id)
        # In this order: see `fabric.scheduler.core.names`.
        row = seen(await read(self._global, row_key, timeout_s=timeout_s), row_key, Location)
        cell = await read(self._store, record_key, work_key, timeout_s=timeout_s)
        change = brought(row, seen(cell, record_key, Instance).value, op_id=self._ids.new_id())
        if change.put:
            outcome = await commit(self._global, change, timeout_s=timeout_s)
            if not isinstance(outcome, Committed):
                return False
            await self._ports.failpoints.reach("scheduler.rename.brought")
            log.info("rename.brought", cell=self._cell, instance=instance_id)
        done = await commit(self._store, forget({work_key: cell.seen(work_key)}), timeout_s=timeout_s)
        if isinstance(done, Committed):
            await self._work.at_least(done.revision, timeout_s=timeout_s)
        return isinstance(done, Committed)
