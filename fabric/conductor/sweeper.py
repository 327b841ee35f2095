"""Looks for what nobody is waiting for: hosts that are gone, deadlines that have passed, records that have served their time.

Every conductor of the cell sweeps; who writes first wins, because each write compares what it was decided on. Candidates come from
pictures, decisions from a fresh read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, NamedTuple

import structlog

from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.core import fence, repair
from fabric.conductor.core.bindings import Placed
from fabric.conductor.core.draft import Draft
from fabric.conductor.settings import ConductorSettings
from fabric.errors import Bug, FabricError, Unavailable
from fabric.ids import Ids
from fabric.lifecycle.timers import due
from fabric.model.host import Session
from fabric.model.instance import Instance
from fabric.model.volume import Volume, VolumeState
from fabric.store.answers import forget_answers
from fabric.store.base import Store, Txn
from fabric.store.codec import decode
from fabric.store.keys import ACTED, ALIVE, SESSION, VOLUME, VOLUME_END
from fabric.store.picture import Picture

log = structlog.get_logger()

REMEMBERED_MS: Final = 24 * 3600 * 1000
"""How long a volume that has ended is remembered."""

AT_ONCE: Final = 64
"""Repairs of one kind in one round."""


class Watched(NamedTuple):
    """What a conductor keeps of a server: its record while somebody may have to look at it, and where its ports are."""

    in_flight: Instance | None
    placed: Placed | None


class Sweeper:
    """See the module. The pictures are kept by somebody else."""

    def __init__(
        self,
        settings: ConductorSettings,
        store: Store,
        *,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
        sessions: Picture[Session],
        alive: Picture[str],
        instances: Picture[Watched],
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._ids = ids
        self._jitter = jitter
        self._sessions = sessions
        self._alive = alive
        self._instances = instances

    async def run(self) -> None:
        """Sweep for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._for_ever(self._settings.sweep_s, self.look))
            group.create_task(self._for_ever(self._settings.sweep_records_s, self.clear))

    async def _for_ever(self, pause_s: float, sweep: Callable[[], Awaitable[None]]) -> None:
        while True:
            # Not in step with the other conductors, or all but one would always be refused.
            await asyncio.sleep(pause_s * (0.75 + 0.5 * self._jitter()))
            try:
                await sweep()
            except FabricError as away:
                log.warning("sweep.failed", store=self._store.name, why=away.message)

    async def look(self) -> None:
        """One round over sessions and deadlines. Raises Unavailable."""
        # Stale pictures are no danger, as every candidate is read again; but there is no use in asking a store that is away.
        if not (self._sessions.is_fresh and self._alive.revision and self._instances.revision):
            return
        for host in self._silent()[:AT_ONCE]:
            await self._tried(self._mark_unreachable(host), host=host)
        for host, instance_id in self._due()[:AT_ONCE]:
            await self._tried(self._end_overdue(host, instance_id), host=host, instance=instance_id)
        for host, instance_id in self._timed()[:AT_ONCE]:
            await self._tried(self._begin_timed(host, instance_id), host=host, instance=instance_id)

    async def _tried(self, repair: Awaitable[None], **about: str) -> None:
        """One repair. What is broken about it keeps no other from being made. Raises Unavailable."""
        try:
            await repair
        except Unavailable:
            raise
        except FabricError as broken:
            log.error("repair.failed", error=type(broken).__name__, why=broken.message, **about)

    def _silent(self) -> list[str]:
        """Hosts whose session is open and whose sign of life is gone."""
        return [
            held.value.host
            for held in self._sessions.entries.values()
            if held.value.state in fence.LIVE and ALIVE.at(held.value.host) not in self._alive.entries
        ]

    async def _mark_unreachable(self, host: str) -> None:
        draft = Draft(await records.read(self._store, fence.unreachable_reads(host)))
        is_gone = fence.mark_unreachable(draft, host, now_ms=self._clock.now_ms(), op_id=self._ids.new_id())
        if is_gone and await records.commit(self._store, draft):
            log.warning("host.unreachable", host=host)

    def _due(self) -> list[tuple[str, str]]:
        """Placements that somebody must look at."""
        now_ms = self._clock.now_ms()
        return [
            (instance.host, instance.id)
            for instance in self._in_flight()
            if repair.is_due(instance, self._session(instance.host), now_ms=now_ms)
        ]

    def _timed(self) -> list[tuple[str, str]]:
        """Placements whose time for something has come."""
        now_ms, timers_s = self._clock.now_ms(), self._settings.timers_s
        return [
            (instance.host, instance.id)
            for instance in self._in_flight()
            if due(instance, timers_s, now_ms=now_ms) is not None
        ]

    def _in_flight(self) -> Iterator[Instance]:
        found = (held.value.in_flight for held in self._instances.entries.values())
        return (each for each in found if each is not None)

    def _session(self, host: str) -> Session | None:
        held = self._sessions.entries.get(SESSION.at(host))
        return None if held is None else held.value

    async def _end_overdue(self, host: str, instance_id: str) -> None:
        draft = Draft(await records.read(self._store, repair.overdue_reads(host, instance_id)))
        draft.add(await records.read(self._store, draft.missing(repair.further_reads(draft, instance_id))))
        is_ended = repair.end_overdue(
            draft, host, instance_id, now_ms=self._clock.now_ms(), op_id=self._ids.new_id()
        )
        if is_ended and await records.commit(self._store, draft):
            log.warning("instance.overdue", host=host, instance=instance_id)

    async def _begin_timed(self, host: str, instance_id: str) -> None:
        draft = Draft(await records.read(self._store, repair.timed_reads(host, instance_id)))
        draft.add(await records.read(self._store, draft.missing(repair.further_reads(draft, instance_id))))
        action = repair.begin_timed(
            draft,
            host,
            instance_id,
            self._settings.timers_s,
            now_ms=self._clock.now_ms(),
            op_id=self._ids.new_id(),
        )
        if action is not None and await records.commit(self._store, draft):
            log.info("instance.timed", host=host, instance=instance_id, action=action)

    async def clear(self) -> None:
        """Remove answers nobody will ask for again. Ends are the schedulers' to forget: they know what is still to be built.

        Raises Unavailable.
        """
        now_ms = self._clock.now_ms()
        await forget_answers(self._store, ACTED, now_ms=now_ms)
        await self._clear_volumes(now_ms)

    async def _clear_volumes(self, now_ms: int) -> None:
        """Forget volumes that ended a day ago, and whose rows are gone: no attachment of them can still be on its way."""
        snapshot = await self._store.list(VOLUME.under())
        for key, entry in snapshot.entries.items():
            try:
                volume = decode(Volume, entry.value)
            except Bug as broken:
                log.error("volume.undecodable", key=key, why=broken.message)
                continue
            if volume.state is VolumeState.DELETED and now_ms - volume.update_time_ms > REMEMBERED_MS:
                unchanged = {key: entry.mod_revision, VOLUME_END.at(volume.id): 0}
                await self._store.commit(Txn(unchanged=unchanged, delete=(key,)))
