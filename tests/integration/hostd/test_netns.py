"""Work in a network namespace: in a thread of its own, to its end, and never in the way of the daemon's other work."""

from __future__ import annotations

import asyncio
import threading

import pytest

from hostd.network.netns import Namespace


async def test_work_that_is_given_up_holds_up_nobody_and_is_over_when_that_is_said() -> None:
    """A plug that was given up in the middle of it stopped the whole daemon, beats included, until the kernel had answered."""
    began, may_end = threading.Event(), threading.Event()
    ends: list[bool] = []

    def work() -> None:
        began.set()
        ends.append(may_end.wait(5))

    working = asyncio.create_task(Namespace().inside(work))
    await asyncio.to_thread(began.wait)
    working.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert ends == [True]


async def test_what_work_raises_is_raised_and_no_thread_is_left() -> None:
    def work() -> None:
        raise OSError("no such device")

    before = set(threading.enumerate())
    with pytest.raises(OSError, match="no such device"):
        await Namespace().inside(work)

    assert set(threading.enumerate()) == before
