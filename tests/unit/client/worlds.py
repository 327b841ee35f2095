"""A client with nothing real around it: virtual time, no jitter, counted ids, the API in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import grpc

from fabric.client import Client
from fabric.client.calls import World
from fabric.client.retry import RetrySettings
from tests.unit.client.fake_api import TOKEN, FakeApi, FakeChannel


class VirtualTime:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def boot_s(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class CountedIds:
    """Ids in order."""

    def __init__(self) -> None:
        self.made = 0

    def new_id(self) -> str:
        self.made += 1
        return f"request-{self.made}"

    def new_secret(self, nbytes: int = 32) -> bytes:
        return b"x" * nbytes


def client_of(
    api: FakeApi,
    time: VirtualTime,
    *,
    token: str = TOKEN,
    renew: Callable[[], str] | None = None,
    retry: RetrySettings | None = None,
    timeout_s: float = 30.0,
    ids: CountedIds | None = None,
) -> Client:
    """A real client of a fake API."""
    return Client(
        "api.test:7443",
        token=token,
        renew=renew,
        timeout_s=timeout_s,
        retry=retry,
        world=World(clock=time, sleep=time.sleep, jitter=lambda: 1.0, ids=ids or CountedIds()),
        channel=cast("grpc.Channel", FakeChannel(api)),
    )
