"""Tells hosts their network plans: at the beginning of a session, and whenever they differ from what was told last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from fabric.clock import Clock
from fabric.conductor.core.guard import Lines
from fabric.conductor.core.plan_telling import Next, Told, next_of
from fabric.deadlines import within
from fabric.errors import FabricError
from fabric.model.host import Host
from fabric.model.network_plan import PlanState
from fabric.model.session import FromConductor, PlanFollowed, PlanPart
from fabric.network.core.plans import Planned, plan_of
from fabric.network.follower import NetworkFollower
from fabric.rpc.plan_codec import PLAN_LIMIT_BYTES, PlanPacker
from fabric.store.keys import HOST
from fabric.store.picture import Picture

log = structlog.get_logger()

PART_BYTES: Final = 768 * 1024
"""A part of a plan; with what is around it, well below what one message may have."""

_LOOK_AGAIN_S: Final = 0.5
"""How soon a plan that could not be made is tried again. What makes it possible is not always an event."""

_HOLD_S: Final = 0.05


class Plans:
    """Makes plans of hosts of one cell, of what is known now."""

    def __init__(self, follower: NetworkFollower, hosts: Picture[Host], *, clock: Clock) -> None:
        self.clock = clock
        self.packer = PlanPacker()
        self._follower = follower
        self._hosts = hosts
        # Said once, and not at every look.
        self._unmade: dict[str, str] = {}

    @property
    def revision(self) -> int:
        """The global store's revision that plans are of."""
        return self._follower.revision

    def of(self, host: str) -> Planned | None:
        """A host's plan; None while there is no telling.

        An old picture is no ground to take anything away, and a record that no host can have is none to end the host's session.
        """
        held = self._hosts.entries.get(HOST.at(host))
        if held is None or not self._follower.is_fresh:
            return None
        try:
            planned = plan_of(held.value, self._follower.picture)
        except ValueError as broken:
            if self._unmade.get(host) != str(broken):
                self._unmade[host] = str(broken)
                log.error("plan.not_made", host=host, why=str(broken))
            return None
        self._unmade.pop(host, None)
        return planned


class PlanTelling:
    """One session's plans. `say` queues a message for the host."""

    def __init__(self, plans: Plans, host: str, say: Callable[[FromConductor], None]) -> None:
        self._plans = plans
        self._host = host
        self._say = say
        self._epoch = 0
        self._told = Told()
        self._faults = Lines()
        self._news = asyncio.Event()
        self._answered = asyncio.Event()

    def begin(self, epoch: int) -> None:
        """The session is granted: tell what can be told at once, so that the orders that follow find it."""
        self._epoch = epoch
        self._tell()
        self._news.set()

    def changed(self) -> None:
        """The host's plan may be another now."""
        self._news.set()

    def heard(self, followed: PlanFollowed) -> bool:
        """What became of a plan; False where the host was never told it."""
        told = self._told.heard(followed, self._plans.clock.boot_s())
        if told is None:
            return False
        self._told = told
        self._answered.set()
        if followed.fault_code:
            self._faults, count = self._faults.one_more(self._plans.clock.boot_s())
            if count:
                log.warning(
                    "plan.not_followed",
                    host=self._host,
                    revision=followed.revision,
                    code=followed.fault_code,
                    words=followed.fault_message,
                    faults=count,
                )
        return True

    def state(self) -> PlanState:
        """How far the host has got."""
        told, now_s = self._told, self._plans.clock.boot_s()
        planned = self._plans.of(self._host)
        return PlanState(
            revision=told.revision,
            followed=told.followed,
            told_age_ms=int((now_s - told.told_s) * 1000) if told.revision else 0,
            followed_age_ms=int((now_s - told.followed_s) * 1000) if told.followed else 0,
            fault_code=told.fault_code,
            fault_message=told.fault_message,
            is_current=planned is not None and planned.plan == told.plan,
        )

    async def run(self) -> None:
        """Tell what changes, for ever."""
        while True:
            await self._news.wait()
            await self._until_answered()
            self._news.clear()
            await self._told_or_later()

    async def _told_or_later(self) -> None:
        wait_s = self._tell()
        if wait_s:
            await asyncio.sleep(wait_s)
            self._news.set()

    async def _until_answered(self) -> None:
        while wait_s := self._told.wait_s(self._plans.clock.boot_s()):
            self._answered.clear()
            try:
                async with within(wait_s):
                    await self._answered.wait()
            except TimeoutError:
                return

    def _tell(self) -> float:
        """Tell the plan as it is now, if it is another. Returns in how many seconds to look again; 0 for not before there is news."""
        plans, now_s = self._plans, self._plans.clock.boot_s()
        planned = plans.of(self._host)
        if planned is None:
            return _LOOK_AGAIN_S
        self._told = self._told.seeing(planned.missing, now_s)
        match next_of(self._told, planned, now_s):
            case Next.HOLD:
                return _HOLD_S
            case Next.TELL:
                self._send(planned, now_s)
        return 0.0

    def _send(self, planned: Planned, now_s: float) -> None:
        if planned.missing:
            log.warning("plan.incomplete", host=self._host, missing=sorted(planned.missing)[:8])
        try:
            data = self._plans.packer.pack(planned.plan)
        except (FabricError, ValueError) as broken:
            log.error("plan.unspeakable", host=self._host, error=type(broken).__name__)
            return
        if len(data) > PLAN_LIMIT_BYTES:
            log.error("plan.too_large", host=self._host, bytes=len(data))
            return
        self._told = self._told.telling(planned.plan, self._plans.revision, now_s)
        for start in range(0, max(len(data), 1), PART_BYTES):
            self._say(
                PlanPart(
                    epoch=self._epoch,
                    revision=self._told.revision,
                    data=data[start : start + PART_BYTES],
                    last=start + PART_BYTES >= len(data),
                )
            )
        log.info("plan.told", host=self._host, revision=self._told.revision, bytes=len(data))
