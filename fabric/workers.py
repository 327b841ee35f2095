"""Work that would hold up the event loop, as a port: hashing a password, forcing a file to disk.

Shells hand such work over as a plain function. In a process it runs on a small pool of threads; in a simulation and in unit tests at
once, on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from fabric.errors import TooMuch

T = TypeVar("T")


class Workers(Protocol):
    """Runs functions that block."""

    async def run(self, work: Callable[[], T]) -> T:
        """The function's result, or its exception. Raises TooMuch when too much is waiting already."""
        ...


class Inline:
    """Runs everything at once, where it is."""

    async def run(self, work: Callable[[], T]) -> T:
        return work()


class Threads:
    """A bounded pool of threads with a bounded queue: what does not fit is refused, so that a flood waits nowhere."""

    def __init__(self, name: str, *, threads: int, queue: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._room = threads + queue
        self._name = name

    async def run(self, work: Callable[[], T]) -> T:
        if self._room <= 0:
            raise TooMuch("too much of this is being asked at once", retry_after_s=1.0, pool=self._name)
        self._room -= 1
        try:
            # Shielded: a caller that hangs up must not make us forget that a thread is still busy.
            future = asyncio.get_running_loop().run_in_executor(self._pool, work)
            future.add_done_callback(self._leave)
        except BaseException:
            self._room += 1
            raise
        return await asyncio.shield(future)

    def _leave(self, future: asyncio.Future[T]) -> None:
        self._room += 1
        if not future.cancelled():
            future.exception()  # seen, even where nobody waits for it any more

    def close(self) -> None:
        """End the threads when they are done with what they have."""
        self._pool.shutdown(wait=True, cancel_futures=True)
