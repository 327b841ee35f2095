"""The simulated network: every message takes time, may be cut off, and may be answered into the void.

Two things travel: calls to a store, and the frames of host sessions. What a cut does is what TCP does: nothing comes through, nobody is
told, until a timeout or a keepalive gives up.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import TypeVar

from fabric.errors import Ambiguous, Unavailable
from fabric.rpc.stream import StreamClosed
from fabric.store.base import Batch, Committed, Lease, Refused, Snapshot, Txn
from fabric.store.memory import MemoryStore

T = TypeVar("T")

CALL_TIMEOUT_S = 1.5
"""How long a store client waits for an answer."""

KEEPALIVE_S = 10.0
"""How long a stream may be silent in the dark before its ends give it up."""

IN_FLIGHT = 64
"""How many frames may be on their way before a sender waits."""


class Network:
    """Who can hear whom, and how long it takes."""

    def __init__(self, random: Random, *, lose_answers: float = 0.0) -> None:
        self.random = random
        self.lose_answers = lose_answers
        self.double_frames = 0.0
        self.numbers = itertools.count()
        self.on_frame: Callable[[SimStream, bytes, bool], None] = lambda _stream, _frame, _has_come: None
        """Told of every frame by the end it belongs to: as it is sent, and as it has come."""
        self.world = contextvars.copy_context()
        """Where the far side runs: a server goes on though its caller died."""
        self._cuts: dict[frozenset[str], int] = {}

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between the two until mended as often as cut."""
        pair = frozenset((one, other))
        self._cuts[pair] = self._cuts.get(pair, 0) + 1

    def mend(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        left = self._cuts.get(pair, 0) - 1
        if left > 0:
            self._cuts[pair] = left
        else:
            self._cuts.pop(pair, None)

    def mend_all(self) -> None:
        """The network is whole again, and loses nothing."""
        self._cuts.clear()
        self.lose_answers = 0.0
        self.double_frames = 0.0

    def is_cut(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self._cuts

    def latency_s(self) -> float:
        return self.random.uniform(0.0003, 0.008)


class StoreServer:
    """An etcd cluster, as seen from the network: the true state, and whether it answers."""

    def __init__(self, memory: MemoryStore) -> None:
        self.memory = memory
        self.has_quorum = True
        self._compacted = 1

    def compact(self) -> None:
        """Forget all history but the newest revision, and break the watches, as a member's restart would."""
        if self.memory.revision > self._compacted:
            self._compacted = self.memory.revision
            self.memory.compact(self._compacted)
        self.memory.break_watches()

    @property
    def name(self) -> str:
        return self.memory.name


class SimStore:
    """One process's client of a store. Keeps the port's laws, under every fault of the network between."""

    def __init__(
        self, network: Network, process: str, server: StoreServer, after_commit: Callable[[str], None]
    ) -> None:
        self._after_commit = after_commit
        self._network = network
        self._process = process
        self._server = server

    @property
    def name(self) -> str:
        return self._server.name

    async def get(self, *keys: str) -> Snapshot:
        return await self._call(lambda: self._server.memory.get(*keys), writes=False)

    async def list(self, prefix: str) -> Snapshot:
        return await self._call(lambda: self._server.memory.list(prefix), writes=False)

    async def commit(self, txn: Txn) -> Committed | Refused:
        async def apply() -> Committed | Refused:
            outcome = await self._server.memory.commit(txn)
            self._after_commit(self._process)
            return outcome

        return await self._call(apply, writes=True)

    async def grant(self, ttl_s: float) -> Lease:
        return await self._call(lambda: self._server.memory.grant(ttl_s), writes=False)

    async def revoke(self, lease: Lease) -> None:
        await self._call(lambda: self._server.memory.revoke(lease), writes=False)

    async def keep_alive(self, lease: Lease) -> None:
        loop = asyncio.get_running_loop()
        expires_s = loop.time() + lease.ttl_s

        async def beat() -> bool:
            return self._server.memory.renew(lease)

        while True:
            sent_s = loop.time()
            try:
                if not await self._call(beat, writes=False):
                    return
                expires_s = sent_s + lease.ttl_s
            except Unavailable:
                pass
            if loop.time() >= expires_s:
                return
            await asyncio.sleep(min(lease.ttl_s / 3, expires_s - loop.time()))

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        """Resumes by itself, as etcd's client does: a cut only delays, unless history is compacted meanwhile."""
        revision = after
        while True:
            while not self._reaches():
                await asyncio.sleep(0.2)
            feed = self._server.memory.watch(prefix, after=revision)
            try:
                async for batch in feed:
                    await asyncio.sleep(self._network.latency_s())
                    if not self._reaches():
                        break
                    revision = batch.revision
                    yield batch
            finally:
                await feed.aclose()  # type: ignore[attr-defined]  # it is an async generator

    async def close(self) -> None:
        """Nothing is held."""

    def _reaches(self) -> bool:
        return self._server.has_quorum and not self._network.is_cut(self._process, self._server.name)

    async def _call(self, work: Callable[[], Awaitable[T]], *, writes: bool) -> T:
        """Send, run on the server, come back: each leg may fail, and a write whose answer is lost is ambiguous."""
        loop = asyncio.get_running_loop()
        network = self._network
        answer: asyncio.Future[T] = loop.create_future()

        def serve() -> None:
            if not self._reaches():
                return
            try:
                result = _at_once(work())
            except Exception as failure:  # noqa: BLE001 - the far side's error is the caller's to see
                _settle(answer, failure)
                return
            if network.random.random() >= network.lose_answers:
                # The caller's own process takes it in: one that is paused may find the answer and its timeout together.
                loop.call_later(network.latency_s(), hear, result, context=home)

        def hear(result: T) -> None:
            if self._reaches():
                _settle(answer, result)

        if not self._reaches() and network.random.random() < 0.7:
            # The connection is known to be down: nothing is even sent.
            await asyncio.sleep(network.random.uniform(0.05, CALL_TIMEOUT_S))
            raise Unavailable(f"{self.name} cannot be reached")
        home = contextvars.copy_context()
        loop.call_later(network.latency_s(), serve, context=network.world.copy())
        kind = Ambiguous if writes else Unavailable
        timeout = loop.call_later(
            CALL_TIMEOUT_S, _settle, answer, kind(f"{self.name} did not answer in time"), context=home
        )
        try:
            return await answer
        finally:
            timeout.cancel()


def _at_once(work: Awaitable[T]) -> T:
    """The result of what never waits, without a task: a store in memory answers at the instant it is asked."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("the store in memory has waited")


def _settle(answer: asyncio.Future[T], outcome: T | Exception) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


class SimStream:
    """One end of a session's stream: frames arrive in order, late; in the dark they wait; too long in the dark breaks it."""

    def __init__(self, network: Network, here: str, there: str) -> None:
        self.here = here
        self.there = there
        self.number = next(network.numbers)
        self._network = network
        self._sent = 0
        self._inbox: deque[bytes | None] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._outgoing: deque[bytes | None] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._is_closed = False
        self.peer: SimStream | None = None

    @staticmethod
    def pair(network: Network, one: str, other: str) -> tuple[SimStream, SimStream]:
        """Two ends of one stream."""
        left, right = SimStream(network, one, other), SimStream(network, other, one)
        left.peer, right.peer = right, left
        return left, right

    async def send(self, data: bytes) -> None:
        if self._is_closed:
            raise StreamClosed("the stream is over")
        while len(self._outgoing) >= IN_FLIGHT and not self._is_closed:
            await asyncio.sleep(0.02)
        self._network.on_frame(self, data, False)
        self._sent += 1
        self._push(data)
        # All but the greeting may come twice: what is told by level must not mind.
        if self._sent > 1 and self._network.random.random() < self._network.double_frames:
            self._push(data)
        await asyncio.sleep(0)

    async def receive(self) -> bytes:
        while not self._inbox:
            if self._is_closed:
                raise StreamClosed("the stream is over")
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        data = self._inbox.popleft()
        if data is None:
            self._is_closed = True
            raise StreamClosed("the other end is gone")
        return data

    async def close(self) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """End it; the other end hears of it when the network lets it."""
        if not self._is_closed:
            self._is_closed = True
            self._push(None)
            self._wake()

    def _push(self, data: bytes | None) -> None:
        self._outgoing.append(data)
        if self._pump is None or self._pump.done():
            loop = asyncio.get_running_loop()
            self._pump = loop.create_task(self._carry(), context=self._network.world.copy())

    async def _carry(self) -> None:
        loop = asyncio.get_running_loop()
        while self._outgoing:
            await asyncio.sleep(self._network.latency_s())
            dark_since_s = loop.time()
            while self._network.is_cut(self.here, self.there):
                if loop.time() - dark_since_s > KEEPALIVE_S:
                    self._outgoing.clear()
                    self._break()
                    return
                await asyncio.sleep(0.1)
            data = self._outgoing.popleft()
            if self.peer is not None:
                self.peer.deliver(data)

    def _break(self) -> None:
        """Both ends find out by their keepalives."""
        for end in (self, self.peer):
            if end is not None and not end._is_closed:
                end.deliver(None)

    def deliver(self, data: bytes | None) -> None:
        """A frame has arrived (None: the end)."""
        if data is not None:
            self._network.on_frame(self, data, True)
        self._inbox.append(data)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
