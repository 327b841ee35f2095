"""A host's session over an in-memory stream: joining, the barrier, the fence, the permit."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fabric.model.host import SessionState
from fabric.model.instance import Tombstone
from fabric.model.session import (
    BeatAck,
    Goodbye,
    HostState,
    Inventory,
    Order,
    Release,
    ReleaseAck,
    Snapshot,
    StatusAck,
)
from fabric.model.states import PowerState, TaskState, VmState, Want
from fabric.store.base import Committed, Refused, Txn
from fabric.store.keys import ALIVE, ASSIGNMENT, HOST, TOMBSTONE
from tests.unit.conductor.worlds import World, instance_id, run, until


def test_a_host_joins_is_told_its_orders_and_comes_up() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            placed = await cell.place(1, "h1")
            host = cell.dial(service, "h1")

            snapshot = await host.join()

            assert [(order.guest.id, order.want) for order in snapshot.orders] == [(placed.id, Want.RUN)]
            assert snapshot.last
            assert (await cell.session("h1")).state is SessionState.JOIN
            assert (await cell.session("h1")).conductor == "c1:7000"
            await host.say(Inventory(epoch=host.epoch))
            await until(lambda: _is(cell, "h1", SessionState.UP))

    run(world)


def test_a_status_becomes_the_record_and_is_acknowledged() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            await cell.place(1, "h1")
            order = await host.hear(Order)

            await host.say(host.status(order, HostState.ACTIVE))
            acknowledged = await host.hear(StatusAck)

            after = await cell.instance(1)
            assert acknowledged.accepted
            assert (after.vm_state, after.task, after.power) == (
                VmState.ACTIVE,
                TaskState.NONE,
                PowerState.RUNNING,
            )
            assert after.observed_generation == order.generation

    run(world)


def test_a_create_costs_the_conductor_one_transaction() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            await cell.place(1, "h1")
            order = await host.hear(Order)
            before = len(cell.reaches["c1"].commits)

            await host.say(host.status(order, HostState.ACTIVE))
            await host.hear(StatusAck)

            assert len(cell.reaches["c1"].commits) == before + 1

    run(world)


def test_words_that_wait_share_a_transaction_across_hosts() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            names = [f"h{number}" for number in range(8)]
            hosts = []
            orders = []
            for number, name in enumerate(names):
                await cell.approve(name)
                hosts.append(await cell.up(service, name))
                await cell.place(number, name)
                orders.append(await hosts[-1].hear(Order))
            reach = cell.reaches["c1"]
            before = len(reach.commits)

            reach.hold = asyncio.Event()
            for host, order in zip(hosts, orders, strict=True):
                await host.say(host.status(order, HostState.ACTIVE))
                await asyncio.sleep(0.1)
            reach.hold.set()
            for host in hosts:
                await host.hear(StatusAck)

            # The first was alone; the seven that came while it was under way went together.
            assert len(reach.commits) == before + 2

    run(world)


def test_the_barrier_holds_until_every_release_is_confirmed() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            gone = instance_id(9)
            await cell.put({TOMBSTONE.at("h1", gone): Tombstone(instance_id=gone, placement_epoch=3)})
            host = cell.dial(service, "h1")
            (release,) = (await host.join()).releases

            await host.say(Inventory(epoch=host.epoch))
            await asyncio.sleep(5)
            assert (await cell.session("h1")).state is SessionState.JOIN
            await host.say(replace(host.released(release), placement_epoch=2))
            await asyncio.sleep(1)
            assert await cell.get(TOMBSTONE, "h1", gone) is not None
            await host.say(host.released(release))
            await host.hear(ReleaseAck)

            await until(lambda: _is(cell, "h1", SessionState.UP))
            assert await cell.get(TOMBSTONE, "h1", gone) is None

    run(world)


def test_no_inventory_no_up() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = cell.dial(service, "h1")
            await host.join()
            host.keep_beating()

            await asyncio.sleep(60)

            assert (await cell.session("h1")).state is SessionState.JOIN

    run(world)


def test_the_newer_session_fences_the_older_one_off() -> None:
    async def world() -> None:
        async with World() as cell:
            first, second = await cell.conductor("c1"), await cell.conductor("c2")
            await cell.approve("h1")
            old = await cell.up(first, "h1")
            await cell.place(1, "h1")
            order = await old.hear(Order)

            new = cell.dial(second, "h1")
            await new.join(highest_epoch=old.epoch)
            await old.say(old.status(order, HostState.ACTIVE))
            farewell = await old.farewell()

            assert new.epoch > old.epoch
            assert "another conductor" in farewell.reason
            assert (await cell.instance(1)).vm_state is VmState.BUILDING

    run(world)


def test_a_conductor_that_lost_the_host_while_away_from_the_store_writes_nothing_for_it() -> None:
    async def world() -> None:
        async with World() as cell:
            first, second = await cell.conductor("c1"), await cell.conductor("c2")
            await cell.approve("h1")
            old = await cell.up(first, "h1")
            await cell.place(1, "h1")
            order = await old.hear(Order)
            cell.reaches["c1"].is_cut = True
            await old.say(
                old.status(order, HostState.ERROR, fault_code="DISK_FULL", power=PowerState.NOSTATE)
            )
            await asyncio.sleep(1)

            new = cell.dial(second, "h1")
            await new.join(highest_epoch=old.epoch)
            cell.reaches["c1"].is_cut = False
            await old.farewell()

            assert (await cell.instance(1)).fault is None

    run(world)


def test_the_epoch_is_above_whatever_the_host_was_granted_before() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = cell.dial(service, "h1")

            await host.join(highest_epoch=41)

            assert host.epoch == 42

    run(world)


def test_a_word_of_an_earlier_epoch_is_dropped_and_is_no_strike() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            await cell.place(1, "h1")
            host = cell.dial(service, "h1")
            (order,) = (await host.join()).orders

            for _ in range(5):
                await host.say(host.status(order, HostState.ACTIVE, epoch=host.epoch - 1))

            assert await host.hears_nothing_of(StatusAck, for_s=5)
            assert (await cell.instance(1)).vm_state is VmState.BUILDING
            assert (await cell.session("h1")).state is SessionState.JOIN

    run(world)


def test_a_certificate_that_is_not_the_approved_one_is_turned_away() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            before = await cell.everything()
            stranger = cell.dial(service, "h1", serial="bad")
            unknown = cell.dial(service, "h2")

            for host in (stranger, unknown):
                task = asyncio.create_task(host.join())
                assert "not approved" in (await _farewell_of(task, host)).reason

            assert await cell.everything() == before

    run(world)


def test_revoking_the_certificate_ends_the_session_at_once() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            approved = await cell.approve("h1")
            host = await cell.up(service, "h1")

            await cell.put({HOST.at("h1"): replace(approved, cert_serial="other")})

            async with asyncio.timeout(2):
                assert "not approved" in (await host.farewell()).reason

    run(world)


def test_a_disabled_host_drains_and_an_enabled_one_is_up_again() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            approved = await cell.approve("h1")
            host = await cell.up(service, "h1")
            host.keep_beating()

            await cell.put({HOST.at("h1"): replace(approved, enabled=False, disabled_reason="new disks")})
            await until(lambda: _is(cell, "h1", SessionState.DRAIN))
            drained = await cell.session("h1")
            await cell.put({HOST.at("h1"): approved})
            await until(lambda: _is(cell, "h1", SessionState.UP))

            assert drained.reason == "new disks"
            assert drained.epoch == host.epoch

    run(world)


def test_beats_are_acknowledged_while_the_store_answers_and_not_while_it_does_not() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            await host.beat_and_hear()

            cell.reaches["c1"].is_cut = True
            await asyncio.sleep(6)
            await host.beat()
            unheard = await host.hears_nothing_of(BeatAck, for_s=6)
            cell.reaches["c1"].is_cut = False
            await host.beat_and_hear()

            assert unheard

    run(world)


def test_a_beat_is_never_acknowledged_on_a_proof_older_than_five_seconds() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            await host.beat_and_hear()
            loop = asyncio.get_running_loop()

            cell.reaches["c1"].is_cut = True
            cut_s = loop.time()
            last_s = cut_s
            while loop.time() < cut_s + 20:
                await asyncio.sleep(0.25)
                await host.beat()
                if not await host.hears_nothing_of(BeatAck, for_s=0.5):
                    last_s = loop.time()

            assert last_s - cut_s <= 5.0

    run(world)


def test_a_silent_host_loses_its_session_and_is_marked_unreachable() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            await cell.place(1, "h1")
            epoch = (await cell.session("h1")).epoch

            await host.farewell()
            loop = asyncio.get_running_loop()
            gone_s = loop.time()
            await until(lambda: _is(cell, "h1", SessionState.UNREACHABLE))

            assert loop.time() - gone_s < 23
            assert (await cell.session("h1")).epoch == epoch
            assert (await cell.instance(1)).vm_state is VmState.BUILDING

    run(world)


def test_a_host_that_beats_stays_up_for_an_hour() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            host.keep_beating()

            await asyncio.sleep(3600)

            assert (await cell.session("h1")).state is SessionState.UP
            assert not [message for message in host.heard if isinstance(message, Goodbye)]

    run(world)


def test_everything_is_told_again_now_and_then() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            await cell.place(1, "h1")
            host.keep_beating()

            await asyncio.sleep(120)

            told = [message for message in host.heard if isinstance(message, Snapshot)]
            assert len(told) >= 3
            assert [order.guest.id for order in told[-1].orders] == [instance_id(1)]

    run(world)


def test_an_order_survives_a_compaction_of_the_watch() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            cell.store.break_watches()
            await cell.place(1, "h1")
            cell.store.compact(cell.store.revision)

            order = await host.hear(Order)

            assert order.guest.id == instance_id(1)

    run(world)


def test_a_release_that_comes_during_a_session_is_told() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")

            gone = instance_id(5)
            await cell.put({TOMBSTONE.at("h1", gone): Tombstone(instance_id=gone, placement_epoch=2)})
            release = await host.hear(Release)

            assert (release.instance_id, release.placement_epoch, release.epoch) == (gone, 2, host.epoch)

    run(world)


def test_a_lost_lease_is_replaced_while_the_session_is_held() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            host.keep_beating()
            entry = (await cell.store.get(ALIVE.at("h1"))).entries[ALIVE.at("h1")]

            cell.store._end_lease(entry.lease_id)
            await asyncio.sleep(30)

            assert (await cell.session("h1")).state in {SessionState.UP, SessionState.UNREACHABLE}
            alive = await cell.get(ALIVE, "h1")
            assert (alive is not None) is ((await cell.session("h1")).state is SessionState.UP)

    run(world)


def test_a_stopping_conductor_sends_its_hosts_away_and_takes_no_new_ones() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")

            service.stop()

            assert "stopping" in (await host.farewell()).reason
            assert "stopping" in (await cell.dial(service, "h1").farewell()).reason

    run(world)


def test_a_write_whose_answer_is_lost_is_acknowledged_all_the_same() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            await cell.place(1, "h1")
            order = await host.hear(Order)

            cell.reaches["c1"].answers_to_lose = 1
            await host.say(host.status(order, HostState.ACTIVE))

            assert (await host.hear(StatusAck)).accepted
            assert (await cell.instance(1)).vm_state is VmState.ACTIVE

    run(world)


def test_a_delete_that_the_host_confirms_ends_everything_in_one_transaction() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            placed = await cell.place(1, "h1")
            await host.hear(Order)
            await cell.intend(replace(placed, want=Want.ABSENT, task=TaskState.DELETING, generation=2))
            order = await host.hear(Order)
            before = cell.store.revision

            await host.say(host.status(order, HostState.ABSENT))
            assert (await host.hear(StatusAck)).accepted

            keys = set(await cell.everything())
            assert {change.revision for change in cell.store.history if change.revision > before} == {
                before + 1
            }
            assert f"instance/{placed.id}" not in keys
            assert f"assignment/h1/{placed.id}" not in keys
            assert {f"over/{placed.id}", f"refund/{placed.id}"} <= keys
            await host.say(host.status(order, HostState.ABSENT))
            assert (await host.hear(StatusAck)).accepted

    run(world)


async def _is(cell: World, host: str, state: SessionState) -> bool:
    return (await cell.session(host)).state is state


async def _farewell_of(joining: asyncio.Task[Snapshot], host: object) -> Goodbye:
    await asyncio.wait({joining}, timeout=20)
    joining.cancel()
    heard: list[object] = getattr(host, "heard", [])
    (farewell,) = [message for message in heard if isinstance(message, Goodbye)]
    return farewell


def test_an_order_written_while_the_host_is_joining_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch may bring it before the join's answer has told from which revision on to listen."""

    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            reach = cell.reaches["c1"]
            plain = reach.commit

            async def slow_answer(txn: Txn) -> Committed | Refused:
                outcome = await plain(txn)
                if ALIVE.at("h1") in txn.put:
                    await cell.place(1, "h1")
                    await asyncio.sleep(1)
                return outcome

            # Patched, because only the answer of this one transaction is to be late.
            monkeypatch.setattr(reach, "commit", slow_answer)
            host = cell.dial(service, "h1")
            snapshot = await host.join()
            order = await host.hear(Order, within_s=5)

            assert snapshot.orders == ()
            assert order.guest.id == instance_id(1)

    run(world)


def test_a_host_that_begins_another_session_here_ends_its_first_one() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            old = await cell.up(service, "h1")

            new = cell.dial(service, "h1")
            await new.join()
            farewell = await old.hear(Goodbye, within_s=1)

            assert farewell.reason
            assert new.epoch == old.epoch + 1

    run(world)


def test_a_record_that_does_not_parse_costs_the_host_none_of_the_others() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            await cell.place(1, "h1")
            await cell.store.commit(Txn(put={ASSIGNMENT.at("h1", instance_id(8)): b"\xff\xff"}))
            host = cell.dial(service, "h1")

            snapshot = await host.join()
            await host.say(Inventory(epoch=host.epoch))
            await cell.store.commit(Txn(put={ASSIGNMENT.at("h1", instance_id(9)): b"\xff\xff"}))
            await cell.place(2, "h1")
            order = await host.hear(Order)
            host.keep_beating()
            await asyncio.sleep(60)

            assert [each.guest.id for each in snapshot.orders] == [instance_id(1)]
            assert order.guest.id == instance_id(2)
            assert (await cell.session("h1")).state is SessionState.UP

    run(world)


def test_who_is_not_let_in_costs_the_store_no_lease() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            stranger = cell.dial(service, "h1", serial="bad")
            joining = asyncio.create_task(stranger.join())
            await _farewell_of(joining, stranger)

            assert (await cell.store.grant(10)).id == 1

    run(world)
