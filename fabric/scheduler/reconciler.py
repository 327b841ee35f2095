"""Books between the stores: charges that a cell has let go of are given back in the global store, once; and what only had to be
remembered for a while is forgotten.

Every scheduler does this for every cell it reaches; each write compares what it read, so they do each other's work at most once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from fabric.deadlines import within
from fabric.errors import FabricError, Unavailable
from fabric.model.instance import Build, Location, Over, Refund
from fabric.model.quota import Quota
from fabric.scheduler.commits import commit, read, seen
from fabric.scheduler.core.picture import Seen
from fabric.scheduler.core.saga import Owed, forget, settle_refunds, sweepable
from fabric.scheduler.port_ends import held_ports
from fabric.scheduler.ports import Ports
from fabric.store import codec, keys
from fabric.store.base import Committed, Snapshot, Store
from fabric.store.parsed import parsed
from fabric.store.picture import Change, Held, Picture

log = structlog.get_logger()

MOST_FORGOTTEN = 64
"""Keys in a transaction that forgets, after which no server's are added: one has at most 34, and etcd takes 128."""

MOST_REFUNDS = 30
"""How many refunds share a transaction: each compares and deletes up to three keys, and etcd takes 128."""


class Reconciler:
    """The refunds and the forgetting of one cell. `building` tells whose builds are still there; None while that is not known."""

    def __init__(
        self,
        cell: str,
        store: Store,
        global_store: Store,
        ports: Ports,
        *,
        building: Callable[[], frozenset[str] | None],
    ) -> None:
        self._cell, self._store, self._global = cell, store, global_store
        self._building = building
        self._ports, self._settings, self._clock, self._ids = ports, ports.settings, ports.clock, ports.ids
        self._news = asyncio.Event()
        self._refunds: Picture[Refund] = Picture(
            store,
            keys.REFUND.under(),
            lambda _, data: codec.decode(Refund, data),
            clock=ports.clock,
            on_change=self._on_change,
        )

    async def run(self) -> None:
        """Keep the books, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._refunds.run())
            tasks.create_task(self._keep_refunding())
            tasks.create_task(self._keep_sweeping())

    def _on_change(self, _changes: Sequence[Change[Refund]]) -> None:
        self._news.set()

    # ------------------------------------------------------------------ refunds

    async def _keep_refunding(self) -> None:
        pause_s = self._settings.backoff_s
        while True:
            owed = dict(list(self._refunds.entries.items())[:MOST_REFUNDS])
            if not owed:
                self._news.clear()
                await self._news.wait()
                continue
            if await self._settled(owed):
                pause_s = self._settings.backoff_s
            else:
                # Somebody else is at it, or a store is away.
                await asyncio.sleep(self._ports.jittered_s(pause_s))
                pause_s = self._ports.longer_s(pause_s)

    async def _settled(self, owed: Mapping[str, Held[Refund]]) -> bool:
        """Give these charges back, together; where one of them is broken, each by itself, so that it holds up no other."""
        try:
            return await self._refund(owed)
        except Unavailable as away:
            log.warning("refund.delayed", cell=self._cell, refunds=len(owed), why=away.message)
            return False
        except FabricError as broken:
            if len(owed) == 1:
                log.error("refund.broken", cell=self._cell, keys=list(owed), why=broken.message)
                return False
        return all([await self._settled({key: held}) for key, held in owed.items()])

    async def _refund(self, owed: Mapping[str, Held[Refund]]) -> bool:
        """Give these charges and ports back, then forget the refunds; False when something had changed meanwhile."""
        refunds = [held.value for held in owed.values()]
        instances = [refund.instance_id for refund in refunds]
        location_keys = {instance: keys.LOCATION.at(instance) for instance in instances}
        build_keys = {instance: keys.BUILD.at(self._cell, instance) for instance in instances}
        quota_keys = {refund.project_id: keys.QUOTA.at(refund.project_id) for refund in refunds}
        now = await read(
            self._global,
            *location_keys.values(),
            *build_keys.values(),
            *quota_keys.values(),
            timeout_s=self._settings.store_timeout_s,
        )
        locations = {instance: seen(now, key, Location) for instance, key in location_keys.items()}
        held = await held_ports(
            self._global,
            [each.value for each in locations.values() if each.value is not None],
            timeout_s=self._settings.store_timeout_s,
            now_ms=self._clock.now_ms(),
        )
        settled = settle_refunds(
            self._cell,
            [
                Owed(
                    refund=refund,
                    location=locations[refund.instance_id],
                    build=seen(now, build_keys[refund.instance_id], Build),
                    ports=held.get(refund.instance_id, {}),
                )
                for refund in refunds
            ],
            {project: seen(now, key, Quota) for project, key in quota_keys.items()},
            op_id=self._ids.new_id(),
        )
        if settled.change.delete:
            outcome = await commit(self._global, settled.change, timeout_s=self._settings.store_timeout_s)
            if not isinstance(outcome, Committed):
                return False
            await self._ports.failpoints.reach("scheduler.refund.given")
            log.info("refund.made", cell=self._cell, refunds=len(settled.instances))
        done = {
            key: each.mod_revision
            for key, each in owed.items()
            if each.value.instance_id in settled.instances
        }
        return await self._forget(done) if done else True

    async def _forget(self, revisions: Mapping[str, int]) -> bool:
        outcome = await commit(self._store, forget(revisions), timeout_s=self._settings.store_timeout_s)
        if isinstance(outcome, Committed):
            await self._refunds.at_least(outcome.revision, timeout_s=self._settings.store_timeout_s)
        return isinstance(outcome, Committed)

    # ------------------------------------------------------------------ forgetting

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(self._ports.jittered_s(self._settings.sweep_s))
            try:
                await self._sweep()
            except FabricError as trouble:
                log.warning("sweep.failed", cell=self._cell, why=trouble.message)

    async def _sweep(self) -> None:
        """Forget servers that have been over for long enough, unless it is not known what is still to be built."""
        found = await self._list(keys.OVER.under())
        building = self._building()
        if building is None:
            return
        overs = [Seen(value, found.seen(key), found.seen(key)) for key, value in parsed(Over, found)]
        old = sweepable(overs, building, now_ms=self._clock.now_ms(), settings=self._settings)
        chunk: dict[str, int] = {}
        for over in old:
            if over.value is not None:
                chunk |= await self._traces(over.value.instance_id, over.revision)
            if len(chunk) >= MOST_FORGOTTEN:
                await commit(self._store, forget(chunk), timeout_s=self._settings.store_timeout_s)
                chunk = {}
        if chunk:
            await commit(self._store, forget(chunk), timeout_s=self._settings.store_timeout_s)
        if old:
            log.info("sweep.done", cell=self._cell, servers=len(old))

    async def _list(self, prefix: str) -> Snapshot:
        try:
            async with within(self._settings.sweep_s):
                return await self._store.list(prefix)
        except TimeoutError:
            raise Unavailable(
                f"store {self._store.name} did not list in time", store=self._store.name
            ) from None

    async def _traces(self, instance_id: str, over_revision: int) -> dict[str, int]:
        """What is left of a server that is over, with the revisions: that it is, and what was done to it."""
        events = await self._list(keys.EVENT.under(instance_id))
        return {
            keys.OVER.at(instance_id): over_revision,
            **{key: entry.mod_revision for key, entry in events.entries.items()},
        }
