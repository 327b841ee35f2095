"""Passwords on their way into guests: asked of the host, and the task that stands for it ended with what became of it.

The password itself is in the question and nowhere else: not in a record, not in a log, not in an error. A conductor that dies in the middle
leaves the task to its deadline, like any other.

Who asked may give up before the guest's agent is done. The asking and the ending go on without them, because the password may be set by
then; who asks again under the same request waits for the same answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.core import passwords
from fabric.conductor.core.draft import Draft
from fabric.conductor.sessions import HostSession
from fabric.errors import Bug, FabricError, Reason, Unavailable
from fabric.ids import Ids
from fabric.model.session import PasswordSet, PasswordWanted
from fabric.store.base import Store

log = structlog.get_logger()

_TRIES: Final = 5

_PAUSE_S: Final = 0.1
"""Before the second try, give or take a half; doubled before each one after, so that all of them take about as long as an election."""


class _Asked(NamedTuple):
    """What is asked only once at a time: a request, of one session of a host."""

    host: str
    epoch: int
    instance_id: str
    placement_epoch: int
    request_id: str


class PasswordTasks:
    """See the module. What is under way is ended with `run`."""

    def __init__(
        self, store: Store, *, clock: Clock, ids: Ids, jitter: Callable[[], float], patience_s: float
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._jitter = jitter
        self._patience_s = patience_s
        self._under_way: dict[_Asked, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Own what is under way, until cancelled."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            tasks = tuple(self._under_way.values())
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def set(
        self,
        session: HostSession,
        instance_id: str,
        placement_epoch: int,
        *,
        request_id: str,
        user: str,
        password: str,
    ) -> None:
        """Ask the host, and end the task: both also where the caller gives up meanwhile. Raises what `Questions.answer` raises."""
        asked = _Asked(session.host, session.epoch, instance_id, placement_epoch, request_id)
        task = self._under_way.get(asked)
        if task is None:
            task = asyncio.create_task(
                self._set(session, asked, user=user, password=password), name=f"password {request_id}"
            )
            self._under_way[asked] = task
            task.add_done_callback(lambda done: self._over(asked, done))
        # Waiting this way, unlike awaiting the task, does not cancel it with whoever waits.
        await asyncio.wait((task,))
        if task.cancelled():
            raise Unavailable("this conductor is stopping", reason=Reason.HOST_UNAVAILABLE, host=session.host)
        task.result()

    def _over(self, asked: _Asked, done: asyncio.Task[None]) -> None:
        del self._under_way[asked]
        if not done.cancelled():
            done.exception()  # looked at here, for where nobody waits for it any more

    async def _set(self, session: HostSession, asked: _Asked, *, user: str, password: str) -> None:
        wanted = PasswordWanted(
            question=session.questions.new(),
            instance_id=asked.instance_id,
            placement_epoch=asked.placement_epoch,
            user=user,
            password=password,
        )
        try:
            await session.questions.answer(wanted, PasswordSet, patience_s=self._patience_s)
        except FabricError as failed:
            await self._end(asked, failed)
            raise
        await self._end(asked, None)

    async def _end(self, asked: _Asked, failed: FabricError | None) -> None:
        """Write how it ended. What cannot be written is left to the task's deadline."""
        for tried in range(_TRIES):
            if tried:
                await asyncio.sleep(_PAUSE_S * 2 ** (tried - 1) * (0.5 + self._jitter()))
            try:
                draft = Draft(await records.read(self._store, passwords.reads(asked.host, asked.instance_id)))
                passwords.end(
                    draft,
                    asked.host,
                    asked.epoch,
                    asked.instance_id,
                    request_id=asked.request_id,
                    fault_code="" if failed is None else failed.facts.get("fault", ""),
                    message="" if failed is None else failed.message,
                    now_ms=self._clock.now_ms(),
                    op_id=self._ids.new_id(),
                )
                if await records.commit(self._store, draft):
                    return
            except Unavailable:
                continue
            except Bug as broken:
                # A record that does not parse says nothing of the password: what became of that is what the caller is told.
                log.error(
                    "password.record_broken", host=asked.host, instance=asked.instance_id, why=broken.message
                )
                break
        log.warning("password.task_left", host=asked.host, instance=asked.instance_id)
