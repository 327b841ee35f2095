"""What is known of cells that come and go."""

from __future__ import annotations

import asyncio

import pytest

from fabric.api.cells import CellView
from fabric.errors import Unavailable
from fabric.store.base import Snapshot
from fabric.store.keys import INSTANCE
from fabric.store.memory import MemoryStore
from tests.unit.store.virtual import LoopClock, run


class Silent(MemoryStore):
    """Can be away."""

    is_away = False

    async def get(self, *keys: str) -> Snapshot:
        if self.is_away:
            raise Unavailable("away")
        return await super().get(*keys)


def test_a_cell_that_a_list_finds_away_is_nobodys_first_choice_from_then_on() -> None:
    """Its pictures take four seconds to see it. A server created after a list had named the cell as lost was given to it all the same, and
    waited in BUILD for as long as the cell was away.
    """

    async def world() -> list[bool]:
        store = Silent("c1")
        view = CellView("c1", store, clock=LoopClock())
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(view.run())
            await asyncio.sleep(2.5)
            said = [view.is_answering]

            store.is_away = True
            with pytest.raises(Unavailable):
                await view.get(INSTANCE.under())
            said.append(view.is_answering)

            # Nobody asks it again, but what keeps its pictures.
            store.is_away = False
            await asyncio.sleep(2.5)
            said.append(view.is_answering)
            running.cancel()
        return said

    assert run(world()) == [True, False, True]
