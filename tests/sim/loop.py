"""A loop whose time jumps to the next timer, whose order is seeded, and that can stop a process in the middle of anything.

The code under test is the code that ships: it knows nothing of this. Whose callback runs is told by a context variable, which every task
inherits from the one that made it, so a whole process, with every task its libraries may have started, is

- killed, by never running its callbacks again: no `finally` runs, as after `kill -9`;
- paused, by holding its callbacks back until it goes on: as after SIGSTOP, with every timer that passed meanwhile due at once.

The idea of running production code on a simulated world is FoundationDB's; the loop is asyncio's own, less its sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from random import Random
from typing import Any, Final, TypeVar

T = TypeVar("T")


class Deadlock(AssertionError):
    """Nothing is scheduled any more: the simulated world has stopped."""


class Spinning(AssertionError):
    """Something runs without ever waiting: at one instant, for ever."""


INSTANT_CALLBACKS_LIMIT = 200_000
"""More callbacks than this at one instant are a loop without a wait in it."""


class Incarnation:
    """One life of one process: what runs in it is found by this."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.is_dead = False
        self.is_paused = False
        self.held: list[asyncio.Handle] = []

    def __repr__(self) -> str:
        return f"{self.name}#{self.number}"


PROCESS: Final[contextvars.ContextVar[Incarnation | None]] = contextvars.ContextVar("process", default=None)
"""Which process the running callback belongs to; None is the world itself, which neither dies nor stops."""


class SimTask(asyncio.Task[Any]):
    """A task whose hash is its number, not its address: sets of tasks (in TaskGroup, in wait) are then walked in one order."""

    def __init__(self, coro: Any, *, loop: SimLoop, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _NoSelector:
    """Stands where sockets would be polled: waiting is moving the clock."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock("nothing is scheduled any more")
        if timeout > 0:
            self._loop.advance(timeout)
        return []


@contextlib.contextmanager
def graveyard() -> Iterator[None]:
    """Where worlds are run, and disposed of without a word.

    The garbage collector is off meanwhile: closing a dead process's coroutine runs its `finally`, at a moment nobody chose, and the same
    seed would give another trace. What those last words complain about at the end is nobody's concern.
    """
    gc.collect()
    gc.disable()
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
        gc.collect()
    finally:
        sys.unraisablehook = hook
        gc.enable()


class SimLoop(asyncio.BaseEventLoop):
    """Virtual time from 0, in seconds. `random` decides the order of what is ready at the same instant."""

    _ready: deque[asyncio.Handle]

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._now_s = 0.0
        self._selector = _NoSelector(self)
        self._clock_resolution = 1e-9
        self.callbacks = 0
        self._instant_s = 0.0
        self._instant_callbacks = 0
        self._is_buried = False
        self._made: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = SimTask(coro, loop=self, number=len(self._made), **options)
        self._made.append(task)
        return task

    def time(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_s += seconds

    def resume(self, process: Incarnation) -> None:
        """Let a paused process go on, with everything that fell due while it stood still."""
        process.is_paused = False
        held, process.held = process.held, []
        self._ready.extend(handle for handle in held if not handle.cancelled())

    def run_world(self, world: Coroutine[Any, Any, T]) -> T:
        """Run the world to its end. Call it inside `graveyard()`, which disposes of what is left."""
        asyncio.set_event_loop(self)
        try:
            return self.run_until_complete(world)
        finally:
            asyncio.set_event_loop(None)
            self._is_buried = True
            self._ready.clear()
            self._scheduled.clear()  # type: ignore[attr-defined]  # asyncio's own, not in its stubs
            for task in self._made:
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # the dead owe no result
            self.close()

    def call_soon(  # type: ignore[override]  # typeshed ties the arguments to the callback's
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self._is_buried:
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon(callback, *args, context=context)

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There are no other threads."""

    def _run_once(self) -> None:
        if len(self._ready) > 1:
            batch = list(self._ready)
            self._random.shuffle(batch)
            self._ready.clear()
            self._ready.extend(batch)
        if self._ready:
            self._sort_out()
        self.callbacks += len(self._ready)
        if self._now_s > self._instant_s:
            self._instant_s, self._instant_callbacks = self._now_s, 0
        self._instant_callbacks += len(self._ready)
        if self._instant_callbacks > INSTANT_CALLBACKS_LIMIT:
            raise Spinning(f"at {self._now_s:.6f} s: {', '.join(map(repr, list(self._ready)[:5]))}")
        super()._run_once()  # type: ignore[misc]  # asyncio's own, not in its stubs

    def _sort_out(self) -> None:
        """Drop what belongs to the dead, hold back what belongs to the paused."""
        runnable = deque[asyncio.Handle]()
        for handle in self._ready:
            process = handle._context.get(PROCESS)  # type: ignore[attr-defined]  # the one place that must know
            if process is None or not (process.is_dead or process.is_paused):
                runnable.append(handle)
            elif not process.is_dead:
                process.held.append(handle)
        self._ready.clear()
        self._ready.extend(runnable)
