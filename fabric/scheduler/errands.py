"""Work items under a prefix of a cell's store: each is done by itself, and again until its key is gone.

Whoever writes an item has done its own part in the same transaction; what is left is to be done once, by any scheduler, whatever dies in
between. So doing one must be safe to repeat, and its last step takes the item away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from fabric.deadlines import within
from fabric.errors import FabricError
from fabric.scheduler.ports import Ports
from fabric.store import codec
from fabric.store.base import Store
from fabric.store.keys import Key
from fabric.store.picture import Change, Held, Picture

log = structlog.get_logger()

V = TypeVar("V")

Do = Callable[[Held[V]], Awaitable[bool]]
"""Do one item. True: its key is gone, or will be when what was just written is seen. May raise any FabricError."""


@dataclass(slots=True)
class _Wait:
    not_before_s: float
    pause_s: float


class Errands(Generic[V]):
    """The items of one kind in one cell."""

    def __init__(self, what: str, cell: str, store: Store, row: Key[V], ports: Ports, do: Do[V]) -> None:
        self._what, self._cell, self._ports, self._do = what, cell, ports, do
        self._news = asyncio.Event()
        self._waits: dict[str, _Wait] = {}
        self._items: Picture[V] = Picture(
            store,
            row.under(),
            lambda _, data: codec.decode(row.record, data),
            clock=ports.clock,
            on_change=self._on_change,
        )

    async def run(self) -> None:
        """Do what there is, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._items.run())
            tasks.create_task(self._keep_doing())

    def wake(self) -> None:
        """Look at everything again now: what stood in the way may be gone."""
        self._waits.clear()
        self._news.set()

    def _on_change(self, changes: Sequence[Change[V]]) -> None:
        for change in changes:
            self._waits.pop(change.key, None)
        self._news.set()

    async def _keep_doing(self) -> None:
        while True:
            now_s = self._ports.clock.boot_s()
            due = [
                key
                for key in self._items.entries
                if key not in self._waits or self._waits[key].not_before_s <= now_s
            ]
            if not due:
                await self._rest(now_s)
                continue
            for key in due:
                held = self._items.entries.get(key)
                if held is not None:
                    await self._try(key, held)

    async def _try(self, key: str, held: Held[V]) -> None:
        """Do one; what is not done waits, longer each time, and so does what is done until its key is seen to be gone."""
        is_done = False
        try:
            is_done = await self._do(held)
        except FabricError as trouble:
            log.warning("errand.delayed", what=self._what, cell=self._cell, key=key, why=trouble.message)
        before = self._waits.get(key)
        pause_s = self._ports.settings.backoff_s if before is None else self._ports.longer_s(before.pause_s)
        if is_done:
            pause_s = self._ports.settings.longest_backoff_s
        if self._items.entries.get(key) == held:
            now_s = self._ports.clock.boot_s()
            self._waits[key] = _Wait(now_s + self._ports.jittered_s(pause_s), pause_s)

    async def _rest(self, now_s: float) -> None:
        self._news.clear()
        waits = [wait.not_before_s for key, wait in self._waits.items() if key in self._items.entries]
        try:
            async with within(max(0.0, min(waits) - now_s) if waits else None):
                await self._news.wait()
        except TimeoutError:
            return
