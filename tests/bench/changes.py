"""Hears of every change of an instance as its cell's store does: a measuring client that polls would take from what it measures."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from typing import Final

from fabric.server.dev import bootstrap, topology
from fabric.store import keys
from tests.e2e.running import Running

PATIENCE_S: Final = 60.0


class Changes:
    """Tells when the cell's store has something new of an instance."""

    def __init__(self, fabric: Running) -> None:
        self._topology = topology.load(fabric.state / "topology.json")
        self._heard: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._listening = self._loop.create_task(self._listen())
        self._thread = threading.Thread(target=self._run, name="changes")

    def __enter__(self) -> Changes:
        self._thread.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._listening.cancel)
        self._thread.join()
        self._loop.close()

    def wait(self) -> None:
        """Until there is one that was not told yet. Raises queue.Empty when nothing comes for a minute."""
        self._heard.get(timeout=PATIENCE_S)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._listening)

    async def _listen(self) -> None:
        (cell,) = self._topology.cells
        async with bootstrap.opened(self._topology) as stores:
            store = stores[cell.name]
            revision = (await store.get(keys.INSTANCE.under())).revision
            self._heard.put(None)
            async for batch in store.watch(keys.INSTANCE.under(), after=revision):
                if batch.events:
                    self._heard.put(None)
