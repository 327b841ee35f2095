"""Placements that fail, deletions nobody confirms, deadlines, books: what is written, and what is compared."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fabric.model.host import Resources, SessionState, Use
from fabric.model.instance import Answered, Assignment, Instance, Over
from fabric.model.session import HostState, Order, Release, ReleaseAck, Report, StatusAck
from fabric.model.states import PowerState, TaskState, VmState, Want
from fabric.store.codec import decode
from fabric.store.keys import ACTED, ASSIGNMENT, INSTANCE, OVER, REFUND, REPORT, SESSION, TOMBSTONE, USE
from tests.unit.conductor.worlds import (
    CAPACITY,
    EPOCH_MS,
    GUEST,
    ScriptedHost,
    World,
    instance_id,
    run,
    until,
)

FAULT = {"fault_code": "DISK_FULL", "power": PowerState.NOSTATE}


async def _three_hosts(cell: World) -> list[ScriptedHost]:
    service = await cell.conductor()
    hosts = []
    for number, name in enumerate(("h1", "h2", "h3")):
        await cell.approve(name, guest_cidr=f"10.{number + 1}.0.0/24")
        hosts.append(await cell.up(service, name))
    return hosts


async def _fail(host: ScriptedHost) -> Order:
    order = await host.hear(Order)
    await host.say(host.status(order, HostState.ERROR, **FAULT))
    assert (await host.hear(StatusAck)).accepted
    return order


async def _books_balance(cell: World) -> None:
    """I2: what is claimed of each host is what is assigned to it, and every slot is somebody's."""
    for name in ("h1", "h2", "h3"):
        use = await cell.get(USE, name) or Use(host=name)
        assigned = [
            decode(Assignment, data)
            for key, data in (await cell.everything()).items()
            if key.startswith(ASSIGNMENT.under(name))
        ]
        claimed = sum((each.guest.resources() for each in assigned), start=Resources())
        assert (use.claimed, use.instances, len(use.slots)) == (claimed, len(assigned), len(assigned))


def test_a_failed_placement_moves_to_the_next_alternate_in_one_transaction() -> None:
    async def world() -> None:
        async with World() as cell:
            first, second, _ = await _three_hosts(cell)
            await cell.place(1, "h1", alternates=("h2", "h3"))
            before = cell.store.revision

            await _fail(first)
            moved = await cell.instance(1)
            order, release = await second.hear(Order), await first.hear(Release)

            assert {change.revision for change in cell.store.history if change.revision > before} == {
                before + 1
            }
            assert (moved.host, moved.placement_epoch, moved.attempt) == ("h2", 2, 2)
            assert (moved.vm_state, moved.task, moved.alternates) == (
                VmState.BUILDING,
                TaskState.SPAWNING,
                ("h3",),
            )
            assert moved.task_deadline_ms > 0
            assert moved.ports[0].address.startswith("10.2.")
            assert order.guest.ports == moved.ports
            assert (order.placement_epoch, order.want) == (2, Want.RUN)
            assert order.generation == moved.generation > 1
            assert (release.instance_id, release.placement_epoch) == (moved.id, 1)
            await _books_balance(cell)
            await first.say(first.released(release))
            await first.hear(ReleaseAck)
            assert await cell.get(TOMBSTONE, "h1", moved.id) is None

    run(world)


def test_an_alternate_that_is_full_or_not_up_is_passed_over() -> None:
    async def world() -> None:
        async with World() as cell:
            first, _, third = await _three_hosts(cell)
            await cell.put({USE.at("h2"): Use(host="h2", claimed=CAPACITY, instances=0)})
            await cell.place(1, "h1", alternates=("h4", "h2", "h3"))

            await _fail(first)
            await third.hear(Order)

            assert (await cell.instance(1)).host == "h3"

    run(world)


def test_three_attempts_and_then_an_error_that_is_told_to_stop() -> None:
    async def world() -> None:
        async with World() as cell:
            first, second, third = await _three_hosts(cell)
            await cell.place(1, "h1", alternates=("h2", "h3", "h1"))

            await _fail(first)
            await _fail(second)
            await _fail(third)
            given_up = await cell.instance(1)
            order = await third.hear(Order)
            await third.say(third.status(order, HostState.STOPPED, power=PowerState.SHUTDOWN))
            assert (await third.hear(StatusAck)).accepted
            at_rest = await cell.instance(1)

            assert (given_up.vm_state, given_up.task, given_up.attempt) == (
                VmState.ERROR,
                TaskState.NONE,
                3,
            )
            assert given_up.fault is not None
            assert (given_up.fault.code, given_up.fault.host) == ("DISK_FULL", "h3")
            assert order.want is Want.STOP
            assert (at_rest.vm_state, at_rest.fault) == (VmState.ERROR, given_up.fault)
            assert at_rest.observed_generation == at_rest.generation
            await _books_balance(cell)

    run(world)


def test_two_failures_at_once_do_not_share_the_last_place() -> None:
    async def world() -> None:
        async with World() as cell:
            first, second, _ = await _three_hosts(cell)
            almost = Resources(vcpus=CAPACITY.vcpus - 1)
            await cell.put({USE.at("h2"): Use(host="h2", claimed=almost)})
            for number in (1, 2):
                await cell.place(number, "h1", alternates=("h2",))
            orders = [await first.hear(Order), await first.hear(Order)]

            cell.reaches["c1"].hold = hold = asyncio.Event()
            for order in orders:
                await first.say(first.status(order, HostState.ERROR, **FAULT))
            await asyncio.sleep(0.1)
            hold.set()
            await second.hear(Order)
            await asyncio.sleep(1)

            states = sorted([(await cell.instance(number)).host for number in (1, 2)])
            assert states == ["h1", "h2"]
            use = await cell.get(USE, "h2")
            assert use is not None
            assert CAPACITY.covers(use.claimed)

    run(world)


def test_a_late_word_of_the_old_placement_changes_nothing() -> None:
    async def world() -> None:
        async with World() as cell:
            first, second, _ = await _three_hosts(cell)
            await cell.place(1, "h1", alternates=("h2",))
            order = await _fail(first)
            await second.hear(Order)
            before = await cell.everything()

            await first.say(first.status(order, HostState.ACTIVE))
            acknowledged = await first.hear(StatusAck)

            assert not acknowledged.accepted
            assert await cell.everything() == before

    run(world)


def test_a_guest_that_went_off_is_ordered_to_stay_off() -> None:
    async def world() -> None:
        async with World() as cell:
            first, _, _ = await _three_hosts(cell)
            await cell.place(1, "h1")
            order = await first.hear(Order)
            await first.say(first.status(order, HostState.ACTIVE))
            await first.hear(StatusAck)

            await first.say(first.status(order, HostState.STOPPED, power=PowerState.SHUTDOWN))
            following = await first.hear(Order)

            assert (following.want, following.generation) == (Want.STOP, order.generation + 1)
            assert (await cell.instance(1)).vm_state is VmState.STOPPED

    run(world)


def test_a_task_past_its_deadline_becomes_a_fault_and_is_still_taken_in_late() -> None:
    async def world() -> None:
        async with World() as cell:
            first, _, _ = await _three_hosts(cell)
            now_ms = cell.clock.now_ms()
            await cell.place(1, "h1", task_deadline_ms=now_ms + 20_000)
            order = await first.hear(Order)
            first.keep_beating()

            await until(lambda: _is(cell, 1, VmState.ERROR))
            late = await cell.instance(1)
            await first.say(first.status(order, HostState.ACTIVE))
            await until(lambda: _is(cell, 1, VmState.ACTIVE))

            assert late.fault is not None
            assert late.fault.code == "TASK_TIMEOUT"
            assert (late.task, late.want) == (TaskState.NONE, Want.RUN)
            assert cell.clock.now_ms() - now_ms < 30_000

    run(world)


def test_a_deletion_that_fails_is_ordered_again_until_it_is_confirmed() -> None:
    async def world() -> None:
        async with World() as cell:
            first, _, _ = await _three_hosts(cell)
            placed = await cell.place(1, "h1")
            await first.hear(Order)
            await cell.intend(_deleting(placed, cell))
            order = await first.hear(Order)
            await first.say(first.status(order, HostState.ERROR, **FAULT))

            beating = asyncio.create_task(_beat(first))
            again = await first.hear(Order, within_s=60)
            await first.say(first.status(again, HostState.ABSENT))
            await until(lambda: _is_gone(cell, 1))
            beating.cancel()

            assert again.generation > order.generation
            assert again.want is Want.ABSENT
            await _books_balance(cell)

    run(world)


def test_a_deletion_on_a_host_that_is_gone_ends_in_the_records_and_leaves_a_tombstone() -> None:
    async def world() -> None:
        async with World() as cell:
            first, _, _ = await _three_hosts(cell)
            placed = await cell.place(1, "h1")
            await first.hear(Order)
            await first.stream.close()
            await until(lambda: _session_is(cell, "h1", SessionState.UNREACHABLE))
            assert (await cell.instance(1)).vm_state is VmState.BUILDING

            await cell.intend(_deleting(placed, cell))
            await until(lambda: _is_gone(cell, 1), within_s=200)

            tombstone = await cell.get(TOMBSTONE, "h1", placed.id)
            assert tombstone is not None
            assert tombstone.placement_epoch == 1
            assert await cell.get(OVER, placed.id) is not None
            refund = await cell.get(REFUND, placed.id)
            assert refund is not None
            assert refund.project_id == "nebula"
            await _books_balance(cell)

    run(world)


def test_a_deletion_does_not_wait_for_a_host_that_is_silent() -> None:
    """It waited for its deadline, and gave up on the host then. The host cleans up as it joins, whenever that is."""

    async def world() -> None:
        async with World() as cell:
            first, _, _ = await _three_hosts(cell)
            placed = await cell.place(1, "h1")
            await first.stream.close()
            await until(lambda: _session_is(cell, "h1", SessionState.UNREACHABLE))

            await cell.intend(_deleting(placed, cell))

            async def is_buried() -> bool:
                return await cell.get(TOMBSTONE, "h1", placed.id) is not None

            await until(is_buried, within_s=10)
            assert await cell.get(INSTANCE, placed.id) is None

    run(world)


def test_a_book_that_does_not_balance_is_made_anew() -> None:
    async def world() -> None:
        async with World() as cell:
            first, _, _ = await _three_hosts(cell)
            placed = await cell.place(1, "h1")
            first.keep_beating()
            await cell.put({USE.at("h1"): Use(host="h1", claimed=CAPACITY, instances=9, slots=(1, 2, 3))})

            await until(lambda: _book_is(cell, "h1", GUEST), within_s=60)

            book = await cell.get(USE, "h1")
            assert book is not None
            assert (book.instances, book.slots) == (1, (placed.slot,))

    run(world)


def test_a_wrong_book_does_not_keep_an_instance_from_ending() -> None:
    async def world() -> None:
        async with World() as cell:
            first, _, _ = await _three_hosts(cell)
            placed = await cell.place(1, "h1")
            await first.hear(Order)
            await cell.put({USE.at("h1"): Use(host="h1")})
            await cell.intend(_deleting(placed, cell))
            order = await first.hear(Order)

            await first.say(first.status(order, HostState.ABSENT))

            assert (await first.hear(StatusAck)).accepted
            assert await cell.get(USE, "h1") == Use(host="h1")

    run(world)


def test_records_that_have_served_their_time_are_removed_and_others_kept() -> None:
    async def world() -> None:
        async with World() as cell:
            await cell.conductor()
            day_ms = 24 * 3600 * 1000
            answered = Answered(
                request_id="r",
                project_id="p",
                method="m",
                body_sha256="",
                resource_id="",
                expire_time_ms=EPOCH_MS,
            )
            await cell.put(
                {
                    # Not the conductor's to forget: it does not know which builds are still on their way.
                    OVER.at("old"): Over(instance_id="old", over_time_ms=EPOCH_MS - 2 * day_ms),
                    ACTED.at("p", "old"): answered,
                    ACTED.at("p", "new"): replace(answered, expire_time_ms=EPOCH_MS + day_ms),
                }
            )

            await asyncio.sleep(1200)

            assert set(await cell.everything()) == {OVER.at("old"), ACTED.at("p", "new")}

    run(world)


def test_two_conductors_sweep_the_same_cell_and_each_repair_is_made_once() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor("c1")
            await cell.conductor("c2")
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            await host.stream.close()

            await until(lambda: _session_is(cell, "h1", SessionState.UNREACHABLE))
            await asyncio.sleep(10)

            marks = [
                change
                for change in cell.store.history
                if change.key == SESSION.at("h1") and b"its session ended" in (change.after or b"")
            ]
            assert len(marks) == 1

    run(world)


def test_a_report_is_stored_when_it_is_news_and_not_more_than_every_ten_seconds() -> None:
    async def world() -> None:
        async with World() as cell:
            first, _, _ = await _three_hosts(cell)
            first.keep_beating()
            for tick in range(120):
                await first.say(_report(first, running=tick // 20, ram_mib=1000 + tick % 2))
                await asyncio.sleep(1)

            written = [change for change in cell.store.history if change.key == REPORT.at("h1")]
            stored = await cell.get(REPORT, "h1")
            assert stored is not None
            assert stored.running >= 5
            assert 6 <= len(written) <= 12

    run(world)


def _report(host: ScriptedHost, *, running: int, ram_mib: int) -> Report:
    return Report(
        epoch=host.epoch,
        total=CAPACITY,
        used=Resources(vcpus=1, ram_mib=ram_mib, disk_gib=1),
        running=running,
        hypervisor="qemu",
        hypervisor_version="7.2",
        agent_version="1.0",
    )


def _deleting(placed: Instance, cell: World) -> Instance:
    return replace(
        placed,
        want=Want.ABSENT,
        task=TaskState.DELETING,
        generation=placed.generation + 1,
        task_deadline_ms=cell.clock.now_ms() + 120_000,
        update_time_ms=cell.clock.now_ms(),
    )


async def _beat(host: ScriptedHost) -> None:
    while True:
        await host.beat()
        await asyncio.sleep(2)


async def _is(cell: World, number: int, state: VmState) -> bool:
    return (await cell.instance(number)).vm_state is state


async def _is_gone(cell: World, number: int) -> bool:
    return f"instance/{instance_id(number)}" not in await cell.everything()


async def _session_is(cell: World, host: str, state: SessionState) -> bool:
    return (await cell.session(host)).state is state


async def _book_is(cell: World, host: str, claimed: Resources) -> bool:
    book = await cell.get(USE, host)
    return book is not None and book.claimed == claimed
