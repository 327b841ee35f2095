"""Volumes and interfaces of guests by the daemon as it ships, on a simulated machine."""

from __future__ import annotations

from fabric.model.session import HostState, Release
from fabric.model.states import Want
from fabric.model.volume import VOLUME_EPOCH
from hostd.core.faults import FaultCode
from tests.unit.hostd.bench import Bench, on_a_bench, raised
from tests.unit.hostd.orders import VOLUME, instance_id, order, with_ports, with_volume

ONE, TWO = instance_id(1), instance_id(2)


async def told(bench: Bench, generation: int, instance: str = ONE) -> tuple[HostState, str]:
    """What is said of this generation, first."""
    await bench.until(
        lambda: any(said.generation == generation for said in bench.conductor.statuses(instance))
    )
    said = next(said for said in bench.conductor.statuses(instance) if said.generation == generation)
    return said.state, said.fault_code


def disks(bench: Bench, instance: str = ONE) -> tuple[str, ...]:
    running = bench.machine.domains[instance].running
    assert running is not None
    return tuple(disk.serial for disk in running.disks)


def test_a_volume_that_cannot_be_made_leaves_the_guest_running_and_says_why() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.fail_next["ensure_volume"].append(FaultCode.DISK_FULL)
        await bench.conductor.give(with_volume(order(generation=2), VOLUME))

        assert await told(bench, 2) == (HostState.ACTIVE, FaultCode.DISK_FULL)
        assert (bench.machine.running(), disks(bench)) == ({ONE: 1}, ("root", "config-2"))

    on_a_bench(scenario)


def test_a_guest_that_does_not_let_go_keeps_the_disk_and_is_told_of_until_it_does() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(with_volume(order(generation=2), VOLUME))
        await told(bench, 2)
        bench.machine.stubborn.add(ONE)
        await bench.conductor.give(order(generation=3))

        assert await told(bench, 3) == (HostState.ACTIVE, FaultCode.DEVICE_HELD)
        assert VOLUME.serial in disks(bench)
        bench.machine.stubborn.clear()
        bench.machine.unplug(ONE, VOLUME.serial)
        await bench.until(lambda: bench.conductor.statuses(ONE)[-1].fault_code == "")
        assert bench.conductor.statuses(ONE)[-1].state is HostState.ACTIVE

    on_a_bench(scenario)


def test_a_guest_that_kept_a_disk_loses_it_with_its_power() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(with_volume(order(generation=2), VOLUME))
        await told(bench, 2)
        bench.machine.stubborn.add(ONE)
        await bench.conductor.give(order(generation=3))
        await told(bench, 3)
        await bench.conductor.give(order(Want.STOP, generation=4, stop_timeout_s=1))

        assert await told(bench, 4) == (HostState.STOPPED, "")

    on_a_bench(scenario)


def test_a_guest_is_suspended_with_the_devices_that_it_is_to_have() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(with_volume(order(generation=2), VOLUME))
        await told(bench, 2)
        await bench.conductor.give(order(Want.SUSPEND, generation=3))
        await told(bench, 3)

        saved = bench.machine.domains[ONE].saved
        assert saved is not None
        assert VOLUME.serial not in [disk.serial for disk in saved.disks]

    on_a_bench(scenario)


def test_a_volume_goes_from_guest_to_guest_and_outlives_them() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(order(number=2))
        await told(bench, 1, TWO)
        await bench.conductor.give(with_volume(order(generation=2), VOLUME))
        await told(bench, 2)
        await bench.conductor.give(order(generation=3))
        await told(bench, 3)
        await bench.conductor.give(with_volume(order(number=2, generation=2), VOLUME))
        await told(bench, 2, TWO)
        assert VOLUME.serial in disks(bench, TWO)
        await bench.conductor.give(order(Want.ABSENT, number=2, generation=3))
        assert await told(bench, 3, TWO) == (HostState.ABSENT, "")

        assert bench.machine.volumes == {VOLUME.id: VOLUME.size_gib}
        assert not [event for event in bench.events if event.kind == "shared"]

    on_a_bench(scenario)


def test_a_volume_is_removed_by_a_release_of_its_own() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(with_volume(order(generation=2), VOLUME))
        await told(bench, 2)
        await bench.conductor.give(order(generation=3))
        await told(bench, 3)
        await bench.conductor.release(
            Release(epoch=bench.conductor.epoch, instance_id=VOLUME.id, placement_epoch=VOLUME_EPOCH)
        )
        await bench.until(lambda: not bench.conductor.releases)

        assert bench.machine.volumes == {}
        assert bench.machine.running() == {ONE: 1}

    on_a_bench(scenario)


def test_an_interface_that_fails_leaves_the_others() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.fail_next["attach_interface"].append(FaultCode.INTERFACE_ATTACH_FAILED)
        await bench.conductor.give(with_ports(order(generation=2), 1, 2))

        assert await told(bench, 2) == (HostState.ACTIVE, FaultCode.INTERFACE_ATTACH_FAILED)
        await bench.conductor.give(order(generation=3))
        assert await told(bench, 3) == (HostState.ACTIVE, "")
        assert len(bench.machine.wires[ONE][1]) == 1

    on_a_bench(scenario)


def test_an_interface_pulled_out_of_a_guest_that_is_off_is_free_for_another_one() -> None:
    async def scenario(bench: Bench) -> None:
        bench.conductor.orders[ONE] = with_ports(order(), 1, 2)
        bench.process.start()
        assert await told(bench, 1) == (HostState.ACTIVE, "")
        await bench.conductor.give(with_ports(order(Want.STOP, generation=2), 1, 2))
        assert await told(bench, 2) == (HostState.STOPPED, "")
        await bench.conductor.give(order(Want.STOP, generation=3))
        assert await told(bench, 3) == (HostState.STOPPED, "")

        await bench.conductor.give(order(number=2))

        assert await told(bench, 1, TWO) == (HostState.ACTIVE, "")

    on_a_bench(scenario)
