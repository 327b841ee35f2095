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
import heapq
import itertools
import sys
import warnings
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


@contextlib.contextmanager
def graveyard() -> Iterator[None]:
    """Where worlds are run, and disposed of without a word.

    The garbage collector is off meanwhile: closing a dead process's coroutine runs its `finally`, at a moment nobody chose, and the same
    seed would give another trace. What those last words complain about at the end is nobody's concern. What was there before is set
    apart, which keeps its complaints heard, and makes burying a world cost what the world is worth and not what is imported.
    """
    gc.disable()
    gc.freeze()
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
        with warnings.catch_warnings():
            # Of a process killed before its first step nothing was ever awaited.
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
    finally:
        sys.unraisablehook = hook
        gc.unfreeze()
        gc.enable()


class SimLoop(asyncio.BaseEventLoop):
    """Virtual time from 0, in seconds. `random` decides the order of what is ready at the same instant."""

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._now_s = 0.0
        # Ours and not asyncio's heap of handles: pairs of numbers are compared without running any Python.
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self.callbacks = 0
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
            self._timers.clear()
            for task in self._made:
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # the dead owe no result
            self.close()

    def call_soon(  # type: ignore[override]  # typeshed ties the arguments to the callback's
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._is_buried:
            self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]  # typeshed ties the arguments to the callback's
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        if not self._is_buried:
            heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_later(  # type: ignore[override]  # typeshed ties the arguments to the callback's
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when it falls due."""

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There are no other threads."""

    def _run_once(self) -> None:
        """Run what is ready in an order of chance; where nothing is, move the clock to the next timer first."""
        batch = self._due()
        if len(batch) > 1:
            self._random.shuffle(batch)
        self.callbacks += len(batch)
        self._instant_callbacks += len(batch)
        if self._instant_callbacks > INSTANT_CALLBACKS_LIMIT:
            raise Spinning(f"at {self._now_s:.6f} s: {', '.join(map(repr, batch[:5]))}")
        for handle in batch:
            # Asked at the last moment: whoever is killed by one callback runs none of those that were due beside it.
            process = handle._context.get(PROCESS)  # type: ignore[attr-defined]  # the one place that must know
            if handle.cancelled() or (process is not None and process.is_dead):
                continue
            if process is not None and process.is_paused:
                process.held.append(handle)
            else:
                handle._run()

    def _due(self) -> list[asyncio.Handle]:
        """Everything that is ready, with the timers whose time has come."""
        timers, due = self._timers, list(self._ready)
        self._ready.clear()
        while timers and (timers[0][0] <= self._now_s or not due):
            when_s, _, timer = heapq.heappop(timers)
            if timer.cancelled():
                continue
            if when_s > self._now_s:
                self._now_s = when_s
                self._instant_callbacks = 0
            due.append(timer)
        if not due and not self._stopping:
            raise Deadlock("nothing is scheduled any more")
        return due
