"""Console logs asked of a host: each question waits for its own answer, for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from fabric.deadlines import within
from fabric.errors import Reason, TooMuch, Unavailable
from fabric.model.faults import FAULT_TEXT, FaultCode
from fabric.model.session import ConsoleLog, ConsoleLogWanted

QUESTIONS_LIMIT: Final = 32
"""Questions that may be open to one host at once."""


class Questions:
    """The open questions of one session."""

    def __init__(self, host: str, *, ask: Callable[[ConsoleLogWanted], None], patience_s: float) -> None:
        self._host = host
        self._ask = ask
        self._patience_s = patience_s
        self._open: dict[int, asyncio.Future[ConsoleLog]] = {}
        self._last = 0

    async def console_log(self, instance_id: str, placement_epoch: int, tail_bytes: int) -> bytes:
        """The end of a console's log. Raises Unavailable, TooMuch."""
        if len(self._open) >= QUESTIONS_LIMIT:
            raise TooMuch("too many console logs are being read of this host", retry_after_s=1.0)
        self._last += 1
        question = self._last
        answer: asyncio.Future[ConsoleLog] = asyncio.get_running_loop().create_future()
        self._open[question] = answer
        self._ask(
            ConsoleLogWanted(
                question=question,
                instance_id=instance_id,
                placement_epoch=placement_epoch,
                tail_bytes=tail_bytes,
            )
        )
        try:
            async with within(self._patience_s):
                found = await answer
        except TimeoutError:
            raise self._unavailable(f"host {self._host} did not answer in time") from None
        finally:
            self._open.pop(question, None)
        if found.fault_code:
            raise self._unavailable(FAULT_TEXT[FaultCode(found.fault_code)])
        return found.data[-tail_bytes:]

    def answered(self, log: ConsoleLog) -> None:
        """An answer came. One that nobody waits for is dropped."""
        waiting = self._open.get(log.question)
        if waiting is not None and not waiting.done():
            waiting.set_result(log)

    def fail(self) -> None:
        """Nobody will answer any more."""
        for waiting in self._open.values():
            if not waiting.done():
                waiting.set_exception(self._unavailable(f"host {self._host} has gone away"))

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(why, reason=Reason.HOST_UNAVAILABLE, host=self._host)
