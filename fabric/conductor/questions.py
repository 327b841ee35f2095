"""What is asked of a host and answered over its session: each question waits for its own answer, for a while, and is stored nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from fabric.deadlines import within
from fabric.errors import FabricError, Reason, TooMuch, Unavailable, WrongState
from fabric.model.faults import FAULT_TEXT, FaultCode
from fabric.model.session import Answer, ConsoleLog, ConsoleLogWanted, Question

A = TypeVar("A", bound=Answer)

QUESTIONS_LIMIT: Final = 32
"""Questions that may be open to one host at once."""

_THE_GUESTS: Final = frozenset(
    {
        FaultCode.GUEST_OFF,
        FaultCode.DOMAIN_MISSING,
        FaultCode.AGENT_MISSING,
        FaultCode.AGENT_FAILED,
        FaultCode.CONSOLE_IN_USE,
    }
)
"""Faults that asking again does not mend: the guest, or whoever asks, has to do something first."""


@dataclass(frozen=True, slots=True)
class _Open:
    kind: type
    waiting: asyncio.Future[Answer]


class Questions:
    """The open questions of one session."""

    def __init__(self, host: str, *, ask: Callable[[Question], None], patience_s: float) -> None:
        self._host = host
        self._ask = ask
        self._patience_s = patience_s
        self._open: dict[int, _Open] = {}
        self._last = 0

    def new(self) -> int:
        """A number for a question."""
        self._last += 1
        return self._last

    async def answer(self, question: Question, kind: type[A], *, patience_s: float | None = None) -> A:
        """Ask, and wait for the answer of that kind. The question's number is from `new`.

        Raises:
            TooMuch: too much is being asked of this host.
            WrongState: the guest is not in a state to.
            Unavailable: the host does not answer, or could not find out.
        """
        if len(self._open) >= QUESTIONS_LIMIT:
            raise TooMuch("too much is being asked of this host", retry_after_s=1.0)
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._open[question.question] = _Open(kind, waiting)
        self._ask(question)
        try:
            async with within(self._patience_s if patience_s is None else patience_s):
                found = await waiting
        except TimeoutError:
            raise self._unavailable(f"host {self._host} did not answer in time") from None
        finally:
            self._open.pop(question.question, None)
        if found.fault_code:
            raise error_for(found.fault_code, self._host)
        assert isinstance(found, kind)
        return found

    async def console_log(self, instance_id: str, placement_epoch: int, tail_bytes: int) -> bytes:
        """The end of a console's log. Raises as `answer`."""
        wanted = ConsoleLogWanted(
            question=self.new(),
            instance_id=instance_id,
            placement_epoch=placement_epoch,
            tail_bytes=tail_bytes,
        )
        return (await self.answer(wanted, ConsoleLog)).data[-tail_bytes:]

    def answered(self, answer: Answer) -> None:
        """An answer came. One that nobody waits for, or to a question of another kind, is dropped."""
        asked = self._open.get(answer.question)
        if asked is not None and isinstance(answer, asked.kind) and not asked.waiting.done():
            asked.waiting.set_result(answer)

    def fail(self) -> None:
        """Nobody will answer any more."""
        for asked in self._open.values():
            if not asked.waiting.done():
                asked.waiting.set_exception(self._unavailable(f"host {self._host} has gone away"))

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(why, reason=Reason.HOST_UNAVAILABLE, host=self._host)


def error_for(fault_code: str, host: str) -> FabricError:
    """What a host's fault means to whoever asked. The guard has seen that it is a known one."""
    code = FaultCode(fault_code)
    if code in _THE_GUESTS:
        return WrongState(FAULT_TEXT[code], fault=code)
    return Unavailable(FAULT_TEXT[code], reason=Reason.HOST_UNAVAILABLE, host=host, fault=code)
