"""Passwords on their way into guests: what a caller who gives up, a store that stutters and a broken record do to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fabric.conductor.service import ConductorService
from fabric.errors import Unavailable
from fabric.model.instance import Instance
from fabric.model.session import PasswordSet, PasswordWanted
from fabric.model.states import TaskState, VmState
from fabric.store.base import Txn
from fabric.store.keys import INSTANCE
from tests.unit.conductor.worlds import ScriptedHost, World, instance_id, run, until

ROW_S = 60.0
NO_RECORD = b"no record"


def in_cell(claim: Callable[[World, ConductorService, ScriptedHost], Awaitable[None]]) -> None:
    """Server number 1 runs on a host that is up, and a request `r-1` to set a password in it has been written."""

    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            await cell.place(
                1,
                "h1",
                vm_state=VmState.ACTIVE,
                task=TaskState.UPDATING_PASSWORD,
                task_request_id="r-1",
                task_deadline_ms=cell.clock.now_ms() + int(ROW_S * 1000),
            )
            beating = asyncio.create_task(beats(host))
            await claim(cell, service, host)
            beating.cancel()

    run(world)


async def beats(host: ScriptedHost) -> None:
    """Beat only: what is said to the host is for the test to hear."""
    while True:
        await host.beat()
        await asyncio.sleep(2.0)


def asking(service: ConductorService) -> asyncio.Task[None]:
    return asyncio.create_task(service.set_password("h1", instance_id(1), 1, "r-1", "root", "a secret"))


async def given_up(asked: asyncio.Task[None]) -> None:
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def ended(cell: World) -> Instance:
    async def is_ended() -> bool:
        return (await cell.instance(1)).task is TaskState.NONE

    await until(is_ended)
    return await cell.instance(1)


def test_a_caller_who_gives_up_leaves_no_task_behind() -> None:
    """Only errors of ours ended the task. A caller whose attempt ran out cancelled the asking instead: the password was set, the server
    stayed locked until the task's deadline, and then had the fault of a time-out. Our own client gave up after 10 of the 24 s it may take.
    """

    async def claim(cell: World, service: ConductorService, host: ScriptedHost) -> None:
        asked = asking(service)
        wanted = await host.hear(PasswordWanted)
        await asyncio.sleep(10.0)
        await given_up(asked)
        await asyncio.sleep(2.0)
        await host.say(PasswordSet(question=wanted.question))
        await asyncio.sleep(1.0)

        record = await cell.instance(1)
        assert (record.task, record.fault) == (TaskState.NONE, None)

    in_cell(claim)


def test_who_asks_again_hears_what_became_of_the_first_time() -> None:
    """The retry had the guest's agent asked once more, while it was still busy with the first time."""

    async def claim(cell: World, service: ConductorService, host: ScriptedHost) -> None:
        asked = asking(service)
        wanted = await host.hear(PasswordWanted)
        await given_up(asked)
        again = asking(service)
        await asyncio.sleep(1.0)
        await host.say(PasswordSet(question=wanted.question))

        await again
        assert (await cell.instance(1)).task is TaskState.NONE
        assert wanted.question == 1
        assert service._granted["h1"].questions.new() == 2, "only one question was asked"

    in_cell(claim)


def test_nobody_hears_of_a_failure_after_giving_up_but_the_record() -> None:
    async def claim(cell: World, service: ConductorService, host: ScriptedHost) -> None:
        asked = asking(service)
        wanted = await host.hear(PasswordWanted)
        await given_up(asked)
        await host.say(PasswordSet(question=wanted.question, fault_code="AGENT_FAILED"))

        record = await ended(cell)
        assert record.fault is not None
        assert record.fault.code == "AGENT_FAILED"

    in_cell(claim)


def test_a_store_that_is_away_for_a_moment_does_not_leave_the_task() -> None:
    """Five tries without a pause were over before the store had so much as chosen a leader."""

    async def claim(cell: World, service: ConductorService, host: ScriptedHost) -> None:
        asked = asking(service)
        wanted = await host.hear(PasswordWanted)
        cell.reaches["c1"].is_cut = True
        await host.say(PasswordSet(question=wanted.question))
        await asyncio.sleep(0.5)
        cell.reaches["c1"].is_cut = False

        await asked
        assert (await cell.instance(1)).task is TaskState.NONE

    in_cell(claim)


def test_a_broken_record_does_not_hide_why_the_password_was_not_set() -> None:
    """Reading the record to end the task in raised, and its error was what the caller heard: of a bug of ours, not of the host."""

    async def claim(cell: World, service: ConductorService, host: ScriptedHost) -> None:
        asked = asking(service)
        wanted = await host.hear(PasswordWanted)
        await cell.store.commit(Txn(put={INSTANCE.at(instance_id(1)): NO_RECORD}))
        await host.say(PasswordSet(question=wanted.question, fault_code="CONSOLE_UNAVAILABLE"))

        with pytest.raises(Unavailable, match="console cannot be read"):
            await asked

    in_cell(claim)


def test_what_is_under_way_ends_with_the_conductor() -> None:
    async def claim(cell: World, service: ConductorService, host: ScriptedHost) -> None:
        asked = asking(service)
        await host.hear(PasswordWanted)
        for each in cell._tasks:
            each.cancel()
        await asyncio.gather(*cell._tasks, return_exceptions=True)

        with pytest.raises(Unavailable, match="stopping"):
            await asked
        assert not service._passwords._under_way

    in_cell(claim)
