"""Builds that boot from a volume: placed where its data is, and one of them at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fabric.model.host import Resources
from fabric.model.instance import Build, Instance, MoveWanted
from fabric.model.states import TaskState, VmState
from fabric.model.volume import GuestVolume, Volume, VolumeEntry, VolumeState
from fabric.scheduler.core.boot_volumes import VOLUME_UNAVAILABLE
from fabric.scheduler.core.saga import NO_VALID_HOST
from fabric.store import codec, keys
from fabric.store.base import Txn
from tests.unit.scheduler.stage import WALL_MS, Stage, build, host, play

ROOT = GuestVolume(id="v-1", size_gib=5, is_root=True)
HOSTS = ("h1", "h2", "h3")


def booting(name: str, *, cell: str = "east", ends: bool = False) -> Build:
    """A build that boots from the volume."""
    plain = build(name, Resources(vcpus=1, ram_mib=512, disk_gib=0), cell=cell, create_time_ms=WALL_MS)
    guest = replace(plain.request.guest, image=None, volumes=(ROOT,))
    return replace(plain, request=replace(plain.request, guest=guest, root_ends_with_instance=ends))


async def opened(stage: Stage, *, entry_cell: str = "", volume: Volume | None = None) -> None:
    await stage.open(*(host(name) for name in HOSTS))
    entry = VolumeEntry(id="v-1", project_id="p-1", user_id="u-1", name="root", size_gib=5, cell=entry_cell)
    await stage.put(stage.globe, keys.VOLUME_ENTRY.at("p-1", "v-1"), entry)
    if volume is not None:
        await stage.put(stage.cells["east"], keys.VOLUME.at("v-1"), volume)
    stage.schedule("s1")
    stage.schedule("s2")
    await asyncio.sleep(2)


async def volume_of(stage: Stage, cell: str = "east") -> Volume:
    key = keys.VOLUME.at("v-1")
    stored = (await stage.cells[cell].get(key)).value(key)
    assert stored is not None
    return codec.decode(Volume, stored)


async def cell_of(stage: Stage) -> str:
    key = keys.VOLUME_ENTRY.at("p-1", "v-1")
    stored = (await stage.globe.get(key)).value(key)
    assert stored is not None
    return codec.decode(VolumeEntry, stored).cell


def test_a_volume_that_nobody_has_used_goes_wherever_its_server_does() -> None:
    async def world(stage: Stage) -> None:
        await opened(stage)
        await stage.accept(booting("i-0", ends=True))
        await asyncio.sleep(2)

        (record,) = (await stage.instances()).values()
        volume = await volume_of(stage)
        assert (volume.state, volume.host, volume.instance_id) == (VolumeState.IN_USE, record.host, "i-0")
        assert (volume.size_gib, volume.ends_with_instance, await cell_of(stage)) == (5, True, "east")
        assert (await stage.uses())[record.host].volumes_gib == 5
        assert record.alternates == ()

    play(world)


@pytest.mark.parametrize("name", HOSTS)
def test_a_server_runs_where_the_data_of_its_volume_is(name: str) -> None:
    async def world(stage: Stage) -> None:
        there = Volume(id="v-1", project_id="p-1", state=VolumeState.AVAILABLE, host=name, size_gib=5)
        await opened(stage, entry_cell="east", volume=there)
        await stage.accept(booting("i-0"))
        await asyncio.sleep(2)

        (record,) = (await stage.instances()).values()
        assert record.host == name
        assert (await stage.uses())[name].volumes_gib == 0

    play(world)


@pytest.mark.parametrize("seed", range(10))
def test_of_two_servers_that_want_one_volume_one_has_it(seed: int) -> None:
    async def world(stage: Stage) -> None:
        await opened(stage)
        await stage.accept(booting("i-0"), booting("i-1"))
        await asyncio.sleep(5)

        records = (await stage.instances()).values()
        (won,) = (each for each in records if each.host)
        (lost,) = (each for each in records if not each.host)
        assert (await volume_of(stage)).instance_id == won.id
        assert lost.vm_state is VmState.ERROR
        assert lost.fault is not None
        assert (lost.fault.code, won.id in lost.fault.message) == (VOLUME_UNAVAILABLE, True)
        assert lost.request.guest.volumes == ()
        assert await stage.builds() == {}

    play(world, seed=seed)


def test_a_server_whose_volume_is_gone_ends_in_error() -> None:
    async def world(stage: Stage) -> None:
        await opened(stage)
        await stage.globe.commit(Txn(delete=(keys.VOLUME_ENTRY.at("p-1", "v-1"),)))
        await stage.accept(booting("i-0"))
        await asyncio.sleep(2)

        (record,) = (await stage.instances()).values()
        assert record.fault is not None
        assert (record.fault.code, "deleted" in record.fault.message) == (VOLUME_UNAVAILABLE, True)

    play(world)


def test_a_volume_that_is_elsewhere_is_said_to_be() -> None:
    async def world(stage: Stage) -> None:
        await opened(stage, entry_cell="west")
        await stage.accept(booting("i-0"))
        await asyncio.sleep(2)

        (record,) = (await stage.instances()).values()
        assert record.fault is not None
        assert (record.fault.code, "cell west" in record.fault.message) == (VOLUME_UNAVAILABLE, True)

    play(world)


def test_a_volume_larger_than_any_host_has_room_for_leaves_its_server_nowhere() -> None:
    async def world(stage: Stage) -> None:
        await opened(stage)
        entry = VolumeEntry(id="v-1", project_id="p-1", user_id="u-1", name="root", size_gib=10_000)
        await stage.put(stage.globe, keys.VOLUME_ENTRY.at("p-1", "v-1"), entry)
        await stage.accept(booting("i-0"))
        await asyncio.sleep(60)

        records = {**await stage.instances(), **await stage.instances("west")}
        (record,) = records.values()
        assert record.fault is not None
        assert record.fault.code == NO_VALID_HOST
        assert "short of disk" in record.fault.message

    play(world)


def test_a_volume_that_nobody_has_used_follows_its_server_to_another_cell() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("h9", cell="west"))
        entry = VolumeEntry(id="v-1", project_id="p-1", user_id="u-1", name="root", size_gib=5)
        await stage.put(stage.globe, keys.VOLUME_ENTRY.at("p-1", "v-1"), entry)
        stage.schedule("s1")
        await asyncio.sleep(2)
        await stage.accept(booting("i-0"))
        await asyncio.sleep(5)

        (record,) = (await stage.instances("west")).values()
        assert (record.host, await cell_of(stage)) == ("h9", "west")
        assert (await volume_of(stage, "west")).instance_id == "i-0"

    play(world)


def test_a_server_whose_volume_is_in_a_shared_directory_goes_to_a_host_that_shares_it() -> None:
    async def world(stage: Stage) -> None:
        there = Volume(
            id="v-1", project_id="p-1", state=VolumeState.AVAILABLE, host="h3", size_gib=5, directory="nfs1"
        )
        await stage.open(host("h1"), host("h2", traits=("VOLUMES_NFS1",)), host("h3"))
        entry = VolumeEntry(
            id="v-1",
            project_id="p-1",
            user_id="u-1",
            name="root",
            size_gib=5,
            cell="east",
            directory="nfs1",
        )
        await stage.put(stage.globe, keys.VOLUME_ENTRY.at("p-1", "v-1"), entry)
        await stage.put(stage.cells["east"], keys.VOLUME.at("v-1"), there)
        stage.schedule("s1")
        await asyncio.sleep(2)
        wanted = booting("i-0")
        guest = replace(wanted.request.guest, volumes=(replace(ROOT, directory="nfs1"),))
        await stage.accept(replace(wanted, request=replace(wanted.request, guest=guest)))
        await asyncio.sleep(2)

        (record,) = (await stage.instances()).values()
        assert record.host == "h2"
        assert ((await volume_of(stage)).host, (await stage.uses())["h2"].volumes_gib) == ("h2", 0)

    play(world)


def test_a_volume_that_cannot_be_looked_at_holds_up_its_own_server_alone() -> None:
    async def world(stage: Stage) -> None:
        await stage.open(host("h1"))
        entry = VolumeEntry(id="v-1", project_id="p-1", user_id="u-1", name="root", size_gib=5)
        await stage.put(stage.globe, keys.VOLUME_ENTRY.at("p-1", "v-1"), entry)
        running = stage.schedule("s1")
        await asyncio.sleep(2)
        running.to_cell["east"].away()
        plain = build("i-9", create_time_ms=WALL_MS)
        await stage.accept(booting("i-0"), plain)
        await asyncio.sleep(0.5)
        running.to_global.away()
        running.to_cell["east"].away(is_away=False)
        await asyncio.sleep(20)

        assert set(await stage.instances()) == {"i-9"}
        running.to_global.away(is_away=False)
        await asyncio.sleep(30)
        assert set(await stage.instances()) == {"i-0", "i-9"}

    play(world)


@pytest.mark.parametrize(("directory", "hosts"), [("", {"h2"}), ("nfs1", {"h3"})])
def test_a_shelved_server_comes_back_where_its_volume_is(directory: str, hosts: set[str]) -> None:
    """On the host with the file, or on one that shares its directory, whichever had it last; claimed once by two schedulers."""

    async def world(stage: Stage) -> None:
        await stage.open(host("h1"), host("h2"), host("h3", traits=frozenset({"VOLUMES_NFS1"})))
        root = replace(ROOT, directory=directory)
        asked = booting("i-0").request
        record = Instance(
            id="i-0",
            request=replace(asked, guest=replace(asked.guest, volumes=(root,))),
            vm_state=VmState.SHELVED_OFFLOADED,
            task=TaskState.UNSHELVING,
            task_deadline_ms=WALL_MS + 3_600_000,
            placement_epoch=1,
            highest_epoch=1,
            generation=4,
        )
        volume = Volume(
            id="v-1",
            project_id="p-1",
            state=VolumeState.IN_USE,
            host="h2",
            size_gib=5,
            instance_id="i-0",
            directory=directory,
        )
        work = MoveWanted(instance_id="i-0", request=record.request, create_time_ms=WALL_MS)
        cell = stage.cells["east"]
        for key, value in (
            (keys.INSTANCE.at("i-0"), record),
            (keys.VOLUME.at("v-1"), volume),
            (keys.MOVE.at("i-0"), work),
        ):
            await stage.put(cell, key, value)
        stage.schedule("s1")
        stage.schedule("s2")
        await asyncio.sleep(3)

        after = (await stage.instances())["i-0"]
        assert (after.host in hosts, after.placement_epoch, after.disk) == (True, 2, None)
        now = await volume_of(stage)
        assert (now.host, now.state, now.instance_id) == (after.host, VolumeState.IN_USE, "i-0")
        assert (await stage.uses())[after.host].claimed.vcpus == 1
        assert await stage.held(keys.MOVE) == set()

    play(world)
