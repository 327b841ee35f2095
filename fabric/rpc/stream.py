"""A host's session as a port: whole messages, both ways, in order, until it is over.

Both ends of a session are written against `Stream`, so that neither knows gRPC and a simulation can lose, delay and cut. What every
implementation keeps:

- Messages arrive in the order they were sent, each once, or not at all; a lost one means that the stream is over.
- `send` waits while the other end is behind: what is queued is bounded, so a slow peer costs its sender, nobody else.
- `close` ends both directions. Its own end receives nothing more; the other end may still get what was sent before, or lose it, and then
  learns of the end by `StreamClosed`.
- One task sends and one receives at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Larger messages end the stream: a snapshot is sent in parts, an inventory of 10,000 guests is under 1 MiB."""


class StreamClosed(Exception):
    """The stream is over: closed by either end, or broken. Not an error of anybody's; nothing was promised about what was on its way."""


class Stream(Protocol):
    """One end of a session."""

    async def send(self, data: bytes) -> None:
        """Hand one message over, waiting for room. It may never arrive. Raises StreamClosed."""
        ...

    async def receive(self) -> bytes:
        """The next message. Raises StreamClosed when there will be none."""
        ...

    async def close(self) -> None:
        """End it. Safe to call at any time, and again."""
        ...


class _Pipe:
    """One direction: a bounded queue that can be cut."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[bytes] = deque()
        self._changed = asyncio.Condition()
        self._is_cut = False

    async def put(self, data: bytes) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_cut or len(self._waiting) < self._limit)
            if self._is_cut:
                raise StreamClosed
            self._waiting.append(data)
            self._changed.notify_all()

    async def take(self) -> bytes:
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_cut or len(self._waiting) > 0)
            if not self._waiting:
                raise StreamClosed
            self._changed.notify_all()
            return self._waiting.popleft()

    async def cut(self, *, drop: bool) -> None:
        async with self._changed:
            self._is_cut = True
            if drop:
                self._waiting.clear()
            self._changed.notify_all()


class MemoryStream:
    """One end of a pair within a process, made by `memory_pair`."""

    def __init__(self, outgoing: _Pipe, incoming: _Pipe) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, data: bytes) -> None:
        if len(data) > MAX_MESSAGE_BYTES:
            await self.close()
            raise StreamClosed
        await self._outgoing.put(data)

    async def receive(self) -> bytes:
        return await self._incoming.take()

    async def close(self) -> None:
        await self._outgoing.cut(drop=False)
        await self._incoming.cut(drop=True)


def memory_pair(limit: int = 64) -> tuple[MemoryStream, MemoryStream]:
    """Two joined ends: what one sends the other receives. At most `limit` messages wait in each direction."""
    there, back = _Pipe(limit), _Pipe(limit)
    return MemoryStream(there, back), MemoryStream(back, there)
