"""Ends volumes whose data is gone: their index rows go, and their charges are given back, once.

Every scheduler does this for every cell it reaches; each write compares what it read, so they do each other's work at most once.
"""

from __future__ import annotations

import structlog

from fabric.model.quota import Charge, Quota
from fabric.model.volume import VolumeEnd, VolumeEntry
from fabric.quota.core import refund
from fabric.scheduler.commits import commit, read, seen
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.saga import forget
from fabric.scheduler.errands import Errands
from fabric.scheduler.ports import Ports
from fabric.store import keys
from fabric.store.base import Committed, Store
from fabric.store.picture import Held

log = structlog.get_logger()


class VolumeEnds:
    """The ended volumes of one cell."""

    def __init__(self, cell: str, store: Store, global_store: Store, ports: Ports) -> None:
        self._cell, self._store, self._global = cell, store, global_store
        self._ports, self._settings, self._ids = ports, ports.settings, ports.ids
        self._errands: Errands[VolumeEnd] = Errands(
            "volume-end", cell, store, keys.VOLUME_END, ports, self._end
        )

    async def run(self) -> None:
        """End them, for ever."""
        await self._errands.run()

    async def _end(self, held: Held[VolumeEnd]) -> bool:
        """End one, then forget that it was to be ended; False when something had changed meanwhile."""
        end, timeout_s = held.value, self._settings.store_timeout_s
        entry_key = keys.VOLUME_ENTRY.at(end.project_id, end.volume_id)
        quota_key = keys.QUOTA.at(end.project_id)
        now = await read(self._global, entry_key, quota_key, timeout_s=timeout_s)
        entry = seen(now, entry_key, VolumeEntry)
        if entry.value is not None:
            change = ended(
                entry.value,
                entry.revision,
                seen(now, quota_key, Quota).value,
                now.seen(quota_key),
                op_id=self._ids.new_id(),
            )
            if not isinstance(await commit(self._global, change, timeout_s=timeout_s), Committed):
                return False
            await self._ports.failpoints.reach("scheduler.volume.ended")
            log.info("volume.ended", cell=self._cell, volume=end.volume_id)
        work_key = keys.VOLUME_END.at(end.volume_id)
        done = await commit(self._store, forget({work_key: held.mod_revision}), timeout_s=timeout_s)
        return isinstance(done, Committed)


def ended(
    entry: VolumeEntry, revision: int, quota: Quota | None, quota_revision: int, *, op_id: str
) -> Change:
    """The write that removes the row, and gives back what it was charged; a project that is gone has nothing to give back to."""
    row_key, quota_key = keys.VOLUME_ENTRY.at(entry.project_id, entry.id), keys.QUOTA.at(entry.project_id)
    unchanged = {row_key: revision}
    put: dict[str, object] = {}
    if quota is not None:
        unchanged[quota_key] = quota_revision
        put[quota_key] = refund(quota, Charge(volumes=1, volume_gib=entry.size_gib), op_id=op_id)
    return Change(
        unchanged=unchanged,
        put=put,
        delete=(row_key, keys.VOLUME_NAME.at(entry.project_id, entry.name)),
    )
