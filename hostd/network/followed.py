"""The plan that was followed last, and those who wait for one with filters for their ports."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from fabric.deadlines import within
from fabric.model.network import Port
from fabric.model.network_plan import NetworkPlan
from hostd.core.faults import FaultCode, fault_text
from hostd.network.base import NetworkError

PLAN_PATIENCE_S: Final = 30.0
"""How long a guest's wiring waits for a plan that filters its ports."""


class FollowedPlan:
    """`plan` is None until one was followed."""

    def __init__(self) -> None:
        self.plan: NetworkPlan | None = None
        self._next = asyncio.Event()

    def set(self, plan: NetworkPlan) -> None:
        """Have it: it was followed."""
        self.plan = plan
        bell, self._next = self._next, asyncio.Event()
        bell.set()

    def filters(self, ports: Iterable[Port]) -> bool:
        """Whether it has a filter for each of those ports that are on tenant networks."""
        tenant = {port.id for port in ports if port.vni}
        return not tenant or (
            self.plan is not None and tenant <= {port.port_id for port in self.plan.filters.ports}
        )

    async def until_it_filters(self, ports: Iterable[Port], patience_s: float) -> None:
        """Wait for that. Raises NetworkError when it takes longer than `patience_s`."""
        ports = tuple(ports)
        try:
            async with within(patience_s):
                while not self.filters(ports):
                    await self._next.wait()
        except TimeoutError:
            code = FaultCode.NETWORK_PLAN_MISSING
            raise NetworkError(code, fault_text(code)) from None
