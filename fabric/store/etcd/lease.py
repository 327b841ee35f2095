"""Keeping leases: one stream carries the beats of all of them, and each has a deadline of its own on this machine's clock.

The deadline is counted from when the last answered beat was *sent*: etcd cannot have started its own count earlier, so we
stop believing in a lease before etcd drops it, whatever happened to the network. CLOCK_BOOTTIME, so that a suspended
machine wakes up knowing (R5).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field

import grpc
import grpc.aio
import structlog

from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import Unavailable
from fabric.pb.etcd.v3 import wire_pb2 as pb
from fabric.store.base import Lease
from fabric.store.etcd.endpoints import Endpoint, Endpoints, hang_up, raise_if_cancelled
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.wire import LEASE_KEEP_ALIVE

log = structlog.get_logger()

BEATS_PER_TTL = 3
RETRY_S = 0.2

CROWDED = 1024
"""So many leases are remembered before those whose time is over are looked for."""

Stream = grpc.aio.StreamStreamCall[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]


class BeatLost(Exception):
    """A beat was not answered. A fact, not an error: the next one may fare better."""


class Beats:
    """The stream that carries beats, opened when needed and again when it breaks.

    etcd answers the beats of one stream in the order they came. So answers for one lease are matched to its beats by
    order, and a beat whose owner went away keeps its place until it is answered.
    """

    def __init__(self, endpoints: Endpoints, settings: EtcdSettings) -> None:
        self._endpoints = endpoints
        self._settings = settings
        self._member: Endpoint | None = None
        self._stream: Stream | None = None
        self._reader: asyncio.Task[None] | None = None
        self._under_way: dict[int, deque[asyncio.Future[int]]] = {}
        self._turn = asyncio.Lock()

    async def beat(self, lease_id: int, timeout_s: float) -> int:
        """Send one beat; returns the seconds the lease has from when it was sent, 0 if it is gone. Raises BeatLost."""
        try:
            async with within(timeout_s):
                return await (await self._send(lease_id))
        except TimeoutError:
            self._drop()
            raise BeatLost("no answer in time") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, Unavailable) as broken:
            self._drop()
            why = broken.code().name if isinstance(broken, grpc.aio.AioRpcError) else type(broken).__name__
            raise BeatLost(why) from broken
        except asyncio.CancelledError:
            raise_if_cancelled()
            raise BeatLost("closed here") from None

    async def close(self) -> None:
        reader = self._reader
        self._drop()
        if reader is not None:
            await asyncio.gather(reader, return_exceptions=True)

    async def _send(self, lease_id: int) -> asyncio.Future[int]:
        async with self._turn:  # grpc.aio takes one write at a time
            if self._stream is None:
                self._member = await self._endpoints.connected(self._settings.connect_wait_s)
                self._stream = self._member.stream(LEASE_KEEP_ALIVE)
                self._reader = asyncio.create_task(self._read(self._stream), name="etcd lease beats")
            stream = self._stream
            answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._under_way.setdefault(lease_id, deque()).append(answer)
            try:
                await stream.write(pb.LeaseKeepAliveRequest(id=lease_id))
            except asyncio.CancelledError:
                self._drop()  # whether the beat went out is not known, so the order is not either
                raise
            return answer

    async def _read(self, stream: Stream) -> None:
        # CancelledError is grpc.aio's word for a stream we dropped ourselves; nobody cancels this task.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            while isinstance(answer := await stream.read(), pb.LeaseKeepAliveResponse):
                if self._stream is not stream:
                    break
                beats = self._under_way.get(answer.id)
                if not beats:
                    continue
                first = beats.popleft()
                if not beats:
                    del self._under_way[answer.id]
                if not first.done():
                    first.set_result(answer.ttl)
        if self._stream is stream:
            self._drop()
        await hang_up(stream)

    def _drop(self) -> None:
        """Give the stream up, and its member if there is another; every beat under way on it is lost."""
        stream, self._stream, self._reader = self._stream, None, None
        if stream is not None:
            stream.cancel()
            if self._member is not None:
                self._endpoints.avoid(self._member)
        under_way, self._under_way = self._under_way, {}
        for beats in under_way.values():
            for beat in beats:
                if not beat.done():
                    beat.set_exception(BeatLost("the stream broke"))
                    beat.exception()  # looked at: its owner may be gone already


@dataclass(slots=True)
class _Held:
    until_s: float
    """CLOCK_BOOTTIME up to which the lease may be believed in."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when we end it ourselves."""


class Leases:
    """The leases of one store and until when each may be believed in."""

    def __init__(self, endpoints: Endpoints, settings: EtcdSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._beats = Beats(endpoints, settings)
        self._held: dict[int, _Held] = {}
        self._crowded = CROWDED

    @property
    def remembered(self) -> int:
        """How many leases are known here, ended ones that nobody has asked about included."""
        return len(self._held)

    def granted(self, lease: Lease, *, asked_at_s: float) -> None:
        """Remember a new lease; its time runs from when it was asked for."""
        if len(self._held) >= self._crowded:
            # Most are never kept (a token's): they end by themselves, and nobody says so.
            now_s = self._clock.boot_s()
            self._held = {lease_id: held for lease_id, held in self._held.items() if held.until_s > now_s}
            self._crowded = max(CROWDED, 2 * len(self._held))
        self._held[lease.id] = _Held(asked_at_s + lease.ttl_s)

    def end(self, lease_id: int) -> None:
        """Believe in a lease no longer; whoever keeps it is told."""
        held = self._held.pop(lease_id, None)
        if held is not None:
            held.ended.set()

    async def keep(self, lease: Lease) -> None:
        """Beat until the lease is, or may be, lost."""
        held = self._held.get(lease.id)
        if held is None:
            # Granted by another process, or over: nothing is known of it until its first beat is answered.
            held = self._held[lease.id] = _Held(self._clock.boot_s() + lease.ttl_s / BEATS_PER_TTL)
        while (left_s := held.until_s - self._clock.boot_s()) > 0 and not held.ended.is_set():
            sent_s = self._clock.boot_s()
            try:
                # Short enough to leave time for another member.
                timeout_s = min(self._settings.try_timeout_s, lease.ttl_s / BEATS_PER_TTL, left_s)
                ttl_s = await self._beats.beat(lease.id, timeout_s)
            except BeatLost as lost:
                log.info("store.beat_lost", lease=f"{lease.id:x}", left_s=round(left_s, 1), why=str(lost))
                pause_s = min(RETRY_S, max(0.0, held.until_s - self._clock.boot_s()))
            else:
                if ttl_s <= 0:
                    break
                held.until_s = sent_s + ttl_s
                pause_s = ttl_s / BEATS_PER_TTL
            with contextlib.suppress(TimeoutError):
                async with within(pause_s):
                    await held.ended.wait()
        self.end(lease.id)

    async def close(self) -> None:
        for lease_id in [*self._held]:
            self.end(lease_id)
        await self._beats.close()
