"""Volumes and interfaces of guests by the daemon as it ships, on a simulated machine."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest

from fabric.model.instance import VolumeImage
from fabric.model.session import HostState, Order, Release
from fabric.model.states import Want
from fabric.model.volume import VOLUME_EPOCH, GuestVolume
from hostd.core.faults import FaultCode
from hostd.driver.base import DiskFile
from hostd.driver.fake import FakeMachine, FakeShelf
from hostd.volumes.fake import FakeVolumes
from tests.unit.hostd.bench import Bench, on_a_bench, raised
from tests.unit.hostd.orders import IMAGE, VOLUME, instance_id, order, with_ports, with_volume

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


class HungVolumes(FakeVolumes):
    """Of a directory whose server is away: whoever wants something of it waits until it is back."""

    def __init__(self, machine: FakeMachine, directory: str, *, hangs_in_looks: bool = False) -> None:
        super().__init__(machine, directory)
        self.is_back = asyncio.Event()
        self.hangs_in_looks = hangs_in_looks
        self.waiting = 0

    async def _hang(self) -> None:
        self.waiting += 1
        try:
            await self.is_back.wait()
        finally:
            self.waiting -= 1

    async def ensure(
        self, volume: GuestVolume, owner: int | None, source: DiskFile | None = None
    ) -> DiskFile:
        await self._hang()
        return await super().ensure(volume, owner, source)

    async def is_unmade(self, volume_id: str) -> bool:
        if self.hangs_in_looks:
            await self._hang()
        return await super().is_unmade(volume_id)


def hung(bench: Bench, *, hangs_in_looks: bool = False) -> HungVolumes:
    """Let the bench's host have a shared directory that hangs."""
    bench.machine.shelves["nfs1"] = FakeShelf()
    volumes = HungVolumes(bench.machine, "nfs1", hangs_in_looks=hangs_in_looks)
    bench.shared = lambda _: volumes
    return volumes


def with_shared(before: Order, number: int, *, is_of_image: bool = False) -> Order:
    """The order for a guest with a volume of the shared directory, which may be still to be made of an image."""
    volume = GuestVolume(id=str(uuid.UUID(int=0x900 + number)), size_gib=1, directory="nfs1")
    sources = (VolumeImage(volume_id=volume.id, image=IMAGE),) if is_of_image else ()
    return replace(before, guest=replace(before.guest, volumes=(volume,), volume_images=sources))


@pytest.mark.parametrize("is_of_image", [False, True])
def test_guests_of_a_shared_directory_that_hangs_hold_up_no_other_guest(*, is_of_image: bool) -> None:
    """Each of them took one of the places for starts, or for disks that are made, and kept it until the directory's server was back: four
    stopped every start on the host.
    """

    async def scenario(bench: Bench) -> None:
        volumes = hung(bench)
        bench.process.start()
        for number in range(2, 8):
            await bench.conductor.give(with_shared(order(number=number), number, is_of_image=is_of_image))
        await bench.until(lambda: volumes.waiting > 0)
        await asyncio.sleep(5)

        await bench.conductor.give(order())

        await bench.until(lambda: HostState.ACTIVE in bench.conductor.states(ONE), within_s=5)
        assert bench.conductor.states(TWO) == []
        volumes.is_back.set()
        for number in range(2, 8):
            assert await told(bench, 1, instance_id(number)) == (HostState.ACTIVE, "")

    on_a_bench(scenario)


@pytest.mark.parametrize("hangs_in_looks", [False, True])
def test_a_guest_that_waits_for_a_shared_directory_is_deleted_all_the_same(*, hangs_in_looks: bool) -> None:
    """The delete waited for the directory's server too."""

    async def scenario(bench: Bench) -> None:
        volumes = hung(bench, hangs_in_looks=hangs_in_looks)
        bench.process.start()
        await bench.conductor.give(with_shared(order(), 1, is_of_image=True))
        await bench.until(lambda: volumes.waiting > 0)

        await bench.conductor.give(with_shared(order(Want.ABSENT, generation=2), 1))

        await bench.until(lambda: HostState.ABSENT in bench.conductor.states(ONE), within_s=5)
        assert volumes.waiting == 0

    on_a_bench(scenario)


def test_a_guest_that_is_given_a_volume_of_a_directory_that_hangs_is_deleted_all_the_same() -> None:
    async def scenario(bench: Bench) -> None:
        volumes = hung(bench)
        await raised(bench)
        await bench.conductor.give(with_shared(order(generation=2), 1))
        await bench.until(lambda: volumes.waiting > 0)

        await bench.conductor.give(with_shared(order(Want.ABSENT, generation=3), 1))

        await bench.until(lambda: HostState.ABSENT in bench.conductor.states(ONE), within_s=5)

    on_a_bench(scenario)
