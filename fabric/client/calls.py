"""One call as the client makes it: token, deadline, retries under one `request_id`, errors of ours. Every noun goes through here."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import grpc

from fabric.client.endpoint import Endpoint
from fabric.client.errors import from_rpc_error
from fabric.client.retry import Budget, RetrySettings, wait_s
from fabric.clock import Clock, SystemClock
from fabric.errors import FabricError, NotFound, Unauthenticated, Unavailable
from fabric.ids import Ids, RandomIds

Request = TypeVar("Request")
Response = TypeVar("Response")
Outcome = TypeVar("Outcome")

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Whether a call may be repeated is decided here, where its request_id is known, and not by the transport.
    ("grpc.enable_retries", 0),
    # A download must notice within 15 s that its server has vanished. No pings without a call: servers answer those with "go away".
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_send_message_length", 4 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Paged(Protocol):
    """A request for a page."""

    page_token: str


class Page(Protocol):
    """A page that knows the next one."""

    next_page_token: str


PagedRequest = TypeVar("PagedRequest", bound=Paged)
PageResponse = TypeVar("PageResponse", bound=Page)


@dataclass(kw_only=True)
class World:
    """Time, chance and ids, as arguments: tests run waits of minutes in no time."""

    clock: Clock = field(default_factory=SystemClock)
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    ids: Ids = field(default_factory=RandomIds)


class Calls:
    """The way to one API. Not to be shared between threads."""

    def __init__(
        self,
        endpoint: Endpoint,
        channel: grpc.Channel,
        *,
        token: str,
        renew: Callable[[], str] | None,
        timeout_s: float,
        settings: RetrySettings,
        world: World,
    ) -> None:
        self.channel = channel
        self.world = world
        self.timeout_s = timeout_s
        self._endpoint = endpoint
        self._token = token
        self._renew = renew
        self._settings = settings
        self._budget = Budget(settings.budget)

    def request_id(self) -> str:
        """A fresh one: take it once per call, whatever number of attempts that takes."""
        return self.world.ids.new_id()

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What goes with every call."""
        return (("authorization", f"Bearer {self._token}"),) if self._token else ()

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float | None = None,
        attempt_timeout_s: float | None = None,
    ) -> Response:
        """Call and wait for the answer, for as long as `attempt` says. Raises what the call finally ended with."""
        return self.attempt(
            lambda left_s: method(request, timeout=left_s, metadata=self.metadata()),
            timeout_s=timeout_s,
            attempt_timeout_s=attempt_timeout_s,
        )

    def delete(self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request) -> None:
        """Call a delete. An answer may be lost after the deed was done: what is then not there any more was deleted by us."""
        is_open = False

        def once(left_s: float) -> None:
            nonlocal is_open
            try:
                method(request, timeout=left_s, metadata=self.metadata())
            except grpc.RpcError as raised:
                # Every other error says that nothing was done.
                is_open = is_open or isinstance(self.error(raised), Unavailable)
                raise

        try:
            self.attempt(once)
        except NotFound:
            if not is_open:
                raise

    def pages(
        self, method: grpc.UnaryUnaryMultiCallable[PagedRequest, PageResponse], request: PagedRequest
    ) -> Iterator[PageResponse]:
        """Every page, from the first."""
        while True:
            page = self.unary(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def attempt(
        self,
        once: Callable[[float], Outcome],
        *,
        timeout_s: float | None = None,
        attempt_timeout_s: float | None = None,
    ) -> Outcome:
        """Try until it succeeds, fails for good, or time or the budget for retries is spent.

        Args:
            once: makes one attempt, given what it may take at most in seconds. May raise grpc.RpcError.
            timeout_s: for all attempts together, waits included; the client's default if None.
            attempt_timeout_s: for one attempt; the settings' if None.
        """
        if attempt_timeout_s is None:
            attempt_timeout_s = self._settings.attempt_timeout_s
        clock, settings = self.world.clock, self._settings
        end_s = clock.boot_s() + (self.timeout_s if timeout_s is None else timeout_s)
        attempt = 0
        renewed = False
        while True:
            attempt += 1
            left_s = end_s - clock.boot_s()
            try:
                outcome = once(max(0.001, min(left_s, attempt_timeout_s)))
            except grpc.RpcError as raised:
                error = self.error(raised)
            else:
                self._budget = self._budget.earn(settings)
                return outcome
            if isinstance(error, Unauthenticated) and self._renew is not None and not renewed:
                # The token has expired, or was revoked with its server's restart: log in again, once.
                self._token = self._renew()
                renewed = True
                attempt -= 1
                continue
            pause_s = wait_s(error, attempt, jitter=self.world.jitter(), settings=settings)
            after = self._budget.spend()
            if pause_s is None or after is None or clock.boot_s() + pause_s >= end_s:
                raise error from None
            self._budget = after
            self.world.sleep(pause_s)

    def error(self, raised: grpc.RpcError) -> FabricError:
        """What a failed call means."""
        return from_rpc_error(raised, self._endpoint.target)
