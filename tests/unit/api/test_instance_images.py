"""Images of servers' disks, backups and rebuilds, as an API server takes them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fabric.errors import AlreadyExists, Conflict, InvalidRequest, Unavailable, WrongState
from fabric.images.core import snapshots
from fabric.lifecycle.core import failed
from fabric.model.host import Host, Resources
from fabric.model.image import Image, ImageState
from fabric.model.instance import Fault, Instance, OneShot
from fabric.model.states import TaskState, VmState, Want
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import ASSIGNMENT, BUILD, HOST, IMAGE, INSTANCE, LOCATION
from tests.unit.api.test_instances import WHO, World, in_a_world


async def asked(world: World, server: str, name: str = "golden", request_id: str = "", **fields: Any) -> Any:
    request = pb.CreateInstanceImageRequest(
        request_id=request_id or world.rid(), instance=server, name=name, **fields
    )
    return await vars(world.handlers)["create_instance_image"](request, WHO)


async def backed_up(world: World, server: str) -> Any:
    request = pb.CreateInstanceBackupRequest(
        request_id=world.rid(), instance=server, name="monday", backup_type="daily", rotation=7
    )
    return await vars(world.handlers)["create_instance_backup"](request, WHO)


async def rebuilt(
    world: World, server: str, image: str = "linux", request_id: str = "", **fields: Any
) -> Any:
    request = pb.RebuildInstanceRequest(
        request_id=request_id or world.rid(), instance=server, image=image, **fields
    )
    return await vars(world.handlers)["rebuild_instance"](request, WHO)


async def waiting(world: World) -> list[Image]:
    listed = await world.store.list(IMAGE.under())
    found = [await world.read(world.store, IMAGE, key.removeprefix("image/")) for key in listed.entries]
    return [image for image in found if image.state is ImageState.QUEUED]


async def record_of(world: World, server: str) -> Instance:
    found: Instance = await world.read(world.cells["c1"], INSTANCE, server)
    return found


async def put(world: World, instance: Instance) -> None:
    await world.cells["c1"].commit(Txn(put={INSTANCE.at(instance.id): encode(instance)}))
    await asyncio.sleep(0.1)


@in_a_world
async def test_an_image_waits_and_the_order_names_it(world: World) -> None:
    server = await world.placed()

    answer = await asked(world, server, properties={"note": "mine"})

    (image,) = await waiting(world)
    assert (image.id, image.name, image.project_id) == (answer.image_id, "golden", "p")
    assert (image.properties["note"], image.properties[snapshots.BASE]) == ("mine", "i")
    assert (await record_of(world, server)).task is TaskState.IMAGE_SNAPSHOT_PENDING
    order = await world.read(world.cells["c1"], ASSIGNMENT, "h1", server)
    assert (order.action.kind, order.action.image_id) == (OneShot.SNAPSHOT, image.id)


@in_a_world
async def test_a_request_sent_again_makes_one_image(world: World) -> None:
    server = await world.placed()

    by_id = [await asked(world, server, request_id="same") for _ in range(2)]
    assert len({answer.image_id for answer in by_id}) == 1
    with pytest.raises(Conflict):
        await asked(world, server, name="another", request_id="same")

    assert len(await waiting(world)) == 1


@pytest.mark.parametrize("becomes", ["active", "gone", "its server gone"])
def test_a_late_retry_names_the_image_whatever_became_of_it(becomes: str) -> None:
    """Its answer lost, the request was sent again when the image had come: it was done, and named no image; a client that then asked for
    the image asked for nothing.
    """

    @in_a_world
    async def world_of(world: World) -> None:
        server = await world.placed()
        first = await asked(world, server, request_id="same")
        (image,) = await waiting(world)
        if becomes == "active":
            there = replace(image, state=ImageState.ACTIVE)
            await world.store.commit(Txn(put={IMAGE.at(image.id): encode(there)}))
        elif becomes == "gone":
            await world.store.commit(Txn(delete=(IMAGE.at(image.id),)))
        else:
            await world.cells["c1"].commit(Txn(delete=(INSTANCE.at(server),)))
            await world.store.commit(Txn(delete=(LOCATION.at(server),)))
        await asyncio.sleep(0.1)

        again = await asked(world, server, request_id="same")

        assert (again.image_id, again.instance.id) == (first.image_id, server)

    world_of()


@in_a_world
async def test_a_late_retry_of_a_rebuild_is_answered_as_the_first_though_its_image_is_gone(
    world: World,
) -> None:
    server = await world.placed()
    await rebuilt(world, server, request_id="same")
    await world.store.commit(Txn(delete=(IMAGE.at("i"),)))
    await asyncio.sleep(0.1)

    again = await rebuilt(world, server, request_id="same")

    assert again.instance.id == server
    with pytest.raises(InvalidRequest):
        await rebuilt(world, server, request_id="another")


@in_a_world
async def test_an_action_that_is_refused_leaves_no_image(world: World) -> None:
    server = await world.placed()
    await put(world, replace(await record_of(world, server), vm_state=VmState.ERROR))

    with pytest.raises(WrongState):
        await asked(world, server, request_id="same")
    assert await waiting(world) == []

    await put(world, replace(await record_of(world, server), vm_state=VmState.ACTIVE))
    await asked(world, server, request_id="same")
    assert len(await waiting(world)) == 1


@in_a_world
async def test_a_server_without_a_host_has_no_disk_to_make_an_image_of(world: World) -> None:
    made = await world.create()

    with pytest.raises(WrongState, match="BUILD"):
        await asked(world, made.id)
    assert await waiting(world) == []


@in_a_world
async def test_a_name_that_is_taken_is_refused(world: World) -> None:
    server = await world.placed()
    await asked(world, server)
    other = await world.placed("other")

    with pytest.raises(AlreadyExists):
        await asked(world, other)
    assert (await record_of(world, other)).task is TaskState.NONE


@in_a_world
async def test_what_only_we_say_cannot_be_asked_for(world: World) -> None:
    server = await world.placed()

    with pytest.raises(InvalidRequest, match="instance_uuid"):
        await asked(world, server, properties={snapshots.INSTANCE: "another"})


@in_a_world
async def test_a_backup_says_what_it_replaces(world: World) -> None:
    await backed_up(world, await world.placed())

    (image,) = await waiting(world)
    assert {
        key: image.properties[key] for key in (snapshots.KIND, snapshots.BACKUP_TYPE, snapshots.ROTATION)
    } == {
        snapshots.KIND: snapshots.BACKUP,
        snapshots.BACKUP_TYPE: "daily",
        snapshots.ROTATION: "7",
    }


@in_a_world
async def test_an_image_whose_action_failed_goes_by_itself(world: World) -> None:
    server = await world.placed()
    await asked(world, server)
    sweeping = asyncio.create_task(world.handlers.waiting_images.run())
    await asyncio.sleep(60)
    assert len(await waiting(world)) == 1

    now = await record_of(world, server)
    await put(world, failed(now, Fault(code="DISK_FULL", message="full"), now_ms=1, op_id="f"))
    await asyncio.sleep(30)

    assert await waiting(world) == []
    sweeping.cancel()


@in_a_world
async def test_an_image_that_a_crash_has_left_goes_after_a_while(world: World) -> None:
    server = await world.placed()
    world.cells["c1"].is_deaf = True
    sweeping = asyncio.create_task(world.handlers.waiting_images.run())
    with pytest.raises(Unavailable):
        await asked(world, server)
    world.cells["c1"].is_deaf = False

    await asyncio.sleep(2 * snapshots.BEGUN_WITHIN_MS / 1000)

    assert await waiting(world) == []
    sweeping.cancel()


@in_a_world
async def test_a_rebuild_changes_the_guest_and_keeps_its_place(world: World) -> None:
    server = await world.placed()
    before = await record_of(world, server)

    await rebuilt(world, server, user_data=b"#!/bin/sh", metadata={"role": "db"}, name="db")

    now = await record_of(world, server)
    order = await world.read(world.cells["c1"], ASSIGNMENT, "h1", server)
    assert (now.task, now.action.kind, now.want) == (TaskState.REBUILDING, OneShot.REBUILD, Want.RUN)
    assert (now.host, now.placement_epoch, now.ports) == (before.host, 1, before.ports)
    guest = order.guest
    assert (guest.user_data, guest.metadata, guest.name) == (b"#!/bin/sh", {"role": "db"}, "db")
    assert (guest.hostname, guest.ports) == (before.request.guest.hostname, before.ports)


@in_a_world
async def test_a_rebuild_from_an_error_runs_and_of_a_stopped_server_does_not(world: World) -> None:
    for state, want in ((VmState.ERROR, Want.RUN), (VmState.STOPPED, Want.STOP)):
        server = await world.placed(f"of-{state.name.lower()}")
        await put(world, replace(await record_of(world, server), vm_state=state, want=Want.STOP))

        await rebuilt(world, server)

        assert (await record_of(world, server)).want is want


@in_a_world
async def test_an_image_that_does_not_fit_is_refused(world: World) -> None:
    """One that forbids its hosts a trait was let in: a rebuild looked only at what images require."""
    server = await world.placed()
    base: Image = await world.read(world.store, IMAGE, "i")
    unfit = {
        "large": replace(base, id="large", name="large", min_disk_gib=2),
        "greedy": replace(base, id="greedy", name="greedy", min_ram_mib=1024),
        "picky": replace(base, id="picky", name="picky", properties={"trait:GPU": "required"}),
        "shy": replace(base, id="shy", name="shy", properties={"trait:GPU": "forbidden"}),
        "late": replace(base, id="late", name="late", state=ImageState.QUEUED),
    }
    await world.store.commit(Txn(put={IMAGE.at(name): encode(image) for name, image in unfit.items()}))
    await asyncio.sleep(1.0)

    for name in (*unfit, "absent"):
        with pytest.raises(InvalidRequest) as refused:
            await rebuilt(world, server, name)
        assert refused.value.field == "image"
    assert (await record_of(world, server)).task is TaskState.NONE


async def approved(world: World, *traits: str) -> None:
    """An administrator's word on the host of the servers here."""
    host = Host(name="h1", cell="c1", zone="z", capacity=Resources(), traits=traits)
    await world.cells["c1"].commit(Txn(put={HOST.at("h1"): encode(host)}))
    await asyncio.sleep(0.1)


async def with_images(world: World) -> None:
    """Images of every kind of machine."""
    base: Image = await world.read(world.store, IMAGE, "i")
    kinds = {
        "arm": {"hw_architecture": "aarch64"},
        "pc": {"hw_architecture": "x86_64"},
        "efi": {"hw_firmware_type": "uefi"},
        "old": {"hw_firmware_type": "bios"},
    }
    made = {name: replace(base, id=name, name=name, properties=of) for name, of in kinds.items()}
    await world.store.commit(Txn(put={IMAGE.at(name): encode(image) for name, image in made.items()}))
    await asyncio.sleep(1.0)


@pytest.mark.parametrize("known", [True, False])
def test_an_image_that_the_host_cannot_boot_is_refused_before_the_disk_goes(known: bool) -> None:
    """A UEFI image passed, and one of another architecture where the server's own named none: the host then cleared the disk, and failed to
    define the guest, or booted it to nothing and called it ACTIVE.
    """

    @in_a_world
    async def world_of(world: World) -> None:
        await with_images(world)
        server = await world.placed()
        if known:
            await approved(world, "HW_ARCH_X86_64")

        for name in ("arm", "efi") if known else ("arm", "efi", "pc"):
            with pytest.raises(InvalidRequest, match="make a new server") as refused:
                await rebuilt(world, server, name)
            assert refused.value.field == "image"
        assert (await record_of(world, server)).task is TaskState.NONE

    world_of()


@in_a_world
async def test_an_image_that_names_what_the_host_has_is_taken(world: World) -> None:
    await with_images(world)
    await approved(world, "HW_ARCH_X86_64", "FIRMWARE_UEFI")

    for image, (architecture, firmware) in {
        "pc": ("x86_64", "bios"),
        "efi": ("", "uefi"),
        "old": ("", "bios"),
    }.items():
        server = await world.placed(f"of-{image}")
        await rebuilt(world, server, image)
        request = (await record_of(world, server)).request
        assert (request.architecture, request.guest.firmware) == (architecture, firmware)


@in_a_world
async def test_a_server_with_uefi_may_be_made_anew_with_uefi_or_without(world: World) -> None:
    """What it was placed for its host has, whatever is approved of that since."""
    await with_images(world)
    for image in ("efi", "old"):
        server = await world.placed(f"of-{image}")
        now = await record_of(world, server)
        uefi = replace(now.request, guest=replace(now.request.guest, firmware="uefi"))
        await put(world, replace(now, request=uefi))

        await rebuilt(world, server, image)

        assert (await record_of(world, server)).task is TaskState.REBUILDING


@pytest.mark.parametrize(
    ("name", "value"), [("os_secure_boot", "required"), ("hw_firmware_type", "efi"), ("trait:GPU", "yes")]
)
def test_an_image_of_a_server_may_say_no_more_than_one_that_is_uploaded(name: str, value: str) -> None:
    """Its properties were not looked at, and what it is started with is read from them."""

    @in_a_world
    async def world_of(world: World) -> None:
        server = await world.placed()

        with pytest.raises(InvalidRequest) as refused:
            await asked(world, server, properties={name: value})

        assert refused.value.field == f"properties[{name}]"
        assert await waiting(world) == []

    world_of()


@in_a_world
async def test_secure_boot_is_for_servers_that_were_made_with_it(world: World) -> None:
    """The keys are in variables that a guest's firmware has from its first boot on: a rebuild would have had the word and not the thing."""
    base: Image = await world.read(world.store, IMAGE, "i")
    properties = {"hw_firmware_type": "uefi", "os_secure_boot": "required"}
    sealed = replace(base, id="sealed", name="sealed", properties=properties)
    await world.store.commit(Txn(put={IMAGE.at("sealed"): encode(sealed)}))
    await asyncio.sleep(1.0)
    server = await world.placed()
    with pytest.raises(InvalidRequest, match="was not made with it"):
        await rebuilt(world, server, "sealed")

    made = await world.create("new", image="sealed")

    build = await world.read(world.store, BUILD, "c1", made.id)
    assert build.request.guest.secure_boot
    assert "SECURE_BOOT" in build.request.required_traits


@in_a_world
async def test_no_server_comes_of_an_older_image_that_insists_on_secure_boot(world: World) -> None:
    server = await world.placed()
    base: Image = await world.read(world.store, IMAGE, "i")
    sealed = replace(base, id="sealed", name="sealed", properties={"os_secure_boot": "required"})
    await world.store.commit(Txn(put={IMAGE.at("sealed"): encode(sealed)}))
    await asyncio.sleep(1.0)

    for asking in (world.create("other", image="sealed"), rebuilt(world, server, "sealed")):
        with pytest.raises(InvalidRequest, match="takes hw_firmware_type=uefi") as refused:
            await asking
        assert refused.value.field == "image"
