"""Brings new names of servers to the index, from what their cells say is to be done.

Every scheduler does this for every cell it reaches; each write compares what it read, so they do each other's work at most once.
"""

from __future__ import annotations

import structlog

from fabric.model.instance import Instance, Location, Renamed
from fabric.scheduler.commits import commit, read, seen
from fabric.scheduler.core.names import brought
from fabric.scheduler.core.saga import forget
from fabric.scheduler.errands import Errands
from fabric.scheduler.ports import Ports
from fabric.store import keys
from fabric.store.base import Committed, Store
from fabric.store.picture import Held

log = structlog.get_logger()


class Renames:
    """The renames of one cell."""

    def __init__(self, cell: str, store: Store, global_store: Store, ports: Ports) -> None:
        self._cell, self._store, self._global = cell, store, global_store
        self._ports, self._settings, self._ids = ports, ports.settings, ports.ids
        self._errands: Errands[Renamed] = Errands("rename", cell, store, keys.RENAMED, ports, self._bring)

    async def run(self) -> None:
        """Bring every name, for ever."""
        await self._errands.run()

    async def _bring(self, held: Held[Renamed]) -> bool:
        """Bring one name, then forget that it was to be brought; False when something had changed meanwhile."""
        instance_id, timeout_s = held.value.instance_id, self._settings.store_timeout_s
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
        # As it was beside the record: a name given since then has written it again.
        done = await commit(self._store, forget({work_key: cell.seen(work_key)}), timeout_s=timeout_s)
        return isinstance(done, Committed)
