"""What every hypervisor driver must do. Each law gets a rig: a driver, and the hands of somebody who stands beside the machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest

from fabric.model.console import ConsoleKind
from fabric.model.states import PowerState
from fabric.rpc.stream import Stream, StreamClosed
from hostd.core.faults import FaultCode
from hostd.driver.base import DiskFile, Domain, DomainEvent, DomainSpec, Driver, DriverError, Interface
from tests.conformance.guests import an_id

ID = an_id("server")
PATIENCE_S = 60.0


class Rig(Protocol):
    """One machine, with a driver that is open."""

    driver: Driver

    async def another_driver(self) -> Driver:
        """A second daemon on the same machine, open."""
        ...

    def spec(self, *, placement_epoch: int = 1, generation: int = 1) -> DomainSpec:
        """A definition of `ID` that boots (into nothing)."""
        ...

    def empty_disk(self) -> DiskFile:
        """A file for a copy of `ID`'s root disk, there and empty."""
        ...

    def holds_a_copy(self, target: DiskFile) -> bool:
        """Whether that file is a whole copy now."""
        ...

    def crash(self) -> None:
        """Kill the guest's process."""
        ...

    def another_disk(self, word: str) -> DiskFile:
        """Another disk, empty, that the guest may have."""
        ...

    def interface(self, number: int) -> Interface | None:
        """A tap for the guest; None where the machine has no network."""
        ...

    async def add_foreign(self) -> str:
        """Put a domain there that is not ours; its name."""
        ...


Law = Callable[[Rig], Awaitable[None]]


async def seen(driver: Driver) -> Domain:
    domain = await driver.observe(ID)
    assert domain is not None
    return domain


async def news(events: AsyncIterator[DomainEvent], power: PowerState) -> DomainEvent:
    """The next event that says so."""
    async with asyncio.timeout(PATIENCE_S):
        async for event in events:
            if event.power is power:
                return event
    raise AssertionError(f"the events ended before {power!r}")


async def until(driver: Driver, power: PowerState) -> Domain:
    async with asyncio.timeout(PATIENCE_S):
        # By looking: an event may be lost, so what was seen is what counts.
        while (domain := await seen(driver)).power is not power:
            await asyncio.sleep(0.02)
    return domain


async def opening_says_what_is_there(rig: Rig) -> None:
    hypervisor = await rig.driver.open()

    assert hypervisor.kind
    assert hypervisor.version.count(".") == 2
    assert min(hypervisor.total.vcpus, hypervisor.total.ram_mib, hypervisor.total.disk_gib) > 0
    assert f"HW_ARCH_{hypervisor.architecture.upper()}" in hypervisor.traits


async def what_was_never_defined_is_not_there(rig: Rig) -> None:
    assert await rig.driver.observe(ID) is None
    assert await rig.driver.domains() == ()
    await rig.driver.cut_power(ID)
    await rig.driver.forget(ID)
    for act in (rig.driver.start, rig.driver.press_power_button, rig.driver.press_reset_button):
        with pytest.raises(DriverError) as refused:
            await act(ID)
        assert refused.value.code == FaultCode.DOMAIN_MISSING


async def a_definition_is_off_and_carries_our_marks(rig: Rig) -> None:
    await rig.driver.define(rig.spec(placement_epoch=3, generation=7))

    domain = await seen(rig.driver)
    assert (domain.instance_id, domain.placement_epoch, domain.generation) == (ID, 3, 7)
    assert domain.ours
    assert domain.power is PowerState.SHUTDOWN
    assert await rig.driver.domains() == (domain,)


async def defining_again_replaces_the_marks(rig: Rig) -> None:
    await rig.driver.define(rig.spec(generation=1))
    await rig.driver.define(rig.spec(placement_epoch=2, generation=5))

    domain = await seen(rig.driver)
    assert (domain.placement_epoch, domain.generation) == (2, 5)


async def starting_twice_is_success_and_is_told_once(rig: Rig) -> None:
    events = rig.driver.events()
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.start(ID)

    assert (await seen(rig.driver)).power is PowerState.RUNNING
    assert (await news(events, PowerState.RUNNING)).instance_id == ID


async def two_starts_at_once_are_one(rig: Rig) -> None:
    await rig.driver.define(rig.spec())

    await asyncio.gather(rig.driver.start(ID), rig.driver.start(ID))

    assert (await seen(rig.driver)).power is PowerState.RUNNING


async def a_running_domain_keeps_its_marks_until_its_next_start(rig: Rig) -> None:
    await rig.driver.define(rig.spec(generation=1))
    await rig.driver.start(ID)
    await rig.driver.define(rig.spec(generation=2))

    assert (await seen(rig.driver)).generation == 1
    assert (await seen(rig.driver)).power is PowerState.RUNNING

    await rig.driver.cut_power(ID)
    assert (await seen(rig.driver)).generation == 2


async def cutting_power_twice_is_success_and_keeps_the_definition(rig: Rig) -> None:
    events = rig.driver.events()
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.cut_power(ID)
    await rig.driver.cut_power(ID)

    assert (await seen(rig.driver)).power is PowerState.SHUTDOWN
    assert (await news(events, PowerState.SHUTDOWN)).instance_id == ID
    await rig.driver.start(ID)
    assert (await seen(rig.driver)).power is PowerState.RUNNING


async def forgetting_twice_is_success_and_leaves_nothing(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.forget(ID)
    await rig.driver.forget(ID)

    assert await rig.driver.observe(ID) is None
    assert await rig.driver.domains() == ()


async def buttons_of_a_stopped_domain_start_nothing(rig: Rig) -> None:
    await rig.driver.define(rig.spec())

    await rig.driver.press_power_button(ID)
    with pytest.raises(DriverError) as refused:
        await rig.driver.press_reset_button(ID)

    assert refused.value.code == FaultCode.DOMAIN_START_FAILED
    assert (await seen(rig.driver)).power is PowerState.SHUTDOWN


async def buttons_of_a_running_domain_return_at_once(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)

    await rig.driver.press_reset_button(ID)
    await rig.driver.press_power_button(ID)


async def a_crash_is_told_and_seen(rig: Rig) -> None:
    events = rig.driver.events()
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    rig.crash()

    assert (await news(events, PowerState.CRASHED)).instance_id == ID
    await until(rig.driver, PowerState.CRASHED)
    await rig.driver.start(ID)
    assert (await seen(rig.driver)).power is PowerState.RUNNING


async def guests_run_on_when_the_daemon_goes(rig: Rig) -> None:
    await rig.driver.define(rig.spec(placement_epoch=4))
    await rig.driver.start(ID)
    events = rig.driver.events()
    await rig.driver.close()

    assert [event async for event in events] == []
    successor = await rig.another_driver()
    domain = await seen(successor)
    assert (domain.power, domain.placement_epoch) == (PowerState.RUNNING, 4)
    await successor.forget(ID)
    await successor.close()


async def opening_again_ends_the_old_connections_events(rig: Rig) -> None:
    old = rig.driver.events()
    await rig.driver.open()
    new = rig.driver.events()

    assert [event async for event in old] == []
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    assert (await news(new, PowerState.RUNNING)).instance_id == ID


async def a_foreign_domain_is_listed_and_is_not_ours(rig: Rig) -> None:
    name = await rig.add_foreign()

    (domain,) = await rig.driver.domains()
    assert (domain.name, domain.ours, domain.instance_id) == (name, False, "")


async def a_paused_domain_is_seen_so_and_goes_on(rig: Rig) -> None:
    events = rig.driver.events()
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.hold(ID, PowerState.PAUSED)
    await rig.driver.hold(ID, PowerState.PAUSED)

    assert (await seen(rig.driver)).power is PowerState.PAUSED
    assert (await news(events, PowerState.PAUSED)).instance_id == ID
    await rig.driver.go_on(ID)
    await rig.driver.go_on(ID)
    assert (await seen(rig.driver)).power is PowerState.RUNNING


async def a_suspended_domain_comes_back_by_a_start_as_what_it_was(rig: Rig) -> None:
    await rig.driver.define(rig.spec(generation=1))
    await rig.driver.start(ID)
    await rig.driver.hold(ID, PowerState.SUSPENDED)
    await rig.driver.hold(ID, PowerState.SUSPENDED)

    assert (await seen(rig.driver)).power is PowerState.SUSPENDED
    await rig.driver.define(rig.spec(generation=2))
    await rig.driver.start(ID)
    assert (await seen(rig.driver)).power is PowerState.RUNNING


async def a_paused_domain_can_be_suspended(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.hold(ID, PowerState.PAUSED)
    await rig.driver.hold(ID, PowerState.SUSPENDED)

    assert (await seen(rig.driver)).power is PowerState.SUSPENDED


async def cutting_the_power_of_who_is_held_drops_its_memory(rig: Rig) -> None:
    for power in (PowerState.PAUSED, PowerState.SUSPENDED):
        await rig.driver.define(rig.spec())
        await rig.driver.start(ID)
        await rig.driver.hold(ID, power)
        await rig.driver.cut_power(ID)

        assert (await seen(rig.driver)).power is PowerState.SHUTDOWN


async def forgetting_who_is_suspended_leaves_nothing(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.hold(ID, PowerState.SUSPENDED)
    await rig.driver.forget(ID)

    assert await rig.driver.observe(ID) is None
    assert await rig.driver.domains() == ()


async def who_is_off_cannot_be_held_or_let_go_on(rig: Rig) -> None:
    for power in (PowerState.PAUSED, PowerState.SUSPENDED):
        with pytest.raises(DriverError):
            await rig.driver.hold(ID, power)
    with pytest.raises(DriverError) as missing:
        await rig.driver.go_on(ID)
    assert missing.value.code == FaultCode.DOMAIN_MISSING

    await rig.driver.define(rig.spec())
    for power in (PowerState.PAUSED, PowerState.SUSPENDED):
        with pytest.raises(DriverError):
            await rig.driver.hold(ID, power)
    with pytest.raises(DriverError) as refused:
        await rig.driver.go_on(ID)

    assert refused.value.code == FaultCode.DOMAIN_RESUME_FAILED
    assert (await seen(rig.driver)).power is PowerState.SHUTDOWN


async def the_disk_of_a_guest_that_runs_or_is_paused_is_copied(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    for power in (PowerState.RUNNING, PowerState.PAUSED):
        target = rig.empty_disk()
        await rig.driver.copy_disk(ID, "root", target)

        assert rig.holds_a_copy(target)
        assert (await seen(rig.driver)).power is power
        if power is PowerState.RUNNING:
            await rig.driver.hold(ID, PowerState.PAUSED)


async def a_guest_that_is_off_has_no_disk_to_copy_for_its_hypervisor(rig: Rig) -> None:
    await rig.driver.define(rig.spec())

    with pytest.raises(DriverError) as refused:
        await rig.driver.copy_disk(ID, "root", rig.empty_disk())

    assert refused.value.code == FaultCode.GUEST_OFF


async def a_disk_that_is_not_there_is_not_copied(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)

    with pytest.raises(DriverError) as refused:
        await rig.driver.copy_disk(ID, "another", rig.empty_disk())

    assert refused.value.code == FaultCode.SNAPSHOT_FAILED


async def a_copy_that_is_given_up_does_not_hinder_the_next(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    given_up = asyncio.create_task(rig.driver.copy_disk(ID, "root", rig.empty_disk()))
    await asyncio.sleep(0.01)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    target = rig.empty_disk()

    await rig.driver.copy_disk(ID, "root", target)

    assert rig.holds_a_copy(target)


async def a_disk_plugged_in_is_seen_and_twice_is_success(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.attach_disk(ID, rig.another_disk("one"))
    await rig.driver.attach_disk(ID, rig.another_disk("two"))
    await rig.driver.attach_disk(ID, rig.another_disk("one"))

    assert (await seen(rig.driver)).disks == (
        "root",
        rig.another_disk("one").serial,
        rig.another_disk("two").serial,
    )


async def what_was_plugged_in_goes_with_the_power(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.attach_disk(ID, rig.another_disk("one"))
    await rig.driver.cut_power(ID)
    await rig.driver.start(ID)

    assert (await seen(rig.driver)).disks == ("root",)


async def what_was_plugged_in_is_seen_while_it_is_held(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.attach_disk(ID, rig.another_disk("one"))
    for power in (PowerState.PAUSED, PowerState.SUSPENDED):
        await rig.driver.hold(ID, power)

        assert (await seen(rig.driver)).disks == ("root", rig.another_disk("one").serial)


async def an_interface_plugged_in_is_seen_and_twice_is_success(rig: Rig) -> None:
    interface = rig.interface(1)
    if interface is None:
        pytest.skip("the machine has no network")
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.attach_interface(ID, interface)
    await rig.driver.attach_interface(ID, interface)

    assert (await seen(rig.driver)).macs == (interface.mac,)


async def asking_for_what_is_not_there_is_success(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)

    await rig.driver.detach_disk(ID, rig.another_disk("one").serial)
    await rig.driver.detach_interface(ID, "fa:16:3e:00:00:77")


async def who_is_asked_twice_for_a_disk_is_no_failure(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    await rig.driver.attach_disk(ID, rig.another_disk("one"))

    await rig.driver.detach_disk(ID, rig.another_disk("one").serial)
    await rig.driver.detach_disk(ID, rig.another_disk("one").serial)


async def nothing_is_plugged_into_who_is_off(rig: Rig) -> None:
    with pytest.raises(DriverError) as missing:
        await rig.driver.attach_disk(ID, rig.another_disk("one"))
    assert missing.value.code == FaultCode.DOMAIN_MISSING

    await rig.driver.define(rig.spec())
    for act in (rig.driver.attach_disk(ID, rig.another_disk("one")), rig.driver.detach_disk(ID, "root")):
        with pytest.raises(DriverError) as refused:
            await act
        assert refused.value.code == FaultCode.GUEST_OFF


async def a_domain_that_is_not_on_has_no_consoles_and_answers_nothing(rig: Rig) -> None:
    await rig.driver.define(rig.spec())

    for kind in (ConsoleKind.SERIAL, ConsoleKind.VNC):
        with pytest.raises(DriverError):
            await rig.driver.open_console(ID, kind)
    with pytest.raises(DriverError) as off:
        await rig.driver.agent(ID, "guest-ping", {}, timeout_s=1.0)
    assert off.value.code == FaultCode.GUEST_OFF


async def consoles_go_with_their_domain(rig: Rig) -> None:
    await rig.driver.define(rig.spec())
    await rig.driver.start(ID)
    serial = await rig.driver.open_console(ID, ConsoleKind.SERIAL)
    screen = await rig.driver.open_console(ID, ConsoleKind.VNC)
    said = b""
    async with asyncio.timeout(PATIENCE_S):
        while len(said) < 12:
            said += await screen.receive()
    assert said[:12] == b"RFB 003.008\n"

    await rig.driver.cut_power(ID)

    for stream in (serial, screen):
        with pytest.raises(StreamClosed):
            await _to_its_end(stream)
        await stream.close()
        await stream.close()


async def _to_its_end(stream: Stream) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await stream.receive()


async def counters_are_of_what_the_domain_has(rig: Rig) -> None:
    spec = rig.spec()
    await rig.driver.define(spec)
    await rig.driver.start(ID)

    found = await rig.driver.diagnostics(ID)

    assert found.power is PowerState.RUNNING
    assert len(found.vcpu_time_ms) == spec.guest.vcpus
    assert found.memory_kib == spec.guest.ram_mib * 1024
    assert len(found.disks) == len(spec.disks)
    assert [each.mac for each in found.interfaces] == [each.mac for each in spec.interfaces]


LAWS: tuple[Law, ...] = (
    a_domain_that_is_not_on_has_no_consoles_and_answers_nothing,
    consoles_go_with_their_domain,
    counters_are_of_what_the_domain_has,
    opening_says_what_is_there,
    what_was_never_defined_is_not_there,
    a_definition_is_off_and_carries_our_marks,
    defining_again_replaces_the_marks,
    starting_twice_is_success_and_is_told_once,
    two_starts_at_once_are_one,
    a_running_domain_keeps_its_marks_until_its_next_start,
    cutting_power_twice_is_success_and_keeps_the_definition,
    forgetting_twice_is_success_and_leaves_nothing,
    buttons_of_a_stopped_domain_start_nothing,
    buttons_of_a_running_domain_return_at_once,
    a_crash_is_told_and_seen,
    guests_run_on_when_the_daemon_goes,
    opening_again_ends_the_old_connections_events,
    a_foreign_domain_is_listed_and_is_not_ours,
    a_paused_domain_is_seen_so_and_goes_on,
    a_suspended_domain_comes_back_by_a_start_as_what_it_was,
    a_paused_domain_can_be_suspended,
    cutting_the_power_of_who_is_held_drops_its_memory,
    forgetting_who_is_suspended_leaves_nothing,
    who_is_off_cannot_be_held_or_let_go_on,
    the_disk_of_a_guest_that_runs_or_is_paused_is_copied,
    a_guest_that_is_off_has_no_disk_to_copy_for_its_hypervisor,
    a_disk_that_is_not_there_is_not_copied,
    a_copy_that_is_given_up_does_not_hinder_the_next,
    a_disk_plugged_in_is_seen_and_twice_is_success,
    what_was_plugged_in_goes_with_the_power,
    what_was_plugged_in_is_seen_while_it_is_held,
    an_interface_plugged_in_is_seen_and_twice_is_success,
    asking_for_what_is_not_there_is_success,
    who_is_asked_twice_for_a_disk_is_no_failure,
    nothing_is_plugged_into_who_is_off,
)
