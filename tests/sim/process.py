"""Simulated processes: started from a recipe, killed and paused in the middle of anything, started again as new objects."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from tests.sim.loop import PROCESS, Incarnation, SimLoop

S = TypeVar("S")


class Process(Generic[S]):
    """One program on one machine. `build` makes its objects anew at every start; `main` is what it runs.

    `service` is the running incarnation's object, for callers inside the simulation; None while it is down.
    """

    def __init__(
        self,
        loop: SimLoop,
        name: str,
        build: Callable[[], S],
        main: Callable[[S], Coroutine[Any, Any, None]],
        on_death: Callable[[str], None],
    ) -> None:
        self.name = name
        self.service: S | None = None
        self._loop = loop
        self._build = build
        self._main = main
        self._on_death = on_death
        self._life: Incarnation | None = None
        self._lives = 0
        self.main_task: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return self._life is not None

    @property
    def is_paused(self) -> bool:
        return self._life is not None and self._life.is_paused

    def start(self) -> None:
        """Begin a new life, with nothing remembered but what is on disk or in a store."""
        if self._life is not None:
            return
        self._lives += 1
        self._life = Incarnation(self.name, self._lives)
        context = contextvars.copy_context()
        context.run(PROCESS.set, self._life)
        self.service = context.run(self._build)
        self.main_task = self._loop.create_task(self._main(self.service), context=context)

    def call(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a request inside the process: it dies and pauses with it."""
        assert self._life is not None
        context = contextvars.copy_context()
        context.run(PROCESS.set, self._life)
        return self._loop.create_task(work, context=context)

    def kill(self) -> None:
        """As `kill -9`."""
        if self._life is not None:
            self._life.is_dead = True
            self._life.held.clear()
            self._life = None
            self.service = None
            self._on_death(self.name)

    def pause(self) -> None:
        """As SIGSTOP."""
        if self._life is not None:
            self._life.is_paused = True

    def resume(self) -> None:
        """As SIGCONT."""
        if self._life is not None and self._life.is_paused:
            self._loop.resume(self._life)
