"""Builds that are done with are taken away, many in one transaction: the third write of a create, at a fraction of its cost."""

from __future__ import annotations

import asyncio

import structlog

from fabric.errors import Unavailable
from fabric.scheduler.commits import commit
from fabric.scheduler.core.saga import forget
from fabric.scheduler.ports import Ports
from fabric.store.base import Refused, Store

log = structlog.get_logger()

MOST_KEYS = 64
"""How many keys one transaction takes away: each is compared too, and etcd takes 128 of either."""


class Removal:
    """Deletes keys that are still as they were when they were done with.

    Losing what waits here loses nothing: whoever finds the build again finds the server too, and hands it in again.
    """

    def __init__(self, store: Store, ports: Ports) -> None:
        self._store, self._ports, self._settings = store, ports, ports.settings
        self._waiting: dict[str, int] = {}
        self._wanted = asyncio.Event()

    def remove(self, key: str, revision: int) -> None:
        """Have the key deleted soon, unless it has changed since this revision."""
        self._waiting[key] = revision
        self._wanted.set()

    async def run(self) -> None:
        """Delete what is handed in, for ever."""
        pause_s = self._settings.backoff_s
        while True:
            await self._wanted.wait()
            batch = dict(list(self._waiting.items())[:MOST_KEYS])
            try:
                outcome = await commit(self._store, forget(batch), timeout_s=self._settings.store_timeout_s)
            except Unavailable as away:
                # Ambiguous is no different: deleting what is deleted is refused below, and then forgotten.
                log.info("removal.delayed", builds=len(self._waiting), why=away.message)
                await asyncio.sleep(self._ports.jittered_s(pause_s))
                pause_s = self._ports.longer_s(pause_s)
                continue
            pause_s = self._settings.backoff_s
            for key, revision in batch.items():
                # What somebody else changed is looked at anew by whoever follows the builds.
                is_dealt_with = not isinstance(outcome, Refused) or outcome.current.seen(key) != revision
                if is_dealt_with and self._waiting.get(key) == revision:
                    del self._waiting[key]
            if not self._waiting:
                self._wanted.clear()
