"""The members of a cluster and which one to talk to.

One channel per member, all kept connected. A caller takes a connected member, and gives it a bad mark when it fails; the
next caller takes another one. Nothing here knows what is being asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TypeVar

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message

from fabric.deadlines import until
from fabric.errors import Unavailable
from fabric.pb.etcd.v3 import wire_pb2 as pb
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.wire import CHANNEL_OPTIONS, REQUIRE_LEADER, STATUS, Method, version_of

log = structlog.get_logger()

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

OLDEST_SOUND = (3, 5, 0)

READY = grpc.ChannelConnectivity.READY


class HungUp(Exception):
    """The call was under way when our own side closed the connection."""


def raise_if_cancelled() -> None:
    """To be called on a CancelledError: grpc.aio raises one too when a call ends because its channel was closed.

    Raises:
        asyncio.CancelledError: it was the caller's task that was cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def hang_up(stream: grpc.aio.StreamStreamCall[Q, A]) -> None:
    """End a stream and see it end: one that is only told to would hold its connection open when the loop stops now."""
    stream.cancel()
    with contextlib.suppress(grpc.aio.AioRpcError):
        await stream.code()


class Endpoint:
    """One member: its channel, whether it is connected, and what version answered last."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.is_connected = False
        self.version: tuple[int, int, int] = (0, 0, 0)
        self.avoid_until_s = 0.0

    async def call(self, method: Method[Q, A], request: Q, timeout_s: float) -> A:
        """One unary call. Raises grpc.aio.AioRpcError or HungUp."""
        rpc = self.channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        try:
            answer: A = await rpc(request, timeout=timeout_s, metadata=REQUIRE_LEADER)
        except asyncio.CancelledError:
            raise_if_cancelled()
            raise HungUp from None
        return answer

    def stream(self, method: Method[Q, A]) -> grpc.aio.StreamStreamCall[Q, A]:
        """Open a bidirectional stream. It ends by itself when the member loses its leader."""
        rpc: grpc.aio.StreamStreamMultiCallable[Q, A] = self.channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        return rpc(metadata=REQUIRE_LEADER)


class Endpoints:
    """All members of one cluster. Lives on one event loop, from `open` to `close`."""

    def __init__(self, settings: EtcdSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._members: list[Endpoint] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._current = 0
        self.is_closed = False

    def open(self) -> None:
        """Begin to connect. Does nothing the second time."""
        if self._members or self.is_closed:
            return
        credentials = _credentials(self._settings)
        for address in self._settings.endpoints:
            channel = (
                grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
                if credentials is None
                else grpc.aio.secure_channel(address, credentials, CHANNEL_OPTIONS)
            )
            member = Endpoint(address, channel)
            self._members.append(member)
            self._tasks.append(asyncio.create_task(self._follow(member), name=f"etcd {self._name} {address}"))
        # Many processes start with the same list: without this they would all sit on its first member.
        self._current = random.randrange(len(self._members))  # noqa: S311 - spreads load, guards nothing

    async def close(self) -> None:
        """Hang up. Whoever waits for a member hears Unavailable."""
        self.is_closed = True
        self._tell()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(member.channel.close() for member in self._members))
        self._tasks.clear()

    async def connected(self, wait_s: float | None) -> Endpoint:
        """A connected member, preferring the one used last, then those without a bad mark.

        Raises:
            Unavailable: none is connected within `wait_s` (None waits for ever), or the store is closed.
        """
        self.open()
        loop = asyncio.get_running_loop()
        give_up_s = None if wait_s is None else loop.time() + wait_s
        while True:
            if self.is_closed:
                raise Unavailable(f"store {self._name} is closed", store=self._name)
            chosen = self._choose(loop.time())
            if chosen is not None:
                return chosen
            changed = self._changed
            try:
                async with until(give_up_s):
                    await changed.wait()
            except TimeoutError:
                raise Unavailable(
                    f"store {self._name}: none of its {len(self._members)} etcd members can be reached",
                    store=self._name,
                ) from None

    def avoid(self, member: Endpoint) -> None:
        """Give a member a bad mark: it is chosen only when no other will do."""
        member.avoid_until_s = asyncio.get_running_loop().time() + self._settings.avoid_s

    def _choose(self, now_s: float) -> Endpoint | None:
        best: int | None = None
        for offset in range(len(self._members)):
            index = (self._current + offset) % len(self._members)
            member = self._members[index]
            if not member.is_connected:
                continue
            if member.avoid_until_s <= now_s:
                best = index
                break
            if best is None or member.avoid_until_s < self._members[best].avoid_until_s:
                best = index
        if best is None:
            return None
        self._current = best
        return self._members[best]

    async def _follow(self, member: Endpoint) -> None:
        """Keep one member connected, and know its state and version."""
        asking: asyncio.Task[None] | None = None
        try:
            while True:
                state = member.channel.get_state(try_to_connect=True)
                is_connected = state is READY
                if is_connected and not member.is_connected:
                    # Asked anew at each connection: it may be another binary by now.
                    asking = asyncio.create_task(self._ask_version(member))
                if is_connected != member.is_connected:
                    member.is_connected = is_connected
                    self._tell()
                await member.channel.wait_for_state_change(state)
        finally:
            if asking is not None:
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking

    async def _ask_version(self, member: Endpoint) -> None:
        try:
            answer = await member.call(STATUS, pb.StatusRequest(), self._settings.try_timeout_s)
        except (grpc.aio.AioRpcError, HungUp):
            return  # the version stays what it was, at first 0.0.0: older than anything, so nothing is assumed of it
        version = version_of(answer.version)
        if version == member.version:
            return
        member.version = version
        if version < OLDEST_SOUND:
            log.warning(
                "store.etcd_unsound",
                store=self._name,
                endpoint=member.address,
                version=answer.version,
                advice="etcd 3.4 is end-of-life, with known faults in watches, leases, reads and access control;"
                " run a current 3.5 or 3.6",
            )
        else:
            log.info(
                "store.etcd_connected", store=self._name, endpoint=member.address, version=answer.version
            )

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _credentials(settings: EtcdSettings) -> grpc.ChannelCredentials | None:
    if settings.ca_path is None:
        return None
    cert = None if settings.cert_path is None else settings.cert_path.read_bytes()
    key = None if settings.key_path is None else settings.key_path.read_bytes()
    return grpc.ssl_channel_credentials(settings.ca_path.read_bytes(), key, cert)
