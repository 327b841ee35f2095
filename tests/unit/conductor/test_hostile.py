"""A stolen host key is worth one host: whatever it says, only the status of what is placed on it can change."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from fabric.conductor.service import ConductorService
from fabric.model.host import Resources, SessionState
from fabric.model.instance import Tombstone
from fabric.model.session import (
    Goodbye,
    Held,
    HostState,
    Inventory,
    Order,
    Progress,
    Released,
    Report,
    Status,
    StatusAck,
)
from fabric.model.states import PowerState, VmState
from fabric.rpc.stream import StreamClosed
from fabric.store.keys import TOMBSTONE
from tests.unit.conductor.worlds import ScriptedHost, World, instance_id, run, until

MINE, THEIRS, NOBODYS = instance_id(1), instance_id(2), instance_id(3)


def _status(instance: str, **facts: Any) -> Status:
    made = Status(
        epoch=0,
        instance_id=instance,
        placement_epoch=1,
        generation=1,
        action_seq=0,
        state=HostState.ERROR,
        power=PowerState.NOSTATE,
        fault_code="GUEST_CRASHED",
    )
    return replace(made, **facts)


ACTIVE = {"state": HostState.ACTIVE, "power": PowerState.RUNNING, "fault_code": ""}
ABSENT = {"state": HostState.ABSENT, "power": PowerState.NOSTATE, "fault_code": ""}
STOPPED = {"state": HostState.STOPPED, "power": PowerState.SHUTDOWN, "fault_code": ""}

Forged = Status | Released | Report | Progress | Inventory

FORGED: tuple[tuple[str, Forged], ...] = (
    ("another host's server", _status(THEIRS)),
    ("another host's server, running", _status(THEIRS, **ACTIVE)),
    ("another host's server, gone", _status(THEIRS, **ABSENT)),
    ("a server nobody knows", _status(NOBODYS)),
    ("a server nobody knows, running", _status(NOBODYS, **ACTIVE)),
    ("a later placement", _status(MINE, placement_epoch=2)),
    ("a later placement, running", _status(MINE, placement_epoch=2, **ACTIVE)),
    ("a later generation", _status(MINE, generation=2, **ACTIVE)),
    ("an action nobody asked for", _status(MINE, action_seq=1, **ACTIVE)),
    ("gone, though wanted", _status(MINE, **ABSENT)),
    ("stopped, though being built", _status(MINE, **STOPPED)),
    ("running with a power that is off", _status(MINE, **{**ACTIVE, "power": PowerState.SHUTDOWN})),
    ("another host's tombstone", Released(epoch=0, instance_id=THEIRS, placement_epoch=9)),
    ("a tombstone that never was", Released(epoch=0, instance_id=NOBODYS, placement_epoch=9)),
    (
        "progress of another host's server",
        Progress(epoch=0, instance_id=THEIRS, placement_epoch=1, step="x", percent=9),
    ),
    (
        "ten thousand elements",
        Inventory(
            epoch=0, held=(Held(instance_id=MINE, placement_epoch=1, power=PowerState.RUNNING),) * 10_000
        ),
    ),
    (
        "negative numbers",
        Report(
            epoch=0,
            total=Resources(vcpus=-1, ram_mib=-1, disk_gib=-1),
            used=Resources(),
            running=0,
            hypervisor="",
            hypervisor_version="",
            agent_version="",
        ),
    ),
    ("control characters", _status(MINE, fault_message="\x1b]0;pwned\x07")),
    ("a path", _status("../../etc/shadow")),
    ("words of its own", _status(MINE, fault_code="PAY_ME")),
)


async def _two_hosts(cell: World) -> tuple[ConductorService, ScriptedHost]:
    service = await cell.conductor()
    for name in ("evil", "good"):
        await cell.approve(name)
    evil = await cell.up(service, "evil")
    good = await cell.up(service, "good")
    good.keep_beating()
    await cell.place(1, "evil")
    await cell.place(2, "good")
    await cell.put({TOMBSTONE.at("good", THEIRS): Tombstone(instance_id=THEIRS, placement_epoch=1)})
    await evil.hear(Order)
    return service, evil


@pytest.mark.parametrize("forged", [forged for _, forged in FORGED], ids=[what for what, _ in FORGED])
def test_a_forged_message_changes_nothing_at_all(forged: Forged) -> None:
    async def world() -> None:
        async with World() as cell:
            service, evil = await _two_hosts(cell)
            before = await cell.everything()

            await evil.say(replace(forged, epoch=evil.epoch))
            await asyncio.sleep(2)

            assert await cell.everything() == before
            assert service.read_progress([MINE, THEIRS, NOBODYS]) == {}

    run(world)


def test_what_it_may_say_changes_only_the_status_of_its_own_server() -> None:
    async def world() -> None:
        async with World() as cell:
            _, evil = await _two_hosts(cell)
            before, record = await cell.everything(), await cell.instance(1)

            await evil.say(_status(MINE, epoch=evil.epoch, **ACTIVE))
            await evil.hear(StatusAck)

            after = await cell.everything()
            assert {key for key in before | after if before.get(key) != after.get(key)} == {
                f"instance/{MINE}"
            }
            changed = await cell.instance(1)
            assert (
                replace(
                    changed,
                    **{
                        name: getattr(record, name)
                        for name in (
                            "vm_state",
                            "vm_state_time_ms",
                            "task",
                            "task_deadline_ms",
                            "power",
                            "power_seen_ms",
                            "observed_generation",
                            "launch_time_ms",
                            "update_time_ms",
                            "op_id",
                        )
                    },
                )
                == record
            )

    run(world)


def test_the_words_of_a_fault_are_ours_not_the_hosts() -> None:
    async def world() -> None:
        async with World() as cell:
            _, evil = await _two_hosts(cell)

            await evil.say(_status(MINE, epoch=evil.epoch, fault_message="call +1 555 0100 to get it back"))
            await evil.hear(StatusAck)

            fault = (await cell.instance(1)).fault
            assert fault is not None
            assert (fault.code, fault.message) == ("GUEST_CRASHED", "the guest crashed")

    run(world)


def test_three_bad_messages_quarantine_the_host_until_it_is_approved_anew() -> None:
    async def world() -> None:
        async with World() as cell:
            service, evil = await _two_hosts(cell)

            for _ in range(3):
                await evil.say(_status("nonsense", epoch=evil.epoch))
            farewell = await evil.hear(Goodbye)
            await until(lambda: _is(cell, "evil", SessionState.QUARANTINED))
            again = cell.dial(service, "evil")
            refused = asyncio.create_task(again.join())
            await asyncio.sleep(1)
            refused.cancel()
            await cell.approve("evil", update_time_ms=cell.clock.now_ms() + 1)
            pardoned = cell.dial(service, "evil")
            await pardoned.join()

            assert "bad messages" in farewell.reason
            assert [message for message in again.heard if isinstance(message, Goodbye)]
            assert (await cell.session("evil")).state is SessionState.JOIN
            assert pardoned.epoch > evil.epoch
            assert (await cell.session("good")).state is SessionState.UP

    run(world)


def test_bytes_that_are_no_message_are_strikes() -> None:
    async def world() -> None:
        async with World() as cell:
            _, evil = await _two_hosts(cell)

            for junk in (b"", b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x7f"):
                await evil.stream.send(junk)

            await until(lambda: _is(cell, "evil", SessionState.QUARANTINED))

    run(world)


def test_hanging_up_does_not_save_it_from_quarantine() -> None:
    async def world() -> None:
        async with World() as cell:
            _, evil = await _two_hosts(cell)

            for _ in range(3):
                await evil.say(_status("nonsense", epoch=evil.epoch))
            await asyncio.sleep(0.01)
            evil.serving.cancel()

            await until(lambda: _is(cell, "evil", SessionState.QUARANTINED))

    run(world)


def test_a_certificate_that_was_revoked_shuts_nobody_out() -> None:
    """Bad messages were counted by the host's name alone, before anybody had looked whether the certificate was still the host's: who had
    stolen one could have the host quarantined that it was taken from, for as long as the authority's signature lasted.
    """

    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            host.keep_beating()

            for _ in range(4):
                thief = cell.dial(service, "h1", serial="ffff")
                await thief.stream.send(b"\xff" * 100)
                await thief.hear(Goodbye)
            await asyncio.sleep(5)
            after_the_thief = await cell.session("h1")
            # Nor are they counted with the host's own.
            await host.stream.send(b"\xff")
            await asyncio.sleep(5)

            assert after_the_thief.state is SessionState.UP
            assert (await cell.session("h1")).state is SessionState.UP

    run(world)


def test_two_machines_with_one_certificate_are_shut_out() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")

            for turn in range(12):
                clone = cell.dial(service, "h1")
                joining = asyncio.create_task(clone.join(boot_id=f"machine-{turn % 2}"))
                await asyncio.wait({joining}, timeout=3)
                joining.cancel()
                await asyncio.gather(joining, return_exceptions=True)

            shut_out = await cell.session("h1")
            assert shut_out.state is SessionState.QUARANTINED
            assert "two machines" in shut_out.reason

    run(world)


def test_a_host_that_reboots_once_is_no_duel() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            for turn in range(3):
                host = cell.dial(service, "h1")
                await host.join(boot_id=f"boot-{turn}")
                await asyncio.sleep(30)

            assert (await cell.session("h1")).state is not SessionState.QUARANTINED

    run(world)


def test_a_flood_of_words_costs_a_bounded_number_of_reads() -> None:
    async def world() -> None:
        async with World() as cell:
            _, evil = await _two_hosts(cell)
            reach = cell.reaches["c1"]
            before = len(reach.commits)

            hearing = asyncio.create_task(_hear_all(evil))
            for turn in range(5000):
                crashed = turn % 2 == 0
                await evil.say(
                    _status(MINE, epoch=evil.epoch)
                    if crashed
                    else _status(MINE, epoch=evil.epoch, fault_code="DISK_FULL")
                )
            await asyncio.sleep(1)
            hearing.cancel()

            # A burst of 1000 words is let in, and they share transactions or replace each other.
            assert len(reach.commits) - before <= 1200
            assert (await cell.instance(2)).vm_state is VmState.BUILDING

    run(world)


async def _hear_all(host: ScriptedHost) -> None:
    try:
        while True:
            await host.next()
    except StreamClosed:
        return


async def _is(cell: World, host: str, state: SessionState) -> bool:
    return (await cell.session(host)).state is state


def test_what_runs_on_a_host_and_is_nobodys_is_said_here_and_fills_no_log() -> None:
    """What hosts say of it was thrown away, and only the log of a machine that is not trusted had it (R4: reported as strays)."""

    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            host.keep_beating()

            with capture_logs() as lines:
                for number in range(100):
                    await host.say(Inventory(epoch=host.epoch, strays=("theirs", f"made-up-{number}")))
                await asyncio.sleep(1)

            said = [each for each in lines if each["event"] == "host.strays"]
            assert [(each["host"], each["names"]) for each in said] == [("h1", ["theirs", "made-up-0"])]

    run(world)


def test_words_that_are_refused_fill_no_log() -> None:
    """Each was a line, a hundred in a second for as long as the host liked."""

    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            host.keep_beating()

            with capture_logs() as lines:
                for number in range(500):
                    await host.say(replace(_status(instance_id(1000 + number)), epoch=1))
                await asyncio.sleep(10)

            said = [each for each in lines if each["event"] == "host.refused"]
            assert 0 < len(said) < 50

    run(world)
