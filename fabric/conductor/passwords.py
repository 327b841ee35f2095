"""Passwords on their way into guests: asked of the host, and the task that stands for it ended with what became of it.

The password itself is in the question and nowhere else: not in a record, not in a log, not in an error. A conductor that dies in the middle
leaves the task to its deadline, like any other.
"""

from __future__ import annotations

import structlog

from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.core import passwords
from fabric.conductor.core.draft import Draft
from fabric.conductor.sessions import HostSession
from fabric.errors import FabricError, Unavailable
from fabric.ids import Ids
from fabric.model.session import PasswordSet, PasswordWanted
from fabric.store.base import Store

log = structlog.get_logger()

_TRIES = 5


class PasswordTasks:
    """See the module."""

    def __init__(self, store: Store, *, clock: Clock, ids: Ids, patience_s: float) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._patience_s = patience_s

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
        """Ask the host, and end the task. Raises what `Questions.answer` raises."""
        wanted = PasswordWanted(
            question=session.questions.new(),
            instance_id=instance_id,
            placement_epoch=placement_epoch,
            user=user,
            password=password,
        )
        try:
            await session.questions.answer(wanted, PasswordSet, patience_s=self._patience_s)
        except FabricError as failed:
            await self._end(session, instance_id, request_id, failed)
            raise
        await self._end(session, instance_id, request_id, None)

    async def _end(
        self, session: HostSession, instance_id: str, request_id: str, failed: FabricError | None
    ) -> None:
        """Write how it ended. What cannot be written is left to the task's deadline."""
        for _ in range(_TRIES):
            try:
                reads = passwords.reads(session.host, instance_id)
                draft = Draft(await records.read(self._store, reads))
                passwords.end(
                    draft,
                    session.host,
                    session.epoch,
                    instance_id,
                    request_id=request_id,
                    fault_code="" if failed is None else failed.facts.get("fault", ""),
                    message="" if failed is None else failed.message,
                    now_ms=self._clock.now_ms(),
                    op_id=self._ids.new_id(),
                )
                if await records.commit(self._store, draft):
                    return
            except Unavailable:
                continue
        log.warning("password.task_left", host=session.host, instance=instance_id)
