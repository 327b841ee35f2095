"""Two ends of a console joined: what one says the other hears, until either ends it.

Each direction has one piece of data under way, which is handed over before the next is taken: a slow reader holds up the writer on the
other side, and nothing piles up in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from fabric.clock import Clock
from fabric.deadlines import within
from fabric.model.console import ConsoleEnd
from fabric.rpc.frames import Speech
from fabric.rpc.stream import StreamClosed

FAREWELL_S: Final = 1.0
"""How long either end may take to hear that it is over."""

Watch = Callable[[], Awaitable[ConsoleEnd]]
"""Returns when a console must end, and why."""


async def join(
    here: Speech,
    there: Speech,
    *,
    clock: Clock,
    idle_s: float | None = None,
    watches: tuple[Watch, ...] = (),
) -> ConsoleEnd:
    """Join two ends until one of them ends it, nothing was said for `idle_s`, or a watch says so; tell both, and say why.

    An end that hangs up without a word has no reason: `UNSPECIFIED`. Raises InvalidRequest where one of them says what no console says;
    both are then told that it is over.
    """
    heard_s = clock.boot_s()

    async def carry(source: Speech, sink: Speech) -> ConsoleEnd:
        nonlocal heard_s
        try:
            while isinstance(said := await source.receive(), bytes):
                heard_s = clock.boot_s()
                await sink.send(said)
        except StreamClosed:
            return ConsoleEnd.UNSPECIFIED
        return said

    async def be_patient(limit_s: float) -> ConsoleEnd:
        left_s = limit_s
        while left_s > 0:
            await asyncio.sleep(left_s)
            left_s = heard_s + limit_s - clock.boot_s()
        return ConsoleEnd.IDLE

    down = asyncio.ensure_future(carry(there, here))
    up = asyncio.ensure_future(carry(here, there))
    others = [asyncio.ensure_future(watch()) for watch in watches]
    if idle_s is not None:
        others.append(asyncio.ensure_future(be_patient(idle_s)))
    jobs = {down, up, *others}
    why = ConsoleEnd.UNSPECIFIED
    try:
        done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        # Of several that end at once the one that says most counts; an error of either side is raised.
        why = max(job.result() for job in done)
    finally:
        for job in jobs:
            job.cancel()
        # Before the farewells: one task at a time sends to each end.
        await asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.gather(_part(here, why), _part(there, why))
    return why


async def _part(from_whom: Speech, why: ConsoleEnd) -> None:
    try:
        async with within(FAREWELL_S):
            await from_whom.end(why)
    except TimeoutError:
        pass  # it does not listen: it finds out when its stream is closed
