"""The simulated machine's faults, and that it is a machine: what it does goes on without whoever asked for it."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from dataclasses import replace

import pytest

from fabric.model.states import PowerState
from hostd.core.faults import FaultCode
from hostd.driver.base import DiskFile, DomainSpec, DriverError
from hostd.driver.fake import INSTANT, FakeDriver, FakeMachine, MachineEvent
from hostd.images.base import Held
from hostd.images.fake import FakeDisks
from hostd.network.base import Wiring
from hostd.network.fake import FakeWires
from tests.conformance.guests import a_guest, a_port

GUEST = a_guest("one", ports=(a_port(),))
SPEC = DomainSpec(
    guest=GUEST,
    placement_epoch=2,
    generation=5,
    disks=(DiskFile(path="/fake/root", format="qcow2", serial="root"),),
    interfaces=(),
)


def a_machine(**delays: float) -> tuple[FakeMachine, list[MachineEvent]]:
    happened: list[MachineEvent] = []
    machine = FakeMachine("h1", delays=replace(INSTANT, **delays), record=happened.append)
    return machine, happened


async def a_running_guest(machine: FakeMachine) -> FakeDriver:
    driver = FakeDriver(machine)
    await driver.open()
    await driver.define(SPEC)
    await driver.start(GUEST.id)
    return driver


async def test_a_start_goes_on_when_its_daemon_dies() -> None:
    machine, happened = a_machine(start_s=0.02)
    driver = FakeDriver(machine)
    await driver.define(SPEC)
    asked = asyncio.create_task(driver.start(GUEST.id))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert machine.running() == {}

    await machine.settle()

    assert machine.running() == {GUEST.id: 2}
    assert happened[-1] == MachineEvent(
        host="h1", kind="started", instance_id=GUEST.id, placement_epoch=2, generation=5
    )


async def test_the_next_daemon_waits_for_what_the_last_one_began() -> None:
    machine, happened = a_machine(start_s=0.02)
    driver = FakeDriver(machine)
    await driver.define(SPEC)
    asked = asyncio.create_task(driver.start(GUEST.id))
    await asyncio.sleep(0)
    asked.cancel()

    await FakeDriver(machine).cut_power(GUEST.id)

    assert [event.kind for event in happened] == ["defined", "started", "stopped"]
    assert machine.running() == {}


async def test_lost_power_stops_all_and_starts_none() -> None:
    machine, happened = a_machine()
    driver = await a_running_guest(machine)
    await FakeWires(machine).plug(Wiring(guest=GUEST, placement_epoch=2))
    events = driver.events()

    machine.power_cycle()

    assert machine.running() == {}
    assert [event async for event in events] == []
    assert [event.kind for event in happened][-3:] == ["power_lost", "stopped", "power_back"]
    assert await FakeWires(machine).plugged() == {}
    domain = await driver.observe(GUEST.id)
    assert domain is not None
    assert domain.power is PowerState.SHUTDOWN


async def test_an_operation_in_flight_dies_with_the_power() -> None:
    machine, _ = a_machine(start_s=0.02)
    driver = FakeDriver(machine)
    await driver.define(SPEC)
    asked = asyncio.create_task(driver.start(GUEST.id))
    await asyncio.sleep(0)

    machine.power_cycle()

    with pytest.raises(DriverError) as refused:
        await asked
    assert refused.value.code == FaultCode.HYPERVISOR_UNAVAILABLE
    assert machine.running() == {}


@pytest.mark.parametrize("death", ["cancelled", "killed"])
async def test_an_operation_that_dies_after_its_daemon_troubles_nobody(death: str) -> None:
    troubles: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble["message"]))
    machine, _ = a_machine(start_s=0.02)
    driver = FakeDriver(machine)
    await driver.define(SPEC)
    if death == "cancelled":
        asked = asyncio.create_task(driver.start(GUEST.id))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        del asked
        machine.lose_power()
        await machine.settle()
    else:
        # As the simulation kills: it never goes on from where it waits.
        waiting = driver.start(GUEST.id)
        waiting.send(None)
        machine.lose_power()
        await machine.settle()
        await asyncio.sleep(0)
        del waiting
    gc.collect()

    assert troubles == []


async def test_a_step_fails_as_often_as_it_was_told() -> None:
    machine, _ = a_machine()
    machine.fail_next["start"] = deque([FaultCode.DOMAIN_START_FAILED])
    driver = FakeDriver(machine)
    await driver.define(SPEC)

    with pytest.raises(DriverError) as refused:
        await driver.start(GUEST.id)
    assert refused.value.code == FaultCode.DOMAIN_START_FAILED
    await driver.start(GUEST.id)


async def test_a_lost_event_is_heard_by_nobody_but_seen_by_looking() -> None:
    machine, _ = a_machine()
    driver = await a_running_guest(machine)
    events = driver.events()
    machine.lost_events = 1

    machine.crash_guest(GUEST.id)
    await driver.start(GUEST.id)
    await driver.close()

    assert [event.power async for event in events] == [PowerState.RUNNING]


async def test_a_dead_hypervisor_stops_no_guest() -> None:
    machine, _ = a_machine()
    driver = await a_running_guest(machine)

    machine.hypervisor_up = False

    for call in (driver.open(), driver.observe(GUEST.id), driver.cut_power(GUEST.id)):
        with pytest.raises(DriverError) as refused:
            await call
        assert refused.value.code == FaultCode.HYPERVISOR_UNAVAILABLE
    assert machine.running() == {GUEST.id: 2}


async def test_a_deaf_guest_runs_on_and_another_shuts_down() -> None:
    machine, _ = a_machine()
    driver = await a_running_guest(machine)
    machine.deaf.add(GUEST.id)
    await driver.press_power_button(GUEST.id)
    await machine.settle()
    assert machine.running() == {GUEST.id: 2}

    machine.deaf.clear()
    await driver.press_power_button(GUEST.id)
    await machine.settle()
    assert machine.running() == {}


async def test_a_button_pressed_long_ago_stops_no_later_boot() -> None:
    machine, _ = a_machine(guest_shutdown_s=0.02)
    driver = await a_running_guest(machine)
    await driver.press_power_button(GUEST.id)
    await driver.cut_power(GUEST.id)
    await driver.define(replace(SPEC, generation=6))
    await driver.start(GUEST.id)

    await machine.settle()

    assert machine.running() == {GUEST.id: 2}


async def test_a_console_tells_of_every_boot() -> None:
    machine, _ = a_machine()
    driver = await a_running_guest(machine)
    await driver.press_reset_button(GUEST.id)
    await machine.settle()

    log = await FakeDisks(machine).console_log(GUEST.id, 2, 1000)
    assert log == machine.consoles[Held(GUEST.id, 2)]
    assert log.count(b"boot") == 2


async def test_two_runs_are_the_same() -> None:
    async def run() -> list[MachineEvent]:
        machine, happened = a_machine(start_s=0.002, cut_power_s=0.001)
        driver = FakeDriver(machine)
        await driver.define(SPEC)
        await asyncio.gather(driver.start(GUEST.id), driver.cut_power(GUEST.id), driver.start(GUEST.id))
        machine.power_cycle()
        return happened

    assert await run() == await run()
