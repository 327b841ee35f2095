"""What a request was answered before, wherever its answer is remembered: the global store has some, and each cell its own.

A request that names its thing must be looked up here before the name is: by the time that it is sent again, another thing may have the
name, which the request never was about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from fabric.api.cells import Cells
from fabric.api.core.intent import replayed
from fabric.api.records import found
from fabric.deadlines import within
from fabric.errors import Unavailable
from fabric.model.instance import Answered
from fabric.store.base import Snapshot, Store
from fabric.store.keys import ACTED, ANSWERED, Key

ASK_S: Final = 0.7
"""How long one store may take: less than the second within which lists answer (I13)."""


class Answers:
    """Asks every store at once."""

    def __init__(self, global_store: Store, cells: Cells) -> None:
        self._global = global_store
        self._cells = cells

    async def before(self, answered: Answered) -> Answered | None:
        """The answer that this very request was given before: late retries are answered as the first.

        A store that does not answer is left out: what is in it cannot be acted on anyhow. Raises Conflict for another request's id.
        """
        who = (answered.project_id, answered.request_id)

        async def ask(reading: Awaitable[Snapshot], kind: Key[Answered]) -> Answered | None:
            try:
                async with within(ASK_S):
                    return found(await reading, kind, *who)
            except (TimeoutError, Unavailable):
                return None

        asks = [ask(self._global.get(ANSWERED.at(*who)), ANSWERED)]
        asks += [ask(view.get(ACTED.at(*who)), ACTED) for view in self._cells.by_name.values()]
        told = [each for each in await asyncio.gather(*asks) if each is not None]
        return replayed(told[0], answered) if told else None
