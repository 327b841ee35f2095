"""The outbox with a bell: workers fill it whenever they have something to tell, the session empties it while there is one."""

from __future__ import annotations

import asyncio
import contextlib

from fabric.clock import Clock
from fabric.deadlines import within
from fabric.model.session import PlanFollowed, Progress, Released, Report, Status
from hostd.core.outbox import Outbox, Told


class Post:
    """What is to be told, and a way to wait for it."""

    def __init__(self, clock: Clock) -> None:
        self.outbox = Outbox()
        self._clock = clock
        self._bell = asyncio.Event()

    def say(self, status: Status) -> None:
        self.outbox.say(status)
        self._bell.set()

    def unsay(self, instance_id: str) -> None:
        self.outbox.unsay(instance_id)

    def released(self, released: Released) -> None:
        self.outbox.released(released)
        self._bell.set()

    def show(self, progress: Progress) -> None:
        self.outbox.show(progress, now_s=self._clock.boot_s())
        self._bell.set()

    def report(self, report: Report) -> None:
        self.outbox.report(report)
        self._bell.set()

    def followed(self, followed: PlanFollowed) -> None:
        self.outbox.followed(followed)
        self._bell.set()

    async def collect(self) -> list[Told]:
        """Wait until something is to be told, and take it."""
        while True:
            self._bell.clear()
            now_s = self._clock.boot_s()
            if due := self.outbox.due(now_s):
                return due
            next_s = self.outbox.next_due_s()
            with contextlib.suppress(TimeoutError):
                async with within(None if next_s is None else max(0.001, next_s - now_s)):
                    await self._bell.wait()
