"""The daemon is killed at every step of everything it does, and what comes of it is as if it had not been.

Exhaustive where it can be (each failpoint of each flow, each visit), random beyond that. The checker watches the machine, not the daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.model.instance import OneShot
from fabric.model.session import HostState, Order
from fabric.model.states import Want
from fabric.model.volume import is_serial
from hostd.driver.fake import MachineEvent
from tests.unit.hostd.bench import Bench, on_a_bench
from tests.unit.hostd.orders import (
    SNAPSHOT_ID,
    VOLUME,
    instance_id,
    order,
    release,
    snapshot,
    with_ports,
    with_volume,
)

ONE = instance_id(1)


@dataclass(frozen=True)
class Flow:
    """What a guest goes through: the orders, one after the other, and what is then true."""

    name: str
    orders: tuple[Order, ...]
    ends: HostState
    runs: bool
    boots: int
    """How often the guest is booted when nobody is killed; a reboot is done at least once (R13), so a kill may add one."""
    released: bool = False
    has_image: bool = False
    """Whether a snapshot is handed in."""


RAISED = order()
FLOWS = (
    Flow("spawn", (RAISED,), HostState.ACTIVE, runs=True, boots=1),
    Flow("stop", (RAISED, order(Want.STOP, generation=2)), HostState.STOPPED, runs=False, boots=1),
    Flow(
        "stop and start",
        (RAISED, order(Want.STOP, generation=2), order(generation=3)),
        HostState.ACTIVE,
        runs=True,
        boots=2,
    ),
    Flow(
        "hard reboot",
        (RAISED, order(generation=2, action_seq=1, action=OneShot.REBOOT_HARD)),
        HostState.ACTIVE,
        runs=True,
        boots=2,
    ),
    Flow(
        "soft reboot",
        (RAISED, order(generation=2, action_seq=1, action=OneShot.REBOOT_SOFT)),
        HostState.ACTIVE,
        runs=True,
        boots=2,
    ),
    Flow(
        "rebuild",
        (RAISED, order(generation=2, action_seq=1, action=OneShot.REBUILD)),
        HostState.ACTIVE,
        runs=True,
        boots=2,
    ),
    Flow(
        "rebuild of a stopped one",
        (
            RAISED,
            order(Want.STOP, generation=2),
            order(Want.STOP, generation=3, action_seq=1, action=OneShot.REBUILD),
        ),
        HostState.STOPPED,
        runs=False,
        boots=1,
    ),
    *(
        Flow(
            f"snapshot of one that is to {want.name.lower()}",
            (RAISED, snapshot(want, generation=2)),
            state,
            runs=want is not Want.STOP and want is not Want.SUSPEND,
            boots=1,
            has_image=True,
        )
        for want, state in (
            (Want.RUN, HostState.ACTIVE),
            (Want.PAUSE, HostState.PAUSED),
            (Want.SUSPEND, HostState.SUSPENDED),
            (Want.STOP, HostState.STOPPED),
        )
    ),
    Flow("plug", (RAISED, with_volume(order(generation=2), VOLUME)), HostState.ACTIVE, runs=True, boots=1),
    Flow(
        "plug and pull",
        (RAISED, with_volume(order(generation=2), VOLUME), order(generation=3)),
        HostState.ACTIVE,
        runs=True,
        boots=1,
    ),
    Flow(
        "boot with a volume",
        (
            RAISED,
            with_volume(order(Want.STOP, generation=2), VOLUME),
            with_volume(order(generation=3), VOLUME),
        ),
        HostState.ACTIVE,
        runs=True,
        boots=2,
    ),
    Flow(
        "another interface, and none",
        (RAISED, with_ports(order(generation=2), 1, 2), order(generation=3)),
        HostState.ACTIVE,
        runs=True,
        boots=1,
    ),
    Flow("delete", (RAISED, order(Want.ABSENT, generation=2)), HostState.ABSENT, runs=False, boots=1),
    Flow("release", (RAISED,), HostState.ACTIVE, runs=False, boots=1, released=True),
)


async def through(bench: Bench, flow: Flow) -> None:
    """Lead the guest through the flow, raising the daemon again whenever it was killed."""
    bench.restart()

    async def until(true: Callable[[], bool]) -> None:
        end_s = bench.loop.time() + 300
        while not true():
            assert bench.loop.time() < end_s, f"the flow stands still; said: {bench.conductor.states(ONE)}"
            if not bench.process.is_up:
                await asyncio.sleep(1)
                bench.restart()
            await asyncio.sleep(0.02)

    def made_true(order: Order) -> bool:
        said = bench.conductor.statuses(ONE)
        return bool(said) and (said[-1].generation, said[-1].action_seq) == (
            order.generation,
            order.action_seq,
        )

    for each in flow.orders:
        await bench.conductor.give(each)
        await until(partial(made_true, each))
    if flow.released:
        await bench.conductor.release(release())
        await until(lambda: not bench.conductor.releases)
    await bench.machine.settle()


def check(bench: Bench, flow: Flow) -> None:
    """What must be true at the end of a flow, whoever was killed on the way."""
    assert bench.conductor.states(ONE)[-1] is flow.ends
    assert bench.machine.running() == ({ONE: 1} if flow.runs else {})
    if flow.released or flow.ends is HostState.ABSENT:
        assert (bench.machine.domains, bench.machine.folders, bench.machine.wires) == ({}, {}, {})
        assert bench.memory.rows[ONE].released
    if flow.has_image:
        assert bench.conductor.images.keys() == {SNAPSHOT_ID}
    assert bench.machine.copies == {}
    if flow.runs:
        guest, running = flow.orders[-1].guest, bench.machine.domains[ONE].running
        assert running is not None
        assert [disk.serial for disk in running.disks if is_serial(disk.serial)] == [
            volume.serial for volume in guest.volumes
        ]
        macs = {port.mac for port in guest.ports}
        assert {each.mac for each in running.interfaces} == macs
        assert {each.mac for each in bench.machine.wires[ONE][1]} == macs
    boots = sum(event.kind in {"started", "reset"} for event in bench.events)
    reboots = any(each.action is not OneShot.NONE for each in flow.orders)
    assert flow.boots <= boots <= flow.boots + (bench.deaths if reboots else 0)


def places(flow: Flow) -> list[tuple[str, int]]:
    """Every failpoint that the flow reaches when nobody is killed, each visit."""

    async def scenario(bench: Bench) -> list[tuple[str, int]]:
        await through(bench, flow)
        check(bench, flow)
        return [
            (name, visit)
            for name, count in sorted(bench.killer.visits.items())
            for visit in range(1, count + 1)
        ]

    return on_a_bench(scenario)


KILLS = [(flow, name, visit) for flow in FLOWS for name, visit in places(flow)]


@pytest.mark.parametrize(
    ("flow", "name", "visit"), KILLS, ids=[f"{flow.name}-{name}-{visit}" for flow, name, visit in KILLS]
)
def test_a_kill_after_any_step_changes_nothing_in_the_end(flow: Flow, name: str, visit: int) -> None:
    async def scenario(bench: Bench) -> None:
        bench.killer.kill_at[name] = visit
        await through(bench, flow)

        assert bench.deaths == 1
        check(bench, flow)

    on_a_bench(scenario)


def test_every_step_has_its_failpoint() -> None:
    """A step that is added without being reached by a flow above would be one whose crash nobody tries."""
    reached = {name for _, name, _ in KILLS}

    assert reached == {
        "hostd.action.done",
        "hostd.action.started",
        "hostd.delete.forgotten",
        "hostd.delete.removed",
        "hostd.delete.unplugged",
        "hostd.hold.held",
        "hostd.plug.disk",
        "hostd.plug.interface",
        "hostd.plug.wired",
        "hostd.reboot.pressed",
        "hostd.rebuild.cleared",
        "hostd.report.sent",
        "hostd.session.granted",
        "hostd.snapshot.captured",
        "hostd.snapshot.dropped",
        "hostd.snapshot.handed_in",
        "hostd.spawn.defined",
        "hostd.spawn.files",
        "hostd.spawn.image",
        "hostd.spawn.made",
        "hostd.spawn.plugged",
        "hostd.spawn.started",
        "hostd.spawn.volumes",
        "hostd.stop.cut",
        "hostd.stop.pressed",
        "hostd.unplug.disk",
        "hostd.unplug.interface",
    }


# ------------------------------------------------------------ random


@dataclass(frozen=True)
class Deed:
    """One thing that happens, after a while."""

    what: str
    after_s: float


DEEDS = st.lists(
    st.builds(
        Deed,
        st.sampled_from(
            [
                "run",
                "stop",
                "reboot-soft",
                "reboot-hard",
                "rebuild",
                "snapshot",
                "delete",
                "move-away",
                "kill",
                "pause",
                "cut",
                "silence",
                "stale",
                "power-cycle",
                "guest-off",
                "guest-crash",
                "lose-event",
                "hypervisor-away",
                "journal-lost",
            ]
        ),
        st.sampled_from([0.0, 0.02, 0.1, 0.5, 3.0, 12.0]),
    ),
    max_size=25,
)


class Watcher:
    """What must hold at every physical event, told by what the conductor's store holds at that moment."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._highest = 0

    def see(self, event: MachineEvent) -> None:
        self._bench.events.append(event)
        if event.kind == "started":
            assert event.placement_epoch >= self._highest, "an old placement was started"
            self._highest = event.placement_epoch
            renewed_s = self._bench.conductor.renewed_s
            assert renewed_s is not None, "started without a session"
            assert self._bench.loop.time() - renewed_s < 60.1, "started without a permit"
        if event.kind == "forgotten":
            ordered = self._bench.conductor.orders.get(ONE)
            assert (
                ordered is None
                or ordered.want is Want.ABSENT
                or ordered.placement_epoch > event.placement_epoch
            ), "destroyed although its record wants it"


async def do(bench: Bench, deed: Deed, now: Order | None) -> Order | None:
    """Do it; returns the latest order, None once the guest has been ordered gone from here."""
    machine, conductor = bench.machine, bench.conductor
    latest = now or order(placement_epoch=len(conductor.gone) + 1, generation=0)
    following = replace(latest, generation=latest.generation + 1)
    reboot = replace(following, want=Want.RUN, action_seq=latest.action_seq + 1)
    match deed.what:
        case "run":
            await conductor.give(now := replace(following, want=Want.RUN))
        case "stop" if now:
            await conductor.give(now := replace(following, want=Want.STOP, stop_timeout_s=20))
        case "reboot-soft" if now:
            await conductor.give(now := replace(reboot, action=OneShot.REBOOT_SOFT))
        case "reboot-hard" if now:
            await conductor.give(now := replace(reboot, action=OneShot.REBOOT_HARD))
        case "rebuild" if now:
            seq = latest.action_seq + 1
            await conductor.give(now := replace(following, action_seq=seq, action=OneShot.REBUILD))
        case "snapshot" if now:
            seq = latest.action_seq + 1
            await conductor.give(
                now := replace(
                    following, action_seq=seq, action=OneShot.SNAPSHOT, action_image_id=SNAPSHOT_ID
                )
            )
        case "delete" if now:
            await conductor.give(replace(following, want=Want.ABSENT))
            conductor.gone.append(latest.placement_epoch)
            now = None
        case "move-away" if now:
            await conductor.release(release(placement_epoch=latest.placement_epoch))
            conductor.gone.append(latest.placement_epoch)
            now = None
        case "kill":
            bench.process.kill()
            bench.restart()
        case "pause":
            bench.process.pause()
            await asyncio.sleep(20)
            bench.process.resume()
        case "cut":
            await conductor.hang_up()
        case "silence":
            conductor.acks_beats = not conductor.acks_beats
        case "stale":
            await conductor.late(order(Want.RUN, generation=99))
        case "power-cycle":
            bench.process.kill()
            machine.power_cycle()
            bench.restart()
        case "guest-off":
            machine.shut_down_guest(ONE)
        case "guest-crash":
            machine.crash_guest(ONE)
        case "lose-event":
            machine.lost_events += 1
        case "hypervisor-away":
            machine.hypervisor_up = not machine.hypervisor_up
            machine.restart_hypervisor()
        case "journal-lost":
            bench.process.kill()
            bench.memory.lose()
            bench.restart()
    return now


@settings(max_examples=25)
@given(DEEDS, st.integers(0, 2**32))
def test_whatever_happens_rules_hold_and_in_the_end_the_order_is_true(deeds: list[Deed], seed: int) -> None:
    ends_well(deeds, seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=1000)
@given(DEEDS, st.integers(0, 2**32))
def test_whatever_happens_a_thousand_times(deeds: list[Deed], seed: int) -> None:
    ends_well(deeds, seed)


def ends_well(deeds: list[Deed], seed: int) -> None:
    """Let it all happen, then heal, and see that the daemon lives and that what was ordered last is what is."""

    async def scenario(bench: Bench) -> None:
        bench.machine.record = Watcher(bench).see
        bench.process.start()
        now: Order | None = None
        for deed in deeds:
            now = await do(bench, deed, now)
            await asyncio.sleep(deed.after_s)
        bench.machine.hypervisor_up = True
        bench.machine.lost_events = 0
        bench.conductor.acks_beats = True
        await asyncio.sleep(200)
        await bench.machine.settle()

        main = bench.process.main_task
        assert main is not None
        assert not main.done()
        if now is None:
            assert (bench.machine.domains, bench.machine.folders, bench.machine.wires) == ({}, {}, {})
            assert not bench.conductor.releases
            return
        said = bench.conductor.statuses(ONE)[-1]
        assert (said.placement_epoch, said.generation, said.action_seq) == (
            now.placement_epoch,
            now.generation,
            now.action_seq,
        )
        runs = ONE in bench.machine.running()
        assert runs == (said.state is HostState.ACTIVE)
        if now.want is Want.STOP:
            assert not runs

    on_a_bench(scenario, seed=seed)
