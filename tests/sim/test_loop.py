"""The simulation's own ground: time, death and pause of processes that know nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random

import pytest

from tests.sim.loop import Deadlock, SimLoop, graveyard
from tests.sim.process import Process


def test_hours_pass_in_no_time() -> None:
    loop = SimLoop(Random(1))

    loop.run_world(asyncio.sleep(36_000))

    assert loop.time() == pytest.approx(36_000)


def test_a_world_that_waits_for_nothing_is_found_out() -> None:
    loop = SimLoop(Random(1))

    with pytest.raises(Deadlock):
        loop.run_world(asyncio.Event().wait())


@pytest.fixture(autouse=True)
def _graveyard() -> Iterator[None]:
    with graveyard():
        yield


async def _tick(seen: list[float], loop: SimLoop) -> None:
    async def child() -> None:
        while True:
            await asyncio.sleep(1)
            seen.append(loop.time())

    async with asyncio.TaskGroup() as group:
        group.create_task(child())


def test_a_killed_process_runs_no_finally() -> None:
    loop = SimLoop(Random(1))
    cleaned: list[str] = []

    async def main(_: None) -> None:
        try:
            await asyncio.sleep(5)
        finally:
            cleaned.append("ran")

    process = Process[None](loop, "p", lambda: None, main, lambda _: None)

    async def world() -> None:
        process.start()
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(20)

    loop.run_world(world())

    assert cleaned == []


def test_a_paused_process_stands_still_with_its_children_and_goes_on() -> None:
    loop = SimLoop(Random(1))
    seen: list[float] = []
    process = Process[None](loop, "p", lambda: None, lambda _: _tick(seen, loop), lambda _: None)

    async def world() -> None:
        process.start()
        await asyncio.sleep(2.5)
        process.pause()
        await asyncio.sleep(10)
        process.resume()
        await asyncio.sleep(1.5)

    loop.run_world(world())

    assert seen == pytest.approx([1, 2, 12.5, 13.5])
