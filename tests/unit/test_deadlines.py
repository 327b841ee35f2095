"""A time-out is a time-out, whatever happened to the task before it."""

from __future__ import annotations

import asyncio

import pytest

from fabric.deadlines import until, within


async def test_a_block_that_ends_in_time_is_left_alone() -> None:
    async with within(5.0) as scope:
        await asyncio.sleep(0)
    assert not scope.expired()


async def test_a_block_that_takes_too_long_ends_in_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with within(0.001):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):
        async with until(asyncio.get_running_loop().time() + 0.001):
            await asyncio.Event().wait()


async def test_none_waits_for_ever() -> None:
    async with within(None) as scope:
        await asyncio.sleep(0.001)
    assert scope.when() is None


async def test_a_task_that_was_cancelled_and_went_on_still_gets_its_timeouts() -> None:
    """On Debian's Python 3.11.2 the wait for a last answer, in a session that was being ended, ended in CancelledError.

    The session's tidying was cut short, and its host waited for ever for what was due to it: 26 of 500 schedules never came to rest.
    """
    ended: list[str] = []

    async def tidy() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                async with within(0.001):
                    await asyncio.Event().wait()
            except TimeoutError:
                ended.append("timed out")
            ended.append("tidied")

    task = asyncio.create_task(tidy())
    await asyncio.sleep(0)
    task.cancel()
    await task

    assert ended == ["timed out", "tidied"]


async def test_a_cancellation_while_the_time_runs_out_is_not_swallowed() -> None:
    entered = asyncio.Event()

    async def wait() -> None:
        async with within(0.001):
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                asyncio.current_task().cancel()  # type: ignore[union-attr]  # it runs in a task

    task = asyncio.create_task(wait())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert entered.is_set()


async def test_an_error_of_the_block_is_its_own() -> None:
    with pytest.raises(TimeoutError, match="of a socket"):
        async with within(5.0):
            raise TimeoutError("of a socket")
