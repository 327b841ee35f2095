"""Sessions of the daemon: which conductor, what is heard, what is told until it is acknowledged."""

from __future__ import annotations

import asyncio

from fabric.model.session import (
    Beat,
    ConsoleLog,
    ConsoleLogWanted,
    Goodbye,
    Hello,
    HostState,
    Released,
)
from fabric.model.states import Want
from fabric.rpc.session_codec import pack_from_conductor
from fabric.rpc.stream import MemoryStream
from hostd.core.faults import FaultCode
from hostd.images.base import Held
from tests.unit.hostd.bench import Bench, Conductor, on_a_bench, raised
from tests.unit.hostd.orders import instance_id, order, release

ONE = instance_id(1)
ACTIVE, STOPPED, ERROR, ABSENT = HostState.ACTIVE, HostState.STOPPED, HostState.ERROR, HostState.ABSENT


def test_a_status_is_repeated_until_a_conductor_deals_with_it() -> None:
    async def scenario(bench: Bench) -> None:
        bench.conductor.acks_statuses = False
        await raised(bench)
        await asyncio.sleep(20)
        repeated = len(bench.conductor.statuses(ONE))
        await bench.conductor.hang_up()
        await bench.until(lambda: len(bench.conductor.statuses(ONE)) > repeated)
        bench.conductor.acks_statuses = True
        await asyncio.sleep(30)
        told = len(bench.conductor.statuses(ONE))
        await asyncio.sleep(120)

        assert repeated >= 3
        assert bench.conductor.statuses(ONE)[-1].epoch == bench.conductor.epoch == 2
        assert len(bench.conductor.statuses(ONE)) == told

    on_a_bench(scenario)


def test_a_conductor_that_is_down_is_left_for_another() -> None:
    async def scenario(bench: Bench) -> None:
        first, second = bench.conductors.values()
        first.is_up = False
        bench.process.start()
        await bench.until(lambda: len(second.hellos) == 1, within_s=5)
        first.is_up, second.is_up = True, False
        await second.hang_up()
        await bench.until(lambda: len(first.hellos) == 1, within_s=10)

    on_a_bench(scenario, conductors=("c1:1", "c2:1"))


def test_a_conductor_that_acknowledges_no_beats_is_left() -> None:
    async def scenario(bench: Bench) -> None:
        first, second = bench.conductors.values()
        first.acks_beats = second.acks_beats = False
        bench.process.start()
        await bench.until(lambda: bool(first.hellos) and bool(second.hellos), within_s=20)

    on_a_bench(scenario, conductors=("c1:1", "c2:1"))


def test_a_conductor_that_takes_nothing_any_more_is_left() -> None:
    """Who reads nothing lets what is told pile up until sending waits. The beats waited behind it, and with them the only look at how long
    the conductor had been silent: the host stayed in that session for ever, without a permit and without orders.
    """

    async def take_nothing(conductor: Conductor, stream: MemoryStream, hello: Hello) -> None:
        for number in range(1, 81):
            conductor.orders[instance_id(number)] = order(number=number)
        await conductor.grant(stream, hello)
        await asyncio.get_running_loop().create_future()

    async def scenario(bench: Bench) -> None:
        first, second = bench.conductors.values()
        first.script = second.script = take_nothing
        bench.process.start()
        await bench.until(lambda: bool(first.hellos) and bool(second.hellos), within_s=30)

    on_a_bench(scenario, conductors=("c1:1", "c2:1"))


def test_a_lost_journal_is_trusted_again_when_a_snapshot_was_heard_even_an_empty_one() -> None:
    """Not at the first order: a host without servers would look damaged at each start, for as long as it has none."""

    async def scenario(bench: Bench) -> None:
        bench.memory.lose()
        bench.process.start()
        await bench.until(lambda: bench.memory.epoch == 1)
        await bench.until(lambda: bench.memory.trusted, within_s=10)

        assert bench.memory.rows == {}

    on_a_bench(scenario)


def test_an_order_of_another_epoch_is_not_heard() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.send(order(Want.ABSENT, generation=9, epoch=bench.conductor.epoch - 1))
        await bench.conductor.send(release(epoch=bench.conductor.epoch + 1))
        await asyncio.sleep(30)

        assert bench.machine.running() == {ONE: 1}

    on_a_bench(scenario)


def test_tombstones_are_dropped_when_a_later_session_no_longer_mentions_them() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.release(release())
        await bench.until(lambda: bool(bench.conductor.of(Released)))
        assert ONE in bench.memory.rows

        await bench.conductor.hang_up()
        await bench.until(lambda: ONE not in bench.memory.rows, within_s=20)

    on_a_bench(scenario)


def test_a_console_s_end_is_shown_on_demand() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.consoles[Held(ONE, 1)] = b"x" * 5000 + b"login: "
        await bench.conductor.send(
            ConsoleLogWanted(question=3, instance_id=ONE, placement_epoch=1, tail_bytes=10)
        )
        await bench.until(lambda: bool(bench.conductor.of(ConsoleLog)))

        assert bench.conductor.of(ConsoleLog) == [ConsoleLog(question=3, data=b"xxxlogin: ")]

    on_a_bench(scenario)


def test_a_console_that_cannot_be_read_is_told_so() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.fail_next["console_log"].append(FaultCode.DISK_FAILED)
        await bench.conductor.send(
            ConsoleLogWanted(question=3, instance_id=ONE, placement_epoch=1, tail_bytes=10)
        )
        await bench.until(lambda: bool(bench.conductor.of(ConsoleLog)))

        assert bench.conductor.of(ConsoleLog)[0].fault_code == FaultCode.CONSOLE_UNAVAILABLE

    on_a_bench(scenario)


def test_a_goodbye_is_honoured() -> None:
    async def refuse(_conductor: Conductor, stream: MemoryStream, _hello: Hello) -> None:
        await stream.send(pack_from_conductor(Goodbye(reason="draining", retry_after_ms=60_000)))

    async def scenario(bench: Bench) -> None:
        first, second = bench.conductors.values()
        first.script = refuse
        bench.process.start()
        await bench.until(lambda: bool(second.hellos), within_s=20)
        await asyncio.sleep(20)
        await second.hang_up()
        await asyncio.sleep(20)

        assert len(first.hellos) <= 1
        assert len(second.hellos) == 2

    on_a_bench(scenario, conductors=("c1:1", "c2:1"))


def test_a_conductor_that_talks_nonsense_is_left_and_the_daemon_lives() -> None:
    async def babble(conductor: Conductor, stream: MemoryStream, hello: Hello) -> None:
        if len(conductor.hellos) == 1:
            await stream.send(b"\xff\xff\xff")
        elif len(conductor.hellos) == 2:
            await stream.send(pack_from_conductor(order()))
        else:
            conductor.script = None
            await conductor.grant(stream, hello)

    async def scenario(bench: Bench) -> None:
        bench.conductor.script = babble
        bench.process.start()
        await bench.until(lambda: len(bench.conductor.hellos) == 3)

    on_a_bench(scenario)


def test_a_session_that_is_not_newer_than_the_last_is_no_session() -> None:
    async def replay(conductor: Conductor, stream: MemoryStream, hello: Hello) -> None:
        conductor.epoch = hello.highest_epoch - 1
        conductor.script = None
        conductor.orders[ONE] = order()
        for part in conductor.snapshot():
            await stream.send(pack_from_conductor(part))

    async def scenario(bench: Bench) -> None:
        bench.memory.epoch = 7
        bench.conductor.script = replay
        bench.process.start()
        await bench.until(lambda: ACTIVE in bench.conductor.states(ONE))

        assert bench.conductor.epoch == 8
        assert bench.memory.epoch == 8

    on_a_bench(scenario)


def test_beats_go_on_while_guests_are_raised() -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(1, 21):
            bench.conductor.orders[instance_id(number)] = order(number=number)
        bench.process.start()
        await bench.until(lambda: len(bench.machine.running()) == 20)
        await asyncio.sleep(60)

        assert bench.conductor.epoch == 1
        assert len(bench.conductor.of(Beat)) >= 30

    on_a_bench(scenario)
