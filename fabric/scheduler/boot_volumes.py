"""The volumes that builds boot from, read and bound: what is decided about them is in `fabric/scheduler/core/boot_volumes.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fabric.model.instance import Build
from fabric.model.volume import Volume, VolumeEntry
from fabric.scheduler.commits import commit, read, seen
from fabric.scheduler.core.boot_volumes import Root, bound, keys_of
from fabric.scheduler.ports import Ports
from fabric.store.base import Committed, Store

Roots = Mapping[str, Root]
"""By the server's id; those that boot from an image have none."""


class BootVolumes:
    """The volumes that builds of one cell boot from. A cell without such builds asks nobody anything."""

    def __init__(self, cell: str, store: Store, global_store: Store, ports: Ports) -> None:
        self._cell, self._store, self._global = cell, store, global_store
        self._ids, self._timeout_s = ports.ids, ports.settings.store_timeout_s

    async def look(self, builds: Iterable[Build]) -> Roots:
        """The volumes of those builds that boot from one, as they are. Raises Unavailable."""
        wanted = {build.instance_id: found for build in builds if (found := keys_of(build)) is not None}
        if not wanted:
            return {}
        rows = {row for row, _ in wanted.values()}
        records = {record for _, record in wanted.values()}
        # The row first: a volume that is given to a cell after that is no server's there yet.
        here = await read(self._global, *sorted(rows), timeout_s=self._timeout_s)
        there = await read(self._store, *sorted(records), timeout_s=self._timeout_s)
        return {
            instance_id: Root(entry=seen(here, row, VolumeEntry), volume=seen(there, record, Volume))
            for instance_id, (row, record) in wanted.items()
        }

    async def bind(self, root: Root) -> bool:
        """Have the volume belong to this cell; False where somebody was faster. Raises Ambiguous, Unavailable."""
        change = bound(root, self._cell, op_id=self._ids.new_id())
        if change is None:
            return True
        return isinstance(await commit(self._global, change, timeout_s=self._timeout_s), Committed)
