"""One session with one conductor, from hello to its end: what comes in goes to the workers, what they tell goes out.

Every rule about who may be heard is `hostd.core.fencing`'s. A session never cancels work: steps under way finish whatever becomes of it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import InvalidRequest
from fabric.model.session import (
    Answer,
    Beat,
    BeatAck,
    ConsoleLogWanted,
    DiagnosticsWanted,
    FromConductor,
    FromHost,
    Goodbye,
    Granted,
    Hello,
    Inventory,
    Order,
    PasswordWanted,
    PlanFollowed,
    PlanPart,
    Question,
    Release,
    ReleaseAck,
    Snapshot,
    Status,
    StatusAck,
    TunnelWanted,
)
from fabric.observability.failpoints import Failpoints
from fabric.rpc.session_codec import pack_from_host, unpack_from_conductor
from fabric.rpc.stream import Stream, StreamClosed
from hostd.commands.journal import Journal
from hostd.commands.queue import Queues
from hostd.core.fencing import Fence
from hostd.core.outbox import Told
from hostd.plans import PlanFollower, PlanParts
from hostd.post import Post
from hostd.settings import HostSettings

_log = structlog.get_logger(__name__)

_ANSWERS_AT_ONCE = 8
_ANSWERS_WAITING = 64
_TUNNELS_AT_ONCE = 64


class SessionOver(Exception):
    """The session has ended, or must: `retry_after_s` is what the conductor asked for."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Gate:
    """The one place where this host's fence stands; asked at the moment of acting."""

    fence: Fence


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What sessions, which come and go, share with the daemon, which stays."""

    settings: HostSettings
    boot_id: str
    clock: Clock
    journal: Journal
    gate: Gate
    post: Post
    queues: Queues
    plans: PlanFollower
    inventory: Callable[[], Awaitable[Inventory | None]]
    answer: Callable[[Question], Awaitable[Answer | None]]
    snapshot_taken: Callable[[], None]
    failpoints: Failpoints


class Session:
    """A session over a stream that was just dialled."""

    def __init__(self, stream: Stream, desk: Desk) -> None:
        self._stream = stream
        self._desk = desk
        self._sending = asyncio.Lock()
        self._beats: dict[int, float] = {}
        self._parts: list[Snapshot] = []
        self._early: list[Order | Release] = []
        self._is_first_snapshot = True
        self._answering = asyncio.Semaphore(_ANSWERS_AT_ONCE)
        self._answers_waiting = 0
        self._tunnels = 0
        self._plan = PlanParts()
        self.granted: Granted | None = None

    async def run(self, on_granted: Callable[[], None]) -> SessionOver:
        """Hold the session until it ends; says why it did. `on_granted` is called once there is a session at all."""
        over = SessionOver("the stream has ended")
        try:
            await self._greet()
            on_granted()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat(), name="session/beat")
                tasks.create_task(self._tell(), name="session/tell")
                tasks.create_task(self._take_stock(), name="session/inventory")
                tasks.create_task(self._listen(tasks), name="session/listen")
        except* SessionOver as ended:
            over = _first(ended)
        except* StreamClosed:
            pass
        finally:
            await self._stream.close()
        return over

    # ------------------------------------------------------------ the beginning

    async def _greet(self) -> None:
        desk = self._desk
        hello_sent_s = desk.clock.boot_s()
        hello = Hello(
            boot_id=desk.boot_id,
            agent_version=desk.settings.agent_version,
            highest_epoch=desk.gate.fence.epoch,
            follows_plans=True,
        )
        try:
            async with within(desk.settings.timers.greeting_s):
                await self._send(hello)
                answer = await self._receive()
        except TimeoutError as silent:
            raise SessionOver("the conductor did not answer the hello") from silent
        if isinstance(answer, Goodbye):
            raise _goodbye(answer)
        if not isinstance(answer, Granted):
            raise SessionOver(f"the conductor began with {type(answer).__name__}, not with a grant")
        fence = desk.gate.fence.grant(
            answer.epoch, permit_s=answer.permit_ms / 1000, hello_sent_s=hello_sent_s
        )
        if fence is None:
            raise SessionOver(f"the conductor granted epoch {answer.epoch}, which is not a new one")
        # On the disk before anything is heard under it: a conductor of an older epoch is then deaf to us even after a crash (R1).
        desk.journal.write_epoch(fence.epoch)
        desk.gate.fence = fence
        self.granted = answer
        _log.info("session.granted", epoch=answer.epoch, host=answer.host)
        await desk.failpoints.reach("hostd.session.granted")
        desk.post.outbox.begin_session()
        desk.queues.wake()

    async def _take_stock(self) -> None:
        """Say once what is held here (R8). While that cannot be known, this host cannot be given work, and so says nothing."""
        while True:
            inventory = await self._desk.inventory()
            if inventory is not None:
                await self._send(replace(inventory, epoch=self._desk.gate.fence.epoch))
                return
            await asyncio.sleep(self._desk.settings.timers.hypervisor_retry_s)

    # ------------------------------------------------------------ out

    async def _beat(self) -> None:
        timers = self._desk.settings.timers
        for seq in itertools.count(1):
            oldest_s = next(iter(self._beats.values()), None)
            if oldest_s is not None and self._desk.clock.boot_s() - oldest_s >= timers.silence_s:
                raise SessionOver("the conductor acknowledges no beats: it may have lost the store")
            try:
                async with within(timers.silence_s), self._sending:
                    # When it is sent, not when it is answered (R5): taken before, so that waiting for room counts against us.
                    self._beats[seq] = self._desk.clock.boot_s()
                    await self._stream.send(pack_from_host(Beat(seq=seq, epoch=self._desk.gate.fence.epoch)))
            except TimeoutError as stuck:
                # Whoever is sending waits for room: nobody could look at what is acknowledged meanwhile.
                raise SessionOver("the conductor takes nothing any more") from stuck
            await asyncio.sleep(timers.beat_s)

    async def _tell(self) -> None:
        while True:
            for message in await self._desk.post.collect():
                await self._send(_stamped(message, self._desk.gate.fence.epoch))
                if isinstance(message, Status):
                    await self._desk.failpoints.reach("hostd.report.sent")

    async def _send(self, message: FromHost) -> None:
        async with self._sending:
            await self._stream.send(pack_from_host(message))

    # ------------------------------------------------------------ in

    async def _receive(self) -> FromConductor:
        try:
            return unpack_from_conductor(await self._stream.receive())
        except InvalidRequest as broken:
            raise SessionOver(f"the conductor sent what cannot be read: {broken.message}") from broken

    async def _listen(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            message = await self._receive()
            epoch = getattr(message, "epoch", None)
            if epoch is not None and not self._desk.gate.fence.hears(epoch):
                _log.warning("message.dropped", kind=type(message).__name__, epoch=epoch)
                continue
            self._hear(message, tasks)

    def _hear(self, message: FromConductor, tasks: asyncio.TaskGroup) -> None:
        desk = self._desk
        match message:
            case Snapshot():
                self._hear_part(message)
            case Order() | Release():
                if self._is_first_snapshot:
                    self._early.append(message)
                else:
                    self._take([message])
            case BeatAck(seq=seq):
                self._renew(seq)
            case StatusAck():
                if desk.post.outbox.acked(message):
                    desk.queues.acked(message)
            case ReleaseAck():
                if desk.post.outbox.release_acked(message):
                    desk.queues.release_acked(message.instance_id)
            case ConsoleLogWanted() | DiagnosticsWanted() | PasswordWanted():
                if self._answers_waiting < _ANSWERS_WAITING:
                    self._answers_waiting += 1
                    tasks.create_task(self._answer(message), name="session/answer")
            case TunnelWanted():
                if self._tunnels < _TUNNELS_AT_ONCE:
                    self._tunnels += 1
                    tasks.create_task(self._carry(message), name="session/tunnel")
            case PlanPart():
                self._hear_plan(message)
            case Goodbye():
                raise _goodbye(message)
            case Granted():
                raise SessionOver("the conductor granted a session twice")

    def _hear_part(self, part: Snapshot) -> None:
        """Collect the parts of one snapshot; act when it is whole (R3: with a lost journal, not before)."""
        if self._parts and self._parts[0].revision != part.revision:
            self._parts.clear()
        self._parts.append(part)
        if not part.last:
            return
        orders = [order for each in self._parts for order in each.orders]
        releases = [release for each in self._parts for release in each.releases]
        self._parts.clear()
        if self._is_first_snapshot:
            self._is_first_snapshot = False
            mentioned = frozenset(order.guest.id for order in orders)
            self._desk.queues.bury(mentioned | {release.instance_id for release in releases})
        early, self._early = self._early, []
        self._take([*releases, *orders, *early])
        self._desk.queues.snapshot_taken()
        self._desk.snapshot_taken()

    def _hear_plan(self, part: PlanPart) -> None:
        """Collect the parts of a plan, and have it followed when it is whole."""
        try:
            plan = self._plan.add(part)
        except InvalidRequest as broken:
            raise SessionOver(f"the conductor sent what cannot be read: {broken.message}") from broken
        if plan is not None:
            self._desk.plans.want(plan)

    def _take(self, messages: list[Order | Release]) -> None:
        """Hand over what was ordered, releases first. One epoch for all: this session's."""
        self._desk.queues.take(
            [message for message in messages if isinstance(message, Release)],
            [message for message in messages if isinstance(message, Order)],
        )

    def _renew(self, seq: int) -> None:
        sent_s = self._beats.get(seq)
        if sent_s is None:
            return
        self._beats = {number: instant for number, instant in self._beats.items() if number > seq}
        gate = self._desk.gate
        was_permitted = gate.fence.permits_start(self._desk.clock.boot_s())
        gate.fence = gate.fence.renew(sent_s)
        if not was_permitted:
            self._desk.queues.wake()

    async def _answer(self, question: Question) -> None:
        try:
            async with self._answering:
                answer = await self._desk.answer(question)
            if answer is not None:
                await self._send(answer)
        finally:
            self._answers_waiting -= 1

    async def _carry(self, wanted: TunnelWanted) -> None:
        """Carry a console, which lasts as long as somebody looks at it: so it waits for nobody, and nobody waits for it."""
        try:
            refused = await self._desk.answer(wanted)
            if refused is not None:
                await self._send(refused)
        finally:
            self._tunnels -= 1


def _stamped(message: Told, epoch: int) -> FromHost:
    # What became of a plan is the business of the session that told it.
    return message if isinstance(message, PlanFollowed) else replace(message, epoch=epoch)


def _goodbye(message: Goodbye) -> SessionOver:
    return SessionOver(message.reason, retry_after_s=max(0, message.retry_after_ms) / 1000)


def _first(group: BaseExceptionGroup[SessionOver]) -> SessionOver:
    """The reason in a group of them: the one that came first."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, SessionOver)
    return found
