"""Proves sessions against the store: one read for all that need it, so that beats of a thousand hosts cost a few reads a second (R5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.core.draft import Draft, ref
from fabric.conductor.core.fence import holds
from fabric.errors import FabricError, Unavailable
from fabric.store.base import Store
from fabric.store.keys import SESSION

log = structlog.get_logger()

TOGETHER: Final = 100
"""Sessions proved by one read; the store takes 128 keys at once."""


class Holder(Protocol):
    """Somebody who was granted a session and must know that they still have it."""

    @property
    def host(self) -> str:
        """Whose session."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch granted."""
        ...

    def proved(self, sent_boot_s: float) -> None:
        """The session was held when this read was sent."""
        ...

    def lost(self, why: str) -> None:
        """The session is somebody else's, or nobody's."""
        ...


class Prover:
    """See the module."""

    def __init__(self, store: Store, *, clock: Clock, jitter: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._jitter = jitter
        self._wanted: dict[Holder, None] = {}
        self._woken = asyncio.Event()

    def want(self, holder: Holder) -> None:
        """Prove this session soon."""
        self._wanted[holder] = None
        self._woken.set()

    def forget(self, holder: Holder) -> None:
        """No proof is wanted any more."""
        self._wanted.pop(holder, None)

    async def run(self) -> None:
        """Prove for ever."""
        while True:
            await self._woken.wait()
            holders = list(self._wanted)[:TOGETHER]
            if not holders:
                self._woken.clear()
                continue
            for holder in holders:
                del self._wanted[holder]
            try:
                await self._prove(holders)
            except Unavailable as away:
                # No proof, no acknowledgement: the permits of these hosts age. Their next beats ask again.
                log.warning("proof.failed", store=self._store.name, sessions=len(holders), why=away.message)
                await asyncio.sleep(0.1 + 0.4 * self._jitter())

    async def _prove(self, holders: list[Holder]) -> None:
        """All by one read; where a record among theirs is broken, each by a read of its own: it must cost no other its permit."""
        try:
            await self._prove_together(holders)
        except Unavailable:
            raise
        except FabricError as broken:
            if len(holders) == 1:
                log.error("proof.broken", host=holders[0].host, why=broken.message)
                return
            for holder in holders:
                await self._prove([holder])

    async def _prove_together(self, holders: list[Holder]) -> None:
        sent_boot_s = self._clock.boot_s()
        draft = Draft(await records.read(self._store, [ref(SESSION, holder.host) for holder in holders]))
        for holder in holders:
            if holds(draft.get(SESSION, holder.host), holder.epoch):
                holder.proved(sent_boot_s)
            else:
                holder.lost("its session has gone to another conductor, or was ended")
