"""Guests on tenant networks by the daemon as it ships, on a simulated machine: their plan comes by another way than their order."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fabric.model.session import HostState, Order
from hostd.core.faults import FaultCode
from hostd.network.fake import FakeWires
from tests.conformance.guests import a_plan, a_tenant_port
from tests.unit.hostd.bench import Bench, on_a_bench
from tests.unit.hostd.orders import instance_id, order, release

ONE = instance_id(1)


def on_a_tenant_network(before: Order) -> Order:
    """The order for a guest with a second interface, on a tenant network."""
    ports = (*before.guest.ports, a_tenant_port(1))
    return replace(before, guest=replace(before.guest, ports=ports))


def test_a_guest_runs_when_the_plan_for_its_port_has_come() -> None:
    async def scenario(bench: Bench) -> None:
        given = on_a_tenant_network(order())
        await bench.conductor.give(given)
        bench.process.start()
        await asyncio.sleep(10)
        assert bench.machine.running() == {}

        await FakeWires(bench.machine).follow(a_plan(given.guest))

        await bench.until(lambda: bench.machine.running() == {ONE: 1}, within_s=5)
        _, interfaces = bench.machine.wires[ONE]
        assert [each.mac for each in interfaces] == [port.mac for port in given.guest.ports]

    on_a_bench(scenario)


def test_a_guest_whose_plan_does_not_come_fails_and_says_why() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.conductor.give(on_a_tenant_network(order()))
        bench.process.start()
        await bench.until(lambda: HostState.ERROR in bench.conductor.states(ONE))

        assert bench.conductor.statuses(ONE)[-1].fault_code == FaultCode.NETWORK_PLAN_MISSING

    on_a_bench(scenario)


def test_a_guest_that_nobody_wants_any_more_does_not_wait_for_its_plan() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.conductor.give(on_a_tenant_network(order()))
        bench.process.start()
        await asyncio.sleep(10)
        await bench.conductor.release(release())

        await bench.until(lambda: ONE not in bench.machine.domains and not bench.machine.folders, within_s=5)
        assert bench.machine.wires == {}

    on_a_bench(scenario)
