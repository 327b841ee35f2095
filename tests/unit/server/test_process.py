"""How a server runs and ends: its ports around its lives, and nothing of it breaks unheard."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from fabric.errors import Bug, WrongState
from fabric.server.process import until_stopped


class Said:
    """What happened, in order."""

    def __init__(self) -> None:
        self.words: list[str] = []

    async def life(self, name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.words.append(f"{name} over")

    @asynccontextmanager
    async def port(self) -> AsyncIterator[None]:
        self.words.append("open")
        try:
            yield
        finally:
            # A call under way, which the port waits for.
            await asyncio.sleep(0)
            self.words.append("closed")


async def test_a_signal_closes_the_port_before_anything_behind_it_ends() -> None:
    said = Said()

    async def ask() -> None:
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGTERM)

    await until_stopped(said.life("service"), ask(), around=said.port())

    assert said.words == ["open", "closed", "service over"]


async def test_a_life_that_breaks_ends_the_process_with_its_own_error() -> None:
    """What ran beside the service broke unheard: an API server whose audit log could not be forced to disk any more said nothing of it."""
    said = Said()

    async def breaks() -> None:
        await asyncio.sleep(0)
        raise WrongState("of another schema")

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(breaks())

    with pytest.raises(WrongState, match="of another schema"):
        await until_stopped(said.life("service"), group(), around=said.port())

    assert said.words[0] == "open"
    assert sorted(said.words[1:]) == ["closed", "service over"]


async def test_a_life_that_has_nothing_more_to_do_ends_nothing() -> None:
    said = Said()

    async def shows_health() -> None:
        return

    async def ask() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        said.words.append("asked")
        signal.raise_signal(signal.SIGINT)

    await until_stopped(shows_health(), ask(), around=said.port())

    assert said.words == ["open", "asked", "closed"]


async def test_a_port_that_cannot_be_had_ends_what_has_begun() -> None:
    said = Said()

    class Taken(AbstractAsyncContextManager[None]):
        async def __aenter__(self) -> None:
            await asyncio.sleep(0)
            raise Bug("cannot listen")

        async def __aexit__(self, *_: object) -> None:
            said.words.append("closed")

    with pytest.raises(Bug, match="cannot listen"):
        await until_stopped(said.life("service"), around=Taken())

    assert said.words == ["service over"]
