"""How long a block of code may wait: `asyncio.timeout`, meaning the same on every Python this package runs on.

Before Python 3.11.4 `asyncio.timeout` takes any earlier cancellation of its task for a new one: once a task was cancelled and went on (to
tidy up, or because it caught the cancellation), a time-out in it ends in CancelledError, which unwinds what was only to be given up.
Debian 12 has such a Python. Later ones count the cancellations that were there before, which is done here for all (CPython issue 102780).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager


def within(delay_s: float | None) -> AbstractAsyncContextManager[asyncio.Timeout]:
    """Raise TimeoutError where the block has not ended after `delay_s` seconds; None waits for ever.

    What it yields can be asked whether it has `expired`, which tells its own TimeoutError from one that came out of the block.
    """
    return _counted(asyncio.timeout(delay_s))  # noqa: TID251 - the one place that mends it


def until(when_s: float | None) -> AbstractAsyncContextManager[asyncio.Timeout]:
    """The same, until a time of the running loop's clock; None waits for ever."""
    return _counted(asyncio.timeout_at(when_s))  # noqa: TID251 - the one place that mends it


@contextlib.asynccontextmanager
async def _counted(scope: asyncio.Timeout) -> AsyncIterator[asyncio.Timeout]:
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        async with scope:
            yield scope
    except asyncio.CancelledError as error:
        if scope.expired() and task is not None and task.cancelling() <= before:
            raise TimeoutError from error
        raise
