"""Wires of a simulated machine: kept in the `FakeMachine`, lost with its power as real taps are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from fabric.model.network_plan import NetworkPlan
from hostd.core.faults import FaultCode, fault_text
from hostd.core.plan_checks import require_sayable
from hostd.core.tap_names import tap_name
from hostd.driver.base import Interface
from hostd.driver.fake import FakeMachine
from hostd.network.base import NetworkError, Wiring
from hostd.network.followed import PLAN_PATIENCE_S

_T = TypeVar("_T")


class FakeWires:
    """`Wires` on a `FakeMachine`."""

    def __init__(self, machine: FakeMachine, *, plan_patience_s: float = PLAN_PATIENCE_S) -> None:
        self._machine = machine
        self._plan_patience_s = plan_patience_s

    async def prepare(self) -> None:
        await self._do("prepare", lambda: None)

    async def follow(self, plan: NetworkPlan) -> None:
        def go_by_it() -> None:
            try:
                require_sayable(plan)
            except ValueError as error:
                raise _error(FaultCode.NETWORK_FAILED) from error
            self._machine.followed.set(plan)

        await self._do("follow", go_by_it)

    async def plug(self, wiring: Wiring) -> tuple[Interface, ...]:
        def wire() -> tuple[Interface, ...]:
            epoch, _ = self._machine.wires.get(wiring.guest.id, (0, ()))
            if epoch > wiring.placement_epoch:
                raise _error(FaultCode.NETWORK_FAILED, "a newer placement is wired here")
            interfaces = tuple(
                Interface(tap=tap_name(port.id), mac=port.mac, mtu=port.mtu) for port in wiring.guest.ports
            )
            for instance_id, (_, others) in self._machine.wires.items():
                if instance_id != wiring.guest.id and self._claims(others) & self._claims(interfaces):
                    raise _error(FaultCode.NETWORK_FAILED, "another server here has its address")
            self._machine.wires[wiring.guest.id] = (wiring.placement_epoch, interfaces)
            return interfaces

        await self._machine.followed.until_it_filters(wiring.guest.ports, self._plan_patience_s)
        return await self._do("plug", wire)

    async def tell(self, wiring: Wiring) -> None:
        """Nobody asks a simulated host for metadata."""

    async def unplug(self, instance_id: str, placement_epoch: int) -> None:
        def unwire() -> None:
            epoch, _ = self._machine.wires.get(instance_id, (0, ()))
            if epoch <= placement_epoch:
                self._machine.wires.pop(instance_id, None)

        await self._do("unplug", unwire)

    async def plugged(self) -> Mapping[str, int]:
        return await self._do(
            "plugged", lambda: {instance_id: epoch for instance_id, (epoch, _) in self._machine.wires.items()}
        )

    async def wired(self, instance_id: str) -> frozenset[str]:
        _, interfaces = self._machine.wires.get(instance_id, (0, ()))
        return frozenset(each.mac for each in interfaces)

    async def close(self) -> None:
        """Nothing of a simulated host is served by the daemon itself."""

    def _claims(self, interfaces: tuple[Interface, ...]) -> set[tuple[str, str]]:
        """The MACs, each with the tenant network that it is on: two tenants may have the same one."""
        plan = self._machine.followed.plan
        networks = {} if plan is None else {port.tap: port.network_id for port in plan.filters.ports}
        return {(networks.get(each.tap, ""), each.mac) for each in interfaces}

    async def _do(self, step: str, work: Callable[[], _T]) -> _T:
        def checked() -> _T:
            fault = self._machine.pop_fault(step)
            if fault is not None:
                raise _error(fault)
            return work()

        return await self._machine.operate(
            "wires",
            self._machine.delays.wire_s,
            checked,
            lambda: _error(FaultCode.NETWORK_FAILED, "the host lost power"),
        )


def _error(code: FaultCode, detail: str = "") -> NetworkError:
    return NetworkError(code, fault_text(code, detail))
