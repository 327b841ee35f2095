"""What a conductor answers: console logs and progress for the API, images for its hosts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fabric.errors import NotFound, PermissionDenied, Reason, TooMuch, Unavailable
from fabric.model.session import ConsoleLog, ConsoleLogWanted, HostState, Order, Progress, StatusAck
from fabric.model.states import TaskState, Want
from tests.unit.conductor.worlds import IMAGE, SERIAL, World, instance_id, run


def test_a_console_log_is_asked_of_the_host_and_cut_to_what_was_asked_for() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")

            reading = asyncio.create_task(service.read_console_log("h1", instance_id(1), 1, 5))
            wanted = await host.hear(ConsoleLogWanted)
            await host.say(ConsoleLog(question=wanted.question + 1, data=b"not yours"))
            await host.say(ConsoleLog(question=wanted.question, data=b"booted\nlogin:"))

            assert await reading == b"ogin:"
            assert (wanted.instance_id, wanted.placement_epoch, wanted.tail_bytes) == (instance_id(1), 1, 5)

    run(world)


def test_a_console_log_that_does_not_come_is_unavailable_with_the_reason() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")

            with pytest.raises(Unavailable) as absent:
                await service.read_console_log("h2", instance_id(1), 1, 100)
            reading = asyncio.create_task(service.read_console_log("h1", instance_id(1), 1, 100))
            wanted = await host.hear(ConsoleLogWanted)
            await host.say(ConsoleLog(question=wanted.question, fault_code="CONSOLE_UNAVAILABLE"))
            with pytest.raises(Unavailable, match="console cannot be read"):
                await reading
            cut = asyncio.create_task(service.read_console_log("h1", instance_id(1), 1, 100))
            await host.hear(ConsoleLogWanted)
            await host.stream.close()
            with pytest.raises(Unavailable, match="gone away"):
                await cut

            assert absent.value.reason is Reason.HOST_UNAVAILABLE

    run(world)


def test_a_host_that_does_not_answer_costs_ten_seconds_and_a_bounded_number_of_questions() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            host.keep_beating()
            loop = asyncio.get_running_loop()
            begin_s = loop.time()

            asked = [
                asyncio.create_task(service.read_console_log("h1", instance_id(1), 1, 100)) for _ in range(40)
            ]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)

            assert {type(outcome) for outcome in outcomes} == {Unavailable, TooMuch}
            assert loop.time() - begin_s < 11

    run(world)


def test_progress_is_kept_while_the_step_is_under_way_and_stored_nowhere() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            host = await cell.up(service, "h1")
            await cell.place(1, "h1")
            order = await host.hear(Order)
            before = await cell.everything()

            await host.say(
                Progress(
                    epoch=host.epoch, instance_id=instance_id(1), placement_epoch=1, step="image", percent=40
                )
            )
            await asyncio.sleep(0.1)
            said = service.read_progress([instance_id(1), instance_id(2)])
            unchanged = await cell.everything()
            await host.say(host.status(order, HostState.ACTIVE))
            await host.hear(StatusAck)

            assert said == {instance_id(1): "image 40 %"}
            assert unchanged == before
            assert service.read_progress([instance_id(1)]) == {}

    run(world)


def test_a_host_gets_the_images_of_instances_assigned_to_it_and_no_others() -> None:
    async def world() -> None:
        async with World() as cell:
            service = await cell.conductor()
            await cell.approve("h1")
            await cell.approve("h2")
            placed = await cell.place(1, "h1")

            data = [piece async for piece in service.fetch_image("h1", SERIAL, IMAGE, 7)]

            assert data == [b"ab" * 32 + b"@7"]
            with pytest.raises(NotFound):
                await anext(service.fetch_image("h2", SERIAL, IMAGE, 0))
            with pytest.raises(NotFound):
                await anext(service.fetch_image("h1", SERIAL, instance_id(9), 0))
            with pytest.raises(PermissionDenied):
                await anext(service.fetch_image("h1", "revoked", IMAGE, 0))
            with pytest.raises(PermissionDenied):
                await anext(service.fetch_image("unknown", SERIAL, IMAGE, 0))
            await cell.intend(replace(placed, want=Want.ABSENT, task=TaskState.DELETING, generation=2))
            with pytest.raises(NotFound):
                await anext(service.fetch_image("h1", SERIAL, IMAGE, 0))

    run(world)
