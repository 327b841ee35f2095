"""What a move leaves to be done in the global store: an image that nobody needs any more, a charge that is to follow the server."""

from __future__ import annotations

import asyncio

import structlog

from fabric.model.image import Image
from fabric.model.instance import Discard, Instance, Location, Recharge
from fabric.model.quota import Quota
from fabric.scheduler.commits import commit, read, seen
from fabric.scheduler.core import moving
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.saga import forget
from fabric.scheduler.errands import Errands
from fabric.scheduler.ports import Ports
from fabric.store import keys
from fabric.store.base import Committed, Snapshot, Store
from fabric.store.picture import Held

log = structlog.get_logger()


class Aftermath:
    """The discards and the recharges of one cell."""

    def __init__(self, cell: str, store: Store, global_store: Store, ports: Ports) -> None:
        self._cell, self._store, self._global = cell, store, global_store
        self._ports, self._settings, self._ids = ports, ports.settings, ports.ids
        self._discards: Errands[Discard] = Errands("discard", cell, store, keys.DISCARD, ports, self._discard)
        self._recharges: Errands[Recharge] = Errands(
            "recharge", cell, store, keys.RECHARGE, ports, self._recharge
        )

    async def run(self) -> None:
        """Tidy up, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._discards.run())
            tasks.create_task(self._recharges.run())

    async def _discard(self, held: Held[Discard]) -> bool:
        """Take the image's record away. Its bytes go when they are swept, unless another image has the same."""
        image_id = held.value.image_id
        image_key = keys.IMAGE.at(image_id)
        image = seen(await self._read(self._global, image_key), image_key, Image)
        if image.value is not None:
            name_key = keys.IMAGE_NAME.at(image.value.project_id, image.value.name)
            named = seen(await self._read(self._global, name_key), name_key, str)
            is_its_own = named.value == image_id
            change = Change(
                unchanged={image_key: image.revision, name_key: named.revision},
                delete=(image_key, name_key) if is_its_own else (image_key,),
            )
            if not await self._commit(self._global, change):
                return False
            await self._ports.failpoints.reach("scheduler.image.discarded")
            log.info("image.discarded", cell=self._cell, image=image_id, instance=held.value.instance_id)
        return await self._commit(self._store, forget({keys.DISCARD.at(image_id): held.mod_revision}))

    async def _recharge(self, held: Held[Recharge]) -> bool:
        """Make the charge what the server costs, once no move of it is under way: the next one's end asks again."""
        instance_id = held.value.instance_id
        location_key, instance_key = keys.LOCATION.at(instance_id), keys.INSTANCE.at(instance_id)
        quota_key = keys.QUOTA.at(held.value.project_id)
        books = await self._read(self._global, location_key, quota_key)
        # After the location: a move that began in between has charged it, and what is decided here is refused.
        record = await self._read(self._store, instance_key)
        change = moving.recharged(
            seen(books, location_key, Location),
            seen(books, quota_key, Quota),
            seen(record, instance_key, Instance).value,
            op_id=self._ids.new_id(),
        )
        if change is not None:
            if not await self._commit(self._global, change):
                return False
            await self._ports.failpoints.reach("scheduler.charge.followed")
            log.info("charge.followed", cell=self._cell, instance=instance_id)
        return await self._commit(self._store, forget({keys.RECHARGE.at(instance_id): held.mod_revision}))

    async def _read(self, store: Store, *names: str) -> Snapshot:
        return await read(store, *names, timeout_s=self._settings.store_timeout_s)

    async def _commit(self, store: Store, change: Change) -> bool:
        outcome = await commit(store, change, timeout_s=self._settings.store_timeout_s)
        return isinstance(outcome, Committed)
