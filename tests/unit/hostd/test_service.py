"""The daemon as it ships, against a conductor that follows a script."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fabric.model.instance import OneShot
from fabric.model.session import (
    HostState,
    Inventory,
    Progress,
    Released,
    Report,
)
from fabric.model.states import PowerState, Want
from hostd.core.faults import FaultCode
from tests.conformance.guests import a_tenant_port
from tests.unit.hostd.bench import CHUNK, Bench, on_a_bench, raised
from tests.unit.hostd.orders import IMAGE, IMAGE_BYTES, instance_id, order, release

ONE = instance_id(1)
ACTIVE, STOPPED, ERROR, ABSENT = HostState.ACTIVE, HostState.STOPPED, HostState.ERROR, HostState.ABSENT


def test_an_order_to_run_ends_with_a_running_guest_and_its_status() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)

        assert bench.machine.running() == {ONE: 1}
        assert bench.kinds(ONE) == ["defined", "started"]
        (said,) = bench.conductor.statuses(ONE)
        assert (said.placement_epoch, said.generation, said.power) == (1, 1, PowerState.RUNNING)
        assert said.epoch == bench.conductor.epoch

    on_a_bench(scenario)


def test_a_session_tells_what_is_held_and_what_was_measured() -> None:
    async def scenario(bench: Bench) -> None:
        bench.machine.strays.append("somebody-else-s")
        await raised(bench)
        await bench.until(lambda: any(report.running == 1 for report in bench.conductor.of(Report)))

        (inventory,) = bench.conductor.of(Inventory)
        assert inventory.strays == ("somebody-else-s",)
        report = bench.conductor.of(Report)[-1]
        assert report.total == bench.machine.total
        assert (report.used.ram_mib, report.health, report.hypervisor) == (256, "ok", "fake/none")

    on_a_bench(scenario)


def test_progress_is_shown_step_by_step_and_percents_once_a_second() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)

        steps = [shown.step for shown in bench.conductor.of(Progress)]
        assert list(dict.fromkeys(steps)) == ["image", "networking", "spawning"]
        assert len(steps) <= 6

    on_a_bench(scenario)


def test_a_guest_that_hears_the_button_is_stopped_without_a_cut() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(order(Want.STOP, generation=2))
        await bench.until(lambda: STOPPED in bench.conductor.states(ONE), within_s=10)

        assert [event.detail for event in bench.events if event.kind == "stopped"] == ["by the guest"]

    on_a_bench(scenario)


def test_a_deaf_guest_s_power_is_cut_after_its_timeout_and_not_before() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.deaf.add(ONE)
        asked_s = bench.loop.time()
        await bench.conductor.give(order(Want.STOP, generation=2, stop_timeout_s=25))
        await bench.until(lambda: STOPPED in bench.conductor.states(ONE))

        assert 25 <= bench.loop.time() - asked_s < 30
        assert bench.killer.visits["hostd.stop.pressed"] == 3

    on_a_bench(scenario)


def test_a_deleted_guest_leaves_nothing_behind_but_a_tombstone() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(order(Want.ABSENT, generation=2))
        await bench.until(lambda: ABSENT in bench.conductor.states(ONE))

        assert (bench.machine.domains, bench.machine.folders, bench.machine.wires) == ({}, {}, {})
        assert bench.memory.rows[ONE].released

    on_a_bench(scenario)


def test_a_delete_does_not_wait_for_a_download() -> None:
    async def scenario(bench: Bench) -> None:
        bench.conductor.relays_images = False
        bench.conductor.orders[ONE] = order()
        bench.process.start()
        await bench.until(lambda: len(bench.conductor.asked_for) > 0)
        await bench.conductor.give(order(Want.ABSENT, generation=2))

        await bench.until(lambda: ABSENT in bench.conductor.states(ONE), within_s=1)

    on_a_bench(scenario)


def test_a_hard_reboot_cuts_redefines_and_starts_once() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(order(generation=2, action_seq=1, action=OneShot.REBOOT_HARD))
        await bench.until(lambda: bench.conductor.statuses(ONE)[-1].action_seq == 1)

        assert bench.kinds(ONE) == ["defined", "started", "stopped", "defined", "started"]
        assert bench.memory.rows[ONE].action_done == 1

    on_a_bench(scenario)


def test_a_soft_reboot_is_the_guest_s_own() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(order(generation=2, action_seq=1, action=OneShot.REBOOT_SOFT))
        await bench.until(lambda: bench.conductor.statuses(ONE)[-1].action_seq == 1, within_s=10)

        assert bench.kinds(ONE) == ["defined", "started", "reset"]

    on_a_bench(scenario)


def test_a_soft_reboot_that_nobody_hears_of_ends_as_a_hard_one() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.deaf.add(ONE)
        await bench.conductor.give(order(generation=2, action_seq=1, action=OneShot.REBOOT_SOFT))
        await bench.until(lambda: bench.conductor.statuses(ONE)[-1].action_seq == 1)

        assert bench.kinds(ONE) == ["defined", "started", "stopped", "defined", "started"]

    on_a_bench(scenario)


def test_a_guest_that_shuts_itself_down_is_told_and_stays_down() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.shut_down_guest(ONE)
        await bench.until(lambda: bench.conductor.states(ONE)[-1] is STOPPED, within_s=2)
        await bench.conductor.hang_up()
        await asyncio.sleep(60)

        assert bench.conductor.states(ONE) == [ACTIVE, STOPPED]
        assert bench.machine.running() == {}

    on_a_bench(scenario)


def test_a_crash_that_no_event_told_of_is_found_by_the_poll() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.lost_events = 1
        bench.machine.crash_guest(ONE)
        await bench.until(lambda: bench.conductor.states(ONE)[-1] is ERROR, within_s=15)

        said = bench.conductor.statuses(ONE)[-1]
        assert (said.fault_code, said.power) == (FaultCode.GUEST_CRASHED, PowerState.CRASHED)

    on_a_bench(scenario)


def test_a_domain_that_vanished_is_told_and_not_made_anew() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.domains.clear()
        await bench.until(lambda: bench.conductor.states(ONE)[-1] is ERROR, within_s=15)
        await asyncio.sleep(60)

        assert bench.conductor.statuses(ONE)[-1].fault_code == FaultCode.DOMAIN_MISSING
        assert bench.machine.domains == {}

    on_a_bench(scenario)


def test_without_a_permit_nothing_starts_and_with_it_everything_does() -> None:
    async def scenario(bench: Bench) -> None:
        bench.conductor.permit_ms = 0
        bench.conductor.orders[ONE] = order()
        bench.process.start()
        await asyncio.sleep(60)
        assert bench.kinds(ONE) == ["defined"]

        bench.conductor.permit_ms = 60_000
        await bench.conductor.hang_up()
        await bench.until(lambda: ACTIVE in bench.conductor.states(ONE))

    on_a_bench(scenario)


def test_a_guest_is_not_started_on_a_permit_that_aged_while_the_conductor_was_silent() -> None:
    async def scenario(bench: Bench) -> None:
        bench.conductor.permit_ms = 4000
        await raised(bench)
        bench.conductor.acks_beats = False
        await asyncio.sleep(6)
        await bench.conductor.give(order(generation=2, action_seq=1, action=OneShot.REBOOT_HARD))
        await asyncio.sleep(2)
        cut = bench.kinds(ONE)
        bench.conductor.acks_beats = True
        await bench.until(lambda: ONE in bench.machine.running())

        assert cut == ["defined", "started", "stopped", "defined"]

    on_a_bench(scenario)


def test_after_a_power_cut_guests_wait_for_a_session() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.conductor.is_up = False
        bench.process.kill()
        bench.machine.power_cycle()
        bench.restart()
        await asyncio.sleep(120)
        assert bench.machine.running() == {}

        bench.conductor.is_up = True
        await bench.until(lambda: ONE in bench.machine.running(), within_s=20)
        assert len(bench.machine.wires) == 1

    on_a_bench(scenario)


def test_an_older_placement_or_generation_changes_nothing() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench, placement_epoch=3, generation=7)
        epoch = bench.conductor.epoch
        await bench.conductor.send(order(Want.ABSENT, placement_epoch=2, generation=9, epoch=epoch))
        await bench.conductor.send(order(Want.STOP, placement_epoch=3, generation=6, epoch=epoch))
        await bench.conductor.send(release(placement_epoch=2, epoch=epoch))
        await bench.until(lambda: bool(bench.conductor.of(Released)))

        assert bench.machine.running() == {ONE: 3}

    on_a_bench(scenario)


def test_a_release_takes_everything_and_is_told_until_acknowledged() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.release(release())
        await bench.until(lambda: bool(bench.conductor.of(Released)))

        assert (bench.machine.domains, bench.machine.folders, bench.machine.wires) == ({}, {}, {})
        assert bench.memory.rows[ONE].released

    on_a_bench(scenario)


def test_what_is_missing_from_a_snapshot_is_not_destroyed() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.conductor.orders.clear()
        bench.process.kill()
        bench.restart()
        await asyncio.sleep(200)

        assert bench.machine.running() == {ONE: 1}
        inventory = bench.conductor.of(Inventory)[-1]
        assert [held.instance_id for held in inventory.held] == [ONE]

    on_a_bench(scenario)


def test_with_a_lost_journal_a_running_guest_is_adopted_as_it_is() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.conductor.orders[ONE] = order(generation=4, action_seq=2, action=OneShot.REBOOT_HARD)
        bench.process.kill()
        bench.memory.lose()
        bench.restart()
        await bench.until(lambda: bench.conductor.statuses(ONE)[-1].generation == 4)

        assert bench.kinds(ONE) == ["defined", "started"]

    on_a_bench(scenario)


def test_with_a_rolled_back_journal_the_domain_s_mark_says_that_an_order_is_stale() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench, placement_epoch=3, generation=7)
        bench.process.kill()
        bench.memory.lose()
        bench.conductor.orders[ONE] = order(Want.STOP, placement_epoch=2, generation=9)
        bench.restart()
        await asyncio.sleep(60)

        assert bench.machine.running() == {ONE: 3}

    on_a_bench(scenario)


def test_a_broken_transfer_goes_on_where_it_ended() -> None:
    async def scenario(bench: Bench) -> None:
        bench.conductor.cut_image_after = 3 * CHUNK
        await raised(bench)

        offsets = [offset for _, offset in bench.conductor.asked_for]
        assert offsets == list(range(0, len(IMAGE_BYTES), 3 * CHUNK))

    on_a_bench(scenario)


def test_an_image_that_cannot_be_had_is_a_fault_of_its_own() -> None:
    async def scenario(bench: Bench) -> None:
        bench.conductor.relays_images = False
        bench.conductor.orders[ONE] = order()
        bench.process.start()
        await bench.until(lambda: ERROR in bench.conductor.states(ONE))

        assert bench.conductor.statuses(ONE)[-1].fault_code == FaultCode.IMAGE_UNAVAILABLE

    on_a_bench(scenario)


def test_one_image_is_fetched_once_for_many_guests() -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(1, 9):
            bench.conductor.orders[instance_id(number)] = order(number=number)
        bench.process.start()
        await bench.until(lambda: len(bench.machine.running()) == 8)

        assert bench.conductor.asked_for == [(IMAGE.id, 0)]

    on_a_bench(scenario)


def test_a_fault_of_the_host_is_told_with_its_word() -> None:
    async def scenario(bench: Bench) -> None:
        bench.machine.fail_next["ensure_guest"].append(FaultCode.DISK_FULL)
        bench.conductor.orders[ONE] = order()
        bench.process.start()
        await bench.until(lambda: ERROR in bench.conductor.states(ONE))
        said = bench.conductor.statuses(ONE)[-1]
        assert (said.fault_code, said.fault_message) == ("DISK_FULL", "the host's disk is full")

        await bench.conductor.give(order(generation=2))
        await bench.until(lambda: bench.conductor.states(ONE)[-1] is ACTIVE)

    on_a_bench(scenario)


@pytest.mark.parametrize(
    ("fails", "fault"), [("ensure_guest", FaultCode.DISK_FULL), ("plug", FaultCode.NETWORK_FAILED)]
)
def test_of_two_steps_side_by_side_one_that_fails_leaves_the_other_to_its_end(
    fails: str, fault: FaultCode
) -> None:
    async def scenario(bench: Bench) -> None:
        bench.machine.fail_next[fails].append(fault)
        bench.conductor.orders[ONE] = order()
        bench.process.start()
        await bench.until(lambda: ERROR in bench.conductor.states(ONE))
        assert bench.conductor.statuses(ONE)[-1].fault_code == fault
        assert (bool(bench.machine.folders), bool(bench.machine.wires)) == (fails == "plug", fails != "plug")

        await bench.conductor.give(order(Want.ABSENT, generation=2))
        await bench.until(lambda: bench.conductor.states(ONE)[-1] is ABSENT)
        assert (bench.machine.domains, bench.machine.folders, bench.machine.wires) == ({}, {}, {})

    on_a_bench(scenario)


@pytest.mark.parametrize("is_journal_lost", [False, True])
def test_a_guest_whose_disk_is_gone_is_not_given_an_empty_one(*, is_journal_lost: bool) -> None:
    async def scenario(bench: Bench) -> None:
        bench.conductor.orders[ONE] = order()
        bench.process.start()
        await bench.until(lambda: bench.conductor.states(ONE) == [ACTIVE])
        bench.process.kill()
        bench.machine.power_cycle()
        bench.machine.folders.clear()
        if is_journal_lost:
            bench.memory.lose()

        bench.process.start()
        await bench.until(lambda: bench.conductor.states(ONE)[-1] is ERROR)

        assert bench.conductor.statuses(ONE)[-1].fault_code == "DISK_LOST"
        assert not bench.machine.folders
        assert not bench.machine.running()

    on_a_bench(scenario)


def test_a_failed_order_is_not_tried_again_by_itself() -> None:
    async def scenario(bench: Bench) -> None:
        bench.machine.fail_next["start"].append(FaultCode.DOMAIN_START_FAILED)
        bench.conductor.orders[ONE] = order()
        bench.process.start()
        await bench.until(lambda: ERROR in bench.conductor.states(ONE))
        await bench.conductor.hang_up()
        await asyncio.sleep(120)

        assert bench.machine.running() == {}

    on_a_bench(scenario)


def test_a_guest_that_cannot_be_resumed_stays_suspended_and_can_be_resumed_later() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(order(Want.SUSPEND, generation=2))
        await bench.until(lambda: HostState.SUSPENDED in bench.conductor.states(ONE))
        bench.machine.fail_next["start"].append(FaultCode.DOMAIN_START_FAILED)
        await bench.conductor.give(order(generation=3))
        await bench.until(lambda: bench.conductor.statuses(ONE)[-1].generation == 3)
        said = bench.conductor.statuses(ONE)[-1]
        await bench.conductor.give(order(generation=4))
        await bench.until(lambda: bench.conductor.states(ONE)[-1] is ACTIVE)

        assert (said.state, said.fault_code) == (HostState.SUSPENDED, FaultCode.DOMAIN_START_FAILED)
        assert [event.detail for event in bench.events if event.kind == "stopped"] == ["suspended"]

    on_a_bench(scenario)


def test_a_guest_is_started_whatever_others_wait_for() -> None:
    """Many servers of one large image, or without a network plan, would have had every other of the host miss its deadline."""

    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(order(Want.STOP, generation=2, stop_timeout_s=0))
        await bench.until(lambda: STOPPED in bench.conductor.states(ONE))
        bench.conductor.relays_images = False
        large = replace(IMAGE, id=instance_id(99), sha256="ab" * 32)
        for number in range(2, 8):
            new = order(number=number)
            await bench.conductor.give(replace(new, guest=replace(new.guest, image=large)))
        for number in range(8, 14):
            new = order(number=number)
            ports = (*new.guest.ports, a_tenant_port(number))
            await bench.conductor.give(replace(new, guest=replace(new.guest, ports=ports)))
        await asyncio.sleep(1)

        await bench.conductor.give(order(generation=3))

        await bench.until(lambda: bench.conductor.states(ONE)[-1] is ACTIVE, within_s=5)

    on_a_bench(scenario)


def test_a_delete_that_fails_is_told_and_tried_until_it_succeeds() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.fail_next["forget"].extend([FaultCode.HYPERVISOR_FAILED] * 4)
        await bench.conductor.give(order(Want.ABSENT, generation=2))
        await bench.until(lambda: ABSENT in bench.conductor.states(ONE))

        assert bench.conductor.states(ONE) == [ACTIVE, ERROR, ABSENT]
        assert bench.machine.folders == {}

    on_a_bench(scenario)


def test_a_hypervisor_that_is_away_is_told_as_health_and_reports_nobody_dead() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.until(lambda: bench.conductor.of(Report)[-1].running == 1)
        bench.machine.hypervisor_up = False
        await bench.until(lambda: bench.conductor.of(Report)[-1].health != "ok", within_s=75)
        sick = bench.conductor.of(Report)[-1]
        bench.machine.hypervisor_up = True
        bench.machine.restart_hypervisor()
        await bench.until(lambda: bench.conductor.of(Report)[-1].health == "ok", within_s=75)

        assert (sick.health, sick.running) == (FaultCode.HYPERVISOR_UNAVAILABLE, 1)
        assert bench.conductor.states(ONE) == [ACTIVE]
        assert bench.machine.running() == {ONE: 1}

    on_a_bench(scenario)


def test_a_hypervisor_that_comes_back_soon_delays_a_spawn_and_fails_none() -> None:
    async def scenario(bench: Bench) -> None:
        bench.process.start()
        await bench.until(lambda: bench.process.service is not None and bench.process.service.in_session)
        bench.machine.hypervisor_up = False
        await bench.conductor.give(order())
        await asyncio.sleep(10)
        bench.machine.hypervisor_up = True
        await bench.until(lambda: ACTIVE in bench.conductor.states(ONE), within_s=30)

        assert bench.conductor.states(ONE) == [ACTIVE]

    on_a_bench(scenario)


def test_a_daemon_that_starts_while_the_hypervisor_is_away_says_nothing_of_guests_it_cannot_look_at() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.hypervisor_up = False
        bench.process.kill()
        bench.process.start()
        await asyncio.sleep(180)
        assert bench.conductor.states(ONE) == [ACTIVE]

        bench.machine.hypervisor_up = True
        await bench.until(lambda: bench.conductor.states(ONE)[-1:] == [ACTIVE], within_s=60)

        assert set(bench.conductor.states(ONE)) == {ACTIVE}
        assert bench.machine.running() == {ONE: 1}

    on_a_bench(scenario)


def test_after_a_power_cut_guests_are_started_however_late_the_hypervisor_is() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.process.kill()
        bench.machine.power_cycle()
        bench.machine.hypervisor_up = False
        bench.process.start()
        await asyncio.sleep(180)
        bench.machine.hypervisor_up = True

        await bench.until(lambda: bench.machine.running() == {ONE: 1}, within_s=60)

        assert set(bench.conductor.states(ONE)) == {ACTIVE}

    on_a_bench(scenario)


def test_an_order_that_comes_while_the_hypervisor_is_away_is_carried_out_when_it_is_back() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.hypervisor_up = False
        await bench.conductor.give(order(Want.PAUSE, generation=2))
        await asyncio.sleep(180)
        bench.machine.hypervisor_up = True
        await bench.until(lambda: HostState.PAUSED in bench.conductor.states(ONE), within_s=60)

        assert bench.conductor.states(ONE) == [ACTIVE, HostState.PAUSED]

    on_a_bench(scenario)


def test_a_host_that_cannot_be_measured_tells_no_inventory() -> None:
    async def scenario(bench: Bench) -> None:
        bench.machine.hypervisor_up = False
        bench.process.start()
        await asyncio.sleep(30)
        assert bench.conductor.of(Inventory) == []

        bench.machine.hypervisor_up = True
        await bench.until(lambda: len(bench.conductor.of(Inventory)) == 1, within_s=10)

    on_a_bench(scenario)
