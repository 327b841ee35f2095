"""Servers of one cell that want another host, or one at all: decide, charge, claim. What is decided is in `core/moving.py`."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from fabric.errors import QuotaExceeded, Unavailable
from fabric.model.faults import FAULT_TEXT, FaultCode
from fabric.model.host import Host, Session, Use
from fabric.model.image import Image
from fabric.model.instance import Assignment, Instance, Location, MoveWanted
from fabric.model.placement import Decision
from fabric.model.quota import Quota
from fabric.model.states import TaskState
from fabric.model.volume import Volume
from fabric.scheduler.commits import commit, read, seen
from fabric.scheduler.core import moving
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.picture import HostPicture, Seen
from fabric.scheduler.core.place import Wanted, decide
from fabric.scheduler.core.saga import NO_VALID_HOST
from fabric.scheduler.errands import Errands
from fabric.scheduler.ports import Ports
from fabric.store import keys
from fabric.store.base import Committed, Snapshot, Store
from fabric.store.picture import Held

log = structlog.get_logger()

QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
"""The fault of a server whose new flavor its project may not have any more."""


class CellMoves:
    """The moves of one cell. `is_fresh` tells whether what is known of its hosts can be decided on."""

    def __init__(
        self,
        cell: str,
        store: Store,
        global_store: Store,
        hosts: HostPicture,
        ports: Ports,
        *,
        is_fresh: Callable[[], bool],
    ) -> None:
        self._cell, self._store, self._global, self._hosts = cell, store, global_store, hosts
        self._ports, self._settings, self._clock, self._ids = ports, ports.settings, ports.clock, ports.ids
        self._is_fresh = is_fresh
        self._errands: Errands[MoveWanted] = Errands("move", cell, store, keys.MOVE, ports, self._move)

    async def run(self) -> None:
        """Find hosts, for ever."""
        await self._errands.run()

    def wake(self) -> None:
        """Look again: the cell may be reachable now."""
        self._errands.wake()

    async def _move(self, held: Held[MoveWanted]) -> bool:
        instance_id = held.value.instance_id
        waiting = await self._read(instance_id)
        work, now = waiting.work.value, waiting.instance.value
        if work is None:
            return True
        if now is None or not moving.is_wanted(waiting):
            log.info("move.called_off", cell=self._cell, instance=instance_id)
            return await self._commit(moving.called_off(waiting))
        if not (self._is_fresh() and self._hosts.is_reachable(self._cell)):
            return False
        if now.task is TaskState.UNSHELVING and not moving.has_its_disk(now):
            code = FaultCode.IMAGE_UNAVAILABLE
            return await self._refuse(waiting, code, FAULT_TEXT[code])
        return await self._place(waiting, work, now)

    async def _place(self, waiting: moving.Waiting, work: MoveWanted, now: Instance) -> bool:
        ask = moving.wants(work, now, cell=self._cell, volumes=waiting.volumes)
        wanted = Wanted(instance_id=now.id, ask=ask)
        (decision,) = decide(self._hosts, [wanted], self._settings.placement, now_ms=self._clock.now_ms())
        if not decision.host:
            log.warning("move.refused", cell=self._cell, instance=now.id, why=decision.explain())
            return await self._refuse(waiting, NO_VALID_HOST, decision.explain(), decision)
        if now.task is TaskState.RESIZE_PREP:
            try:
                is_prepared = await self._prepare(work, now)
            except QuotaExceeded as exceeded:
                return await self._refuse(waiting, QUOTA_EXCEEDED, exceeded.message)
            if not is_prepared:
                return False
        found = moving.Found(
            host=self._hosts.host(self._cell, decision.host),
            session=self._hosts.session(self._cell, decision.host),
            use=self._hosts.use(self._cell, decision.host),
        )
        claimed = moving.claim(
            waiting, found, decision, now_ms=self._clock.now_ms(), op_id=self._ids.new_id()
        )
        if claimed is None:
            return False
        outcome = await commit(self._store, claimed.change, timeout_s=self._settings.store_timeout_s)
        if not isinstance(outcome, Committed):
            self._learn(decision.host, outcome.current)
            return False
        self._hosts.set_use(self._cell, decision.host, Seen(claimed.use, outcome.revision, outcome.revision))
        await self._ports.failpoints.reach("scheduler.move.claimed")
        log.info("move.claimed", cell=self._cell, instance=now.id, host=decision.host)
        return True

    def _learn(self, name: str, current: Snapshot) -> None:
        """Take in what the refusal said of the host: it is newer than what the decision was made on."""
        self._hosts.set_host(self._cell, name, seen(current, keys.HOST.at(name), Host))
        self._hosts.set_session(self._cell, name, seen(current, keys.SESSION.at(name), Session))
        self._hosts.set_use(self._cell, name, seen(current, keys.USE.at(name), Use))

    async def _prepare(self, work: MoveWanted, now: Instance) -> bool:
        """Do what comes before the claim in the global store; False when somebody else was faster. Raises QuotaExceeded."""
        location_key, image_key = keys.LOCATION.at(work.instance_id), keys.IMAGE.at(work.image_id)
        quota_key = keys.QUOTA.at(work.request.guest.project_id)
        found = await read(
            self._global,
            location_key,
            quota_key,
            image_key,
            timeout_s=self._settings.store_timeout_s,
        )
        change = moving.prepared(
            seen(found, location_key, Location),
            seen(found, quota_key, Quota),
            seen(found, image_key, Image),
            work,
            now,
            now_ms=self._clock.now_ms(),
            op_id=self._ids.new_id(),
        )
        if not change.put:
            return True
        outcome = await commit(self._global, change, timeout_s=self._settings.store_timeout_s)
        if isinstance(outcome, Committed):
            await self._ports.failpoints.reach("scheduler.move.prepared")
        return isinstance(outcome, Committed)

    async def _refuse(
        self, waiting: moving.Waiting, code: str, message: str, decision: Decision | None = None
    ) -> bool:
        change = moving.refused(
            waiting, code, message, decision, now_ms=self._clock.now_ms(), op_id=self._ids.new_id()
        )
        return await self._commit(change)

    async def _commit(self, change: Change) -> bool:
        outcome = await commit(self._store, change, timeout_s=self._settings.store_timeout_s)
        return isinstance(outcome, Committed)

    async def _read(self, instance_id: str) -> moving.Waiting:
        """The work, the server, and the order to its host, or the volumes of one that is nowhere, at one revision."""
        move_key, instance_key = keys.MOVE.at(instance_id), keys.INSTANCE.at(instance_id)
        first = await read(self._store, move_key, instance_key, timeout_s=self._settings.store_timeout_s)
        instance = seen(first, instance_key, Instance)
        host = "" if instance.value is None else instance.value.host
        volumes = () if instance.value is None else moving.volumes_to_read(instance.value)
        if not host and not volumes:
            return moving.Waiting(work=seen(first, move_key, MoveWanted), instance=instance, order=Seen())
        order_keys = (keys.ASSIGNMENT.at(host, instance_id),) if host else ()
        found = await read(
            self._store,
            *(move_key, instance_key, *order_keys, *map(keys.VOLUME.at, volumes)),
            timeout_s=self._settings.store_timeout_s,
        )
        again = seen(found, instance_key, Instance)
        if again.value is None or again.value.host != host:
            raise Unavailable("the server has just changed its host", store=self._store.name)
        return moving.Waiting(
            work=seen(found, move_key, MoveWanted),
            instance=again,
            order=seen(found, order_keys[0], Assignment) if order_keys else Seen(),
            volumes={each: seen(found, keys.VOLUME.at(each), Volume) for each in volumes},
        )
