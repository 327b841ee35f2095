"""What a watcher is given, written down and judged: nothing lost, nothing twice, in order, whole revisions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from fabric.store.base import Event, Store


class Recorder:
    """Follows a prefix in a task of its own. An async context manager."""

    def __init__(self, store: Store, prefix: str, *, after: int) -> None:
        self._watch = store.watch(prefix, after=after)
        self._task: asyncio.Task[None] | None = None
        self.events: list[Event] = []
        self.revision = after
        self.batches = 0

    async def __aenter__(self) -> Recorder:
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        (ended,) = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(ended, AssertionError):
            raise ended  # found after the last `until`

    async def _follow(self) -> None:
        assert isinstance(self._watch, AsyncGenerator)
        async with contextlib.aclosing(self._watch) as batches:
            async for batch in batches:
                for event in batch.events:
                    # A revision goes on inside a batch, never from one batch to the next.
                    assert event.mod_revision > self.revision, "repeated, out of order, or a split revision"
                assert batch.revision > self.revision
                self.events += batch.events
                self.revision = batch.revision
                self.batches += 1

    async def until(self, revision: int, *, timeout_s: float = 60.0) -> list[Event]:
        """The events so far, once everything up to `revision` has come. Raises what the watch raised."""
        assert self._task is not None
        async with asyncio.timeout(timeout_s):
            while self.revision < revision:
                if self._task.done():
                    self._task.result()
                    raise AssertionError("the watch ended")
                await asyncio.sleep(0.02)
        return self.events
