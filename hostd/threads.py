"""Threads for calls that may never return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(Executor):
    """A few threads for calls that block, started at first use.

    Not Python's executor: at exit that waits for every call, and one that waits for another machine may never return.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._started = 0

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a thread call it; a future that is cancelled before is skipped."""
        future: Future[T] = Future()
        self._work.put((future, lambda: function(*args, **kwargs)))
        if self._started < self._most:
            self._started += 1
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return future

    def end(self) -> None:
        """Let every thread end after the call that it is in."""
        for _ in range(self._started):
            self._work.put(None)
        self._started = 0

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, function = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # noqa: BLE001 - it is the waiter's
                    future.set_exception(error)
            # What nobody waits for any more is let go of now, and not with this thread's next call.
            del item, future, function
