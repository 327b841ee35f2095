"""Guests that boot from volumes, and volumes that are made of images, by the daemon as it ships, on a simulated machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from fabric.model.instance import Rescue, VolumeImage
from fabric.model.session import HostState, Order, Release, Report
from fabric.model.states import Want
from fabric.model.volume import VOLUME_EPOCH, GuestVolume
from hostd.core.faults import FaultCode
from hostd.driver.base import DriverError
from hostd.driver.fake import INSTANT, FakeMachine, FakeShelf
from tests.unit.hostd.bench import Bench, on_a_bench, raised
from tests.unit.hostd.orders import IMAGE, VOLUME, instance_id, order, with_volume
from tests.unit.hostd.test_volumes import disks, told

ONE, TWO = instance_id(1), instance_id(2)
ROOT: Final = replace(VOLUME, is_root=True)
SOURCE: Final = VolumeImage(volume_id=VOLUME.id, image=IMAGE)


def booting(before: Order, *volumes: GuestVolume, made_of: VolumeImage | None = SOURCE) -> Order:
    """The order for a guest that boots from a volume, which is of an image, or was never made of one."""
    sources = () if made_of is None else (made_of,)
    guest = replace(before.guest, image=None, disk_gib=0, volumes=volumes or (ROOT,), volume_images=sources)
    return replace(before, guest=guest)


def test_a_guest_boots_from_a_volume_that_is_made_of_an_image_and_outlives_it() -> None:
    async def scenario(bench: Bench) -> None:
        bench.process.start()
        await bench.conductor.give(booting(order()))
        assert await told(bench, 1) == (HostState.ACTIVE, "")
        assert disks(bench) == (ROOT.serial, "config-2")
        made = bench.machine.image_data[IMAGE.sha256]
        assert bench.machine.volume_data == {ROOT.id: made}
        bench.machine.write_to_disk(ONE, b" and a note")
        await bench.conductor.give(order(Want.ABSENT, generation=2))
        assert await told(bench, 2) == (HostState.ABSENT, "")

        await bench.conductor.give(booting(order(number=2)))
        assert await told(bench, 1, TWO) == (HostState.ACTIVE, "")
        assert bench.machine.volume_data == {ROOT.id: made + b" and a note"}

    on_a_bench(scenario)


def test_an_image_is_not_needed_any_more_once_its_volume_is_made() -> None:
    async def scenario(bench: Bench) -> None:
        bench.process.start()
        await bench.conductor.give(booting(order()))
        await told(bench, 1)
        await bench.conductor.give(booting(order(Want.STOP, generation=2, stop_timeout_s=1)))
        await told(bench, 2)
        bench.machine.images.clear()
        bench.conductor.relays_images = False

        await bench.conductor.give(booting(order(generation=3)))
        assert await told(bench, 3) == (HostState.ACTIVE, "")

    on_a_bench(scenario)


def test_a_volume_whose_image_cannot_be_had_is_not_made_empty() -> None:
    async def scenario(bench: Bench) -> None:
        bench.conductor.relays_images = False
        bench.process.start()
        await bench.conductor.give(booting(order()))

        assert await told(bench, 1) == (HostState.ERROR, FaultCode.IMAGE_UNAVAILABLE)
        assert bench.machine.volumes == {}

    on_a_bench(scenario)


def test_a_root_volume_that_is_lost_is_no_reason_to_make_another() -> None:
    async def scenario(bench: Bench) -> None:
        bench.process.start()
        await bench.conductor.give(booting(order()))
        await told(bench, 1)
        await bench.conductor.give(booting(order(Want.STOP, generation=2, stop_timeout_s=1)))
        await told(bench, 2)
        bench.machine.volumes[ROOT.id] = -1

        await bench.conductor.give(booting(order(generation=3)))
        assert await told(bench, 3) == (HostState.ERROR, FaultCode.VOLUME_LOST)

    on_a_bench(scenario)


def test_a_rescued_guest_has_its_root_volume_as_its_second_disk() -> None:
    async def scenario(bench: Bench) -> None:
        bench.process.start()
        await bench.conductor.give(booting(order()))
        await told(bench, 1)
        wanted = booting(order(Want.STOP, generation=2, stop_timeout_s=1))
        await bench.conductor.give(wanted)
        await told(bench, 2)
        rescued = booting(order(generation=3))
        guest = replace(rescued.guest, rescue=Rescue(image=IMAGE))
        await bench.conductor.give(replace(rescued, guest=guest))

        assert await told(bench, 3) == (HostState.ACTIVE, "")
        assert disks(bench) == ("rescue", ROOT.serial, "config-2")

    on_a_bench(scenario)


def test_other_volumes_come_after_the_root_and_go_while_it_stays() -> None:
    other = GuestVolume(id=f"{VOLUME.id[:-1]}2", size_gib=1)

    async def scenario(bench: Bench) -> None:
        bench.process.start()
        await bench.conductor.give(booting(order(), other, ROOT))
        await told(bench, 1)
        assert disks(bench) == (ROOT.serial, "config-2", other.serial)
        await bench.conductor.give(booting(order(generation=2), ROOT))

        assert await told(bench, 2) == (HostState.ACTIVE, "")
        assert disks(bench) == (ROOT.serial, "config-2")

    on_a_bench(scenario)


def test_a_volume_of_an_image_is_plugged_into_a_running_guest_once_it_is_made() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.images.clear()
        wanted = with_volume(order(generation=2), VOLUME)
        await bench.conductor.give(replace(wanted, guest=replace(wanted.guest, volume_images=(SOURCE,))))

        assert await told(bench, 2) == (HostState.ACTIVE, "")
        assert bench.machine.volume_data == {VOLUME.id: bench.machine.image_data[IMAGE.sha256]}

    on_a_bench(scenario)


def test_a_guest_whose_new_volume_cannot_be_made_of_its_image_goes_on_without() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        bench.machine.images.clear()
        bench.conductor.relays_images = False
        wanted = with_volume(order(generation=2), VOLUME)
        await bench.conductor.give(replace(wanted, guest=replace(wanted.guest, volume_images=(SOURCE,))))

        assert await told(bench, 2) == (HostState.ACTIVE, FaultCode.IMAGE_UNAVAILABLE)
        assert (bench.machine.running(), bench.machine.volumes) == ({ONE: 1}, {})

    on_a_bench(scenario)


def test_wherever_the_daemon_dies_the_guest_boots_from_its_one_volume() -> None:
    for place in ("hostd.spawn.image", "hostd.spawn.files", "hostd.spawn.made", "hostd.spawn.volumes"):

        async def scenario(bench: Bench, place: str = place) -> None:
            bench.killer.kill_at[place] = 1
            bench.process.start()
            await bench.conductor.give(booting(order()))
            await bench.until(lambda: bench.killer.visits[place] == 1)
            bench.restart()

            assert await told(bench, 1) == (HostState.ACTIVE, "")
            assert bench.machine.volume_data == {ROOT.id: bench.machine.image_data[IMAGE.sha256]}

        on_a_bench(scenario)


# ------------------------------------------------------------ directories that hosts share

OURS: Final = replace(VOLUME, directory="pool")


def test_a_volume_in_a_shared_directory_is_found_there_by_another_host() -> None:
    shelf = FakeShelf({OURS.id: OURS.size_gib}, {OURS.id: b"written on another host"})

    async def scenario(bench: Bench) -> None:
        bench.machine.share("pool", shelf)
        await raised(bench)
        await bench.conductor.give(with_volume(order(generation=2), OURS))

        assert await told(bench, 2) == (HostState.ACTIVE, "")
        assert (disks(bench)[-1], bench.machine.volumes) == (OURS.serial, {})
        await bench.conductor.give(order(generation=3))
        await told(bench, 3)
        epoch = bench.conductor.epoch
        await bench.conductor.release(
            Release(epoch=epoch, instance_id=OURS.id, placement_epoch=VOLUME_EPOCH, directory="pool")
        )
        await bench.until(lambda: not bench.conductor.releases)
        assert shelf.sizes == {}

    on_a_bench(scenario)


def test_a_guest_whose_volume_is_in_a_directory_that_is_not_shared_here_goes_on_without() -> None:
    async def scenario(bench: Bench) -> None:
        await raised(bench)
        await bench.conductor.give(with_volume(order(generation=2), OURS))

        assert await told(bench, 2) == (HostState.ACTIVE, FaultCode.VOLUME_UNREACHABLE)
        await bench.conductor.give(order(generation=3))
        assert await told(bench, 3) == (HostState.ACTIVE, "")

    on_a_bench(scenario)


def test_a_disk_that_a_guest_of_another_host_has_open_is_refused() -> None:
    shelf = FakeShelf()

    async def scenario(bench: Bench) -> None:
        bench.machine.share("pool", shelf)
        await raised(bench)
        await bench.conductor.give(with_volume(order(generation=2), OURS))
        await told(bench, 2)
        other = FakeMachine("h2", delays=INSTANT)
        other.share("pool", shelf)
        spec = bench.machine.domains[ONE].running
        assert spec is not None
        other.define(replace(spec, guest=replace(spec.guest, id=TWO)))

        with pytest.raises(DriverError):
            other.start(TWO)

    on_a_bench(scenario)


def test_what_a_host_is_set_to_share_is_reported() -> None:
    async def scenario(bench: Bench) -> None:
        bench.machine.share("pool", FakeShelf())
        bench.process.start()
        await bench.until(lambda: bool(bench.conductor.of(Report)))

        assert bench.conductor.of(Report)[0].directories == ("pool",)

    on_a_bench(scenario)
