"""Turns what hosts say of their instances into transactions, several to one where several are waiting.

One transaction is under way at a time. What comes meanwhile waits, and goes together into the next: alone, a message is written at once;
under load, a transaction carries two dozen. A message that is not written is not acknowledged, and its host repeats it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import structlog

from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.core import flow
from fabric.conductor.core.draft import Draft, Ref
from fabric.conductor.core.flow import Outcome
from fabric.errors import Conflict, FabricError, Unavailable
from fabric.ids import Ids
from fabric.model.session import Released, Status
from fabric.store.base import Store

log = structlog.get_logger()

Word = Status | Released
"""What changes records."""

BATCH_LIMIT: Final = 24
"""Words in one transaction; with at most five operations for all but the rarest, below the store's limit of 128."""

FULL: Final = 96
"""A draft this large takes no more words: the largest, a move, adds less than 24."""

WAITING_LIMIT: Final = 512
"""Instances of one host whose word may wait; what is above is dropped, and repeated by the host."""

RETRIES: Final = 5


class Speaker(Protocol):
    """Whose word it is: one session of one host."""

    @property
    def host(self) -> str:
        """The host's name, from its certificate."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch its session was granted."""
        ...

    def answer(self, word: Word, outcome: Outcome) -> None:
        """Tell the host. Must not wait."""
        ...


_Said = tuple[Speaker, Word]


class Writer:
    """See the module."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
        timers_s: Mapping[str, float] = flow.NO_TIMERS,
    ) -> None:
        self._timers_s = timers_s
        self._store = store
        self._clock = clock
        self._ids = ids
        self._jitter = jitter
        # By speaker, in the order they take turns; then by instance, where a later word replaces an earlier one.
        self._waiting: dict[Speaker, dict[str, Word]] = {}
        self._woken = asyncio.Event()

    def submit(self, speaker: Speaker, word: Word) -> bool:
        """Queue a word. False: too many wait already, and it was dropped."""
        words = self._waiting.setdefault(speaker, {})
        key = f"{type(word).__name__} {word.instance_id}"
        if key not in words and len(words) >= WAITING_LIMIT:
            return False
        words[key] = word
        self._woken.set()
        return True

    def forget(self, speaker: Speaker) -> None:
        """Drop what waits of a session that is over: its epoch would be refused anyway."""
        self._waiting.pop(speaker, None)

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._woken.wait()
            batch = self._take()
            if not batch:
                self._woken.clear()
                continue
            try:
                await self._write(batch)
            except Unavailable as away:
                log.warning("writer.store_away", store=self._store.name, waiting=len(batch), why=away.message)
                self._put_back(batch)
                await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(0.1 + 0.4 * self._jitter())

    def _take(self) -> list[_Said]:
        """The next batch: one word of each speaker in turn, so that a busy host does not hold up the others."""
        batch: list[_Said] = []
        while self._waiting and len(batch) < BATCH_LIMIT:
            speaker, words = next(iter(self._waiting.items()))
            del self._waiting[speaker]
            batch.append((speaker, words.pop(next(iter(words)))))
            if words:
                self._waiting[speaker] = words
        return batch

    def _put_back(self, batch: Sequence[_Said]) -> None:
        for speaker, word in batch:
            words = self._waiting.setdefault(speaker, {})
            words.setdefault(f"{type(word).__name__} {word.instance_id}", word)
        self._woken.set()

    async def _write(self, batch: Sequence[_Said]) -> None:
        """Write a batch together; where somebody else was faster, or a record is broken, each word by itself."""
        try:
            if await self._together(batch):
                return
        except Unavailable:
            raise
        except FabricError as broken:
            if len(batch) == 1:
                self._drop(batch[0], broken)
                return
        for place, said in enumerate(batch):
            try:
                await self._alone(said)
            except Unavailable as away:
                self._put_back(batch[place:])
                log.info(
                    "writer.store_away", store=self._store.name, waiting=len(batch) - place, why=away.message
                )
                await self._pause()
                return
            except FabricError as broken:
                self._drop(said, broken)

    async def _alone(self, said: _Said) -> None:
        for _ in range(RETRIES):
            if await self._together([said]):
                return
            await asyncio.sleep(0.02 * self._jitter())
        raise Conflict("its records kept changing")

    def _drop(self, said: _Said, broken: FabricError) -> None:
        speaker, word = said
        log.error(
            "writer.dropped",
            host=speaker.host,
            instance=word.instance_id,
            error=type(broken).__name__,
            why=broken.message,
        )

    async def _together(self, batch: Sequence[_Said]) -> bool:
        """Decide and commit once. False: something had moved in between."""
        draft = Draft(await records.read(self._store, [each for said in batch for each in _reads(said)]))
        more = [each for said in batch for each in _further_reads(draft, said)]
        draft.add(await records.read(self._store, draft.missing(more)))
        now_ms, op_id = self._clock.now_ms(), self._ids.new_id()
        outcomes: list[tuple[_Said, Outcome]] = []
        for place, said in enumerate(batch):
            if draft.size > FULL:
                self._put_back(batch[place:])
                break
            outcomes.append((said, self._decide(draft, said, now_ms=now_ms, op_id=op_id)))
        if not await records.commit(self._store, draft):
            return False
        for (speaker, word), outcome in outcomes:
            speaker.answer(word, outcome)
        return True

    def _decide(self, draft: Draft, said: _Said, *, now_ms: int, op_id: str) -> Outcome:
        speaker, word = said
        if isinstance(word, Released):
            return flow.take_released(draft, speaker.host, speaker.epoch, word, now_ms=now_ms, op_id=op_id)
        return flow.take_status(
            draft, speaker.host, speaker.epoch, word, now_ms=now_ms, op_id=op_id, timers_s=self._timers_s
        )


def _reads(said: _Said) -> tuple[Ref, ...]:
    speaker, word = said
    if isinstance(word, Released):
        return flow.release_reads(speaker.host, word)
    return flow.status_reads(speaker.host, word)


def _further_reads(draft: Draft, said: _Said) -> tuple[Ref, ...]:
    speaker, word = said
    if isinstance(word, Released):
        return flow.freed_reads(draft, speaker.host, word)
    return flow.move_reads(draft, word)
