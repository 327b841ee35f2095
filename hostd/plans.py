"""Follows the network plan that the conductor told last: one at a time, outside of the session, and again until it has worked.

Plans that come while one is followed replace each other: only the newest is of use. A plan once told is followed whatever becomes of the
session, and what the wires followed last they keep by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from fabric.deadlines import within
from fabric.errors import InvalidRequest
from fabric.model.session import PlanFollowed, PlanPart
from fabric.rpc.plan_codec import PLAN_LIMIT_BYTES, PlanReader
from hostd.core.faults import FaultCode, fault_text
from hostd.network.base import NetworkError, Wires

_log = structlog.get_logger(__name__)

_FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 15.0


@dataclass(frozen=True, slots=True)
class ToldPlan:
    """A plan as it was told, whole but not yet read."""

    epoch: int
    revision: int
    data: bytes


class PlanParts:
    """Puts the parts of plans together. Parts of one revision come in order, as everything of a stream does."""

    def __init__(self) -> None:
        self._revision = 0
        self._parts: list[bytes] = []

    def add(self, part: PlanPart) -> ToldPlan | None:
        """The plan, when it is whole with this part."""
        if part.revision != self._revision:
            self._revision, self._parts = part.revision, []
        self._parts.append(part.data)
        if sum(map(len, self._parts)) > PLAN_LIMIT_BYTES:
            raise InvalidRequest(f"the plan has more than {PLAN_LIMIT_BYTES} bytes", field="data")
        if not part.last:
            return None
        plan = ToldPlan(part.epoch, part.revision, b"".join(self._parts))
        self._parts = []
        return plan


class PlanFollower:
    """See the module. `told` is given what became of each plan; it must not wait."""

    def __init__(
        self,
        wires: Wires,
        *,
        jitter: Callable[[], float],
        told: Callable[[PlanFollowed], None],
    ) -> None:
        self._wires = wires
        self._jitter = jitter
        self._told = told
        self._reader = PlanReader()
        self._wanted: ToldPlan | None = None
        self._news = asyncio.Event()

    def want(self, plan: ToldPlan) -> None:
        """Follow this one instead of any before it."""
        self._wanted = plan
        self._news.set()

    async def run(self) -> None:
        """Follow for ever."""
        failures = 0
        while True:
            if failures:
                await self._rest(failures)
            else:
                await self._news.wait()
            if self._news.is_set():
                failures = 0
            self._news.clear()
            plan = self._wanted
            if plan is not None:
                fault = await self._follow(plan)
                failures = failures + 1 if fault is not None else 0
                self._told(_answer(plan, fault))

    async def _rest(self, failures: int) -> None:
        """Wait before the same plan is tried again, unless there is another."""
        longest_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(failures - 1, 10))
        try:
            async with within(longest_s * (0.5 + 0.5 * self._jitter())):
                await self._news.wait()
        except TimeoutError:
            return

    async def _follow(self, plan: ToldPlan) -> NetworkError | None:
        """Follow a plan; what came in the way, if anything did."""
        try:
            await self._wires.follow(self._reader.read(plan.data))
        except NetworkError as failed:
            _log.warning("plan.not_followed", revision=plan.revision, code=failed.code, reason=failed.message)
            return failed
        except InvalidRequest as broken:
            _log.error("plan.unreadable", revision=plan.revision, reason=broken.message)
            code = FaultCode.NETWORK_FAILED
            return NetworkError(code, fault_text(code, broken.message))
        except Exception:  # noqa: BLE001 - logged and told; a plan must not end the daemon, and is tried again
            _log.exception("plan.failed", revision=plan.revision)
            code = FaultCode.NETWORK_FAILED
            return NetworkError(code, fault_text(code))
        _log.info("plan.followed", revision=plan.revision, bytes=len(plan.data))
        return None


def _answer(plan: ToldPlan, fault: NetworkError | None) -> PlanFollowed:
    return PlanFollowed(
        epoch=plan.epoch,
        revision=plan.revision,
        fault_code="" if fault is None else fault.code,
        fault_message="" if fault is None else fault.message,
    )
