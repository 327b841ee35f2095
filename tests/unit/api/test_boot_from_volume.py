"""Creates that boot from a volume, through the handlers: what is accepted, what is written, and what such a server cannot do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fabric.errors import FabricError, InvalidRequest, QuotaExceeded, WrongState
from fabric.model.host import Session, SessionState
from fabric.model.image import Image, ImageFormat, ImageState
from fabric.model.instance import Assignment, Build, Instance
from fabric.model.quota import Quota
from fabric.model.session import HostState
from fabric.model.states import VmState
from fabric.model.volume import Volume, VolumeEntry, VolumeState
from fabric.pb.compute.v1 import instance_service_pb2
from fabric.pb.volume.v1 import volume_service_pb2 as pb
from fabric.store.base import Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import (
    ASSIGNMENT,
    BUILD,
    IMAGE,
    INSTANCE,
    LOCATION,
    MOVE,
    QUOTA,
    SESSION,
    TOMBSTONE,
    VOLUME,
    VOLUME_ENTRY,
)
from tests.unit.api.test_instances import WHO, in_a_world
from tests.unit.api.test_volumes import Volumes

GIB = 1 << 30
SYSTEM = Image(
    id="s",
    name="system",
    project_id="p",
    format=ImageFormat.RAW,
    state=ImageState.ACTIVE,
    sha256="ab" * 32,
    size_bytes=GIB,
    virtual_size_bytes=2 * GIB,
    min_ram_mib=256,
    properties={"hw_firmware_type": "uefi", "trait:FAST": "required"},
)


class Bootable(Volumes):
    """A world with an image of 2 GiB, and volumes of it."""

    async def ready(self, *servers: str) -> list[str]:
        await self.store.commit(Txn(put={IMAGE.at("s"): encode(SYSTEM)}))
        return await super().ready(*servers)

    async def of_image(self, name: str = "root", size_gib: int = 3) -> pb.Volume:
        volume = pb.Volume(name=name, size_gib=size_gib, image="system")
        request = pb.CreateVolumeRequest(request_id=self.rid(), volume=volume)
        return (await self.volumes.create_volume(request, WHO)).volume

    async def boot(self, **fields: Any) -> instance_service_pb2.Instance:
        return await self.create(**{"image": "", **fields})

    async def build(self, server: str) -> Build:
        build: Build = await self.read(self.store, BUILD, "c1", server)
        return build

    async def running(self) -> str:
        """A server that runs from a volume, as its scheduler has claimed it."""
        root = await self.of_image()
        server = await self._server("web", 0)
        cell = self.cells["c1"]
        record: Instance = await self.read(cell, INSTANCE, server)
        order: Assignment = await self.read(cell, ASSIGNMENT, "h1", server)
        made = await self.boot(name="like-it", volume="root")
        guest = replace((await self.build(made.id)).request.guest, id=server)
        has = Volume(
            id=root.id, project_id="p", state=VolumeState.IN_USE, host="h1", size_gib=3, instance_id=server
        )
        entry: VolumeEntry = await self.read(self.store, VOLUME_ENTRY, "p", root.id)
        await self.store.commit(Txn(put={VOLUME_ENTRY.at("p", root.id): encode(replace(entry, cell="c1"))}))
        await cell.commit(
            Txn(
                put={
                    INSTANCE.at(server): encode(
                        replace(record, request=replace(record.request, guest=guest))
                    ),
                    ASSIGNMENT.at("h1", server): encode(replace(order, guest=guest)),
                    VOLUME.at(root.id): encode(has),
                }
            )
        )
        return server


def bootable_test(claim: Any) -> Any:
    return in_a_world(claim, kind=Bootable)


async def refused(doing: Any, kind: type[FabricError]) -> str:
    with pytest.raises(kind) as raised:
        await doing
    return f"{getattr(raised.value, 'field', '')}: {raised.value.message}"


@bootable_test
async def test_a_volume_of_an_image_says_so_and_is_large_enough(world: Bootable) -> None:
    await world.ready()
    made = await world.of_image()

    assert (made.image, made.image_name, made.status, made.cell) == ("s", "system", "available", "")
    small = pb.Volume(name="small", size_gib=1, image="system")
    request = pb.CreateVolumeRequest(request_id=world.rid(), volume=small)
    with pytest.raises(InvalidRequest, match="image system needs 2"):
        await world.volumes.create_volume(request, WHO)
    none = pb.CreateVolumeRequest(
        request_id=world.rid(), volume=pb.Volume(name="none", size_gib=1, image="no-such")
    )
    with pytest.raises(InvalidRequest, match="no-such"):
        await world.volumes.create_volume(none, WHO)


@bootable_test
async def test_a_server_boots_from_a_volume_as_its_image_asks(world: Bootable) -> None:
    await world.ready()
    root = await world.of_image()
    made = await world.boot(volume="root", delete_volume_on_termination=True)

    request = (await world.build(made.id)).request
    guest = request.guest
    assert (guest.image, guest.disk_gib, guest.firmware) == (None, 0, "uefi")
    assert [(each.id, each.size_gib, each.is_root) for each in guest.volumes] == [(root.id, 3, True)]
    assert [(each.volume_id, each.image.id) for each in guest.volume_images] == [(root.id, "s")]
    assert (request.required_traits, request.root_ends_with_instance) == (("FAST",), True)
    assert (await world.read(world.store, LOCATION, made.id)).charge.volumes == 0
    assert (made.spec.image_id, made.spec.disk_gib) == ("", 0)
    assert [(each.volume_id, each.is_root) for each in made.status.volumes] == [(root.id, True)]


@bootable_test
async def test_a_new_volume_is_made_charged_and_booted_from_in_one_write(world: Bootable) -> None:
    await world.ready()
    before = world.store.revision
    made = await world.boot(image="system", boot_volume_gib=4)

    assert world.store.revision == before + 1
    (volume,) = (await world.build(made.id)).request.guest.volumes
    entry: VolumeEntry = await world.read(world.store, VOLUME_ENTRY, "p", volume.id)
    assert (entry.name, entry.size_gib, entry.cell) == (f"web-{volume.id[-12:]}", 4, "")
    quota: Quota = await world.read(world.store, QUOTA, "p")
    assert (quota.used.instances, quota.used.volumes, quota.used.volume_gib) == (1, 1, 4)
    location = await world.read(world.store, LOCATION, made.id)
    assert (location.charge.volumes, location.charge.volume_gib) == (0, 0)


@bootable_test
async def test_a_new_volume_beyond_the_quota_is_refused_with_its_server(world: Bootable) -> None:
    await world.ready()

    for only_check in (True, False):
        with pytest.raises(QuotaExceeded, match="GiB of volumes"):
            await world.boot(image="system", boot_volume_gib=41, validate_only=only_check)
    assert await world.used() == 0


@bootable_test
async def test_what_to_boot_from_is_said_once(world: Bootable) -> None:
    await world.ready()
    await world.of_image()

    said = [
        await refused(world.boot(**fields), InvalidRequest)
        for fields in (
            {},
            {"image": "system", "volume": "root"},
            {"volume": "root", "boot_volume_gib": 5},
            {"boot_volume_gib": 5},
            {"image": "system", "boot_volume_gib": 1},
            {"image": "linux", "delete_volume_on_termination": True},
            {"volume": "no-such"},
        )
    ]
    fields = [each.partition(":")[0] for each in said]
    assert fields == [
        "image",
        "volume",
        "boot_volume_gib",
        "image",
        "boot_volume_gib",
        "delete_volume_on_termination",
        "volume",
    ]


@bootable_test
async def test_an_empty_volume_is_not_booted_from_and_one_that_was_used_may_be(world: Bootable) -> None:
    (one,) = await world.ready("one")
    await world.make("data")

    assert "is empty" in await refused(world.boot(volume="data"), WrongState)
    await world.act("attach-volume", one, volume="data")
    await world.told(one)
    assert "one server at a time" in await refused(world.boot(volume="data"), WrongState)
    await world.act("detach-volume", one, volume="data")
    await world.told(one)
    made = await world.boot(volume="data")
    assert (await world.build(made.id)).request.guest.volume_images == ()


@bootable_test
async def test_a_build_goes_to_the_cell_that_its_volume_is_used_in(world: Bootable) -> None:
    await world.ready()
    root = await world.of_image()
    entry: VolumeEntry = await world.read(world.store, VOLUME_ENTRY, "p", root.id)
    await world.store.commit(Txn(put={VOLUME_ENTRY.at("p", root.id): encode(replace(entry, cell="c2"))}))

    made = await world.boot(volume="root")
    assert (await world.read(world.store, LOCATION, made.id)).cell == "c2"


@bootable_test
async def test_what_a_server_that_boots_from_a_volume_cannot_do_says_what_is_possible(
    world: Bootable,
) -> None:
    await world.ready()
    server = await world.running()

    said = {
        action: await refused(world.act(action, server, **fields), WrongState)
        for action, fields in (
            ("rebuild", {"image": "linux"}),
            ("create-image", {"name": "copy"}),
            ("create-backup", {"name": "copy", "backup_type": "daily", "rotation": 1}),
            ("migrate", {}),
            ("detach-volume", {"volume": "root"}),
        )
    }
    assert "new volume of the image" in said["rebuild"]
    assert all(
        "delete the server, which keeps the volume" in said[word] for word in said if word != "rebuild"
    )
    assert "name one" in await refused(world.act("rescue", server), InvalidRequest)
    begun = await world.act("rescue", server, image="linux")
    assert begun.status.task_state == "rescuing"


async def put_away(world: Bootable, server: str) -> None:
    await world.act("shelve", server)
    await world.told(server, HostState.STOPPED)
    await world.act("shelve-offload", server)
    await world.told(server, HostState.ABSENT)


@bootable_test
async def test_a_server_that_boots_from_a_volume_is_put_away_with_it_and_without_an_image(
    world: Bootable,
) -> None:
    await world.ready()
    server = await world.running()
    before = (await world.use()).volumes_gib
    await put_away(world, server)

    shown = await world.get(server)
    assert (shown.status.vm_state, shown.status.host) == ("shelved_offloaded", "")
    root = await world.show("root")
    assert (root.status, root.instance_id) == ("in-use", server)
    use = await world.use()
    assert (use.instances, use.slots, use.claimed.vcpus, use.volumes_gib) == (0, (), 0, before)
    images = (await world.store.list(IMAGE.under())).entries
    assert set(images) >= {IMAGE.at("s")}
    assert not any("shelved" in decode(Image, each.value).name for each in images.values())
    begun = await world.act("unshelve", server)
    assert begun.status.task_state == "unshelving"
    assert await world.read(world.cells["c1"], MOVE, server) is not None


@pytest.mark.parametrize("state", [SessionState.UP, SessionState.JOIN])
@pytest.mark.parametrize("ends", [False, True])
def test_the_volume_of_a_server_that_ends_while_it_is_put_away_is_free_or_removed(
    ends: bool, state: SessionState
) -> None:
    async def claim(world: Bootable) -> None:
        await world.ready()
        server = await world.running()
        await put_away(world, server)
        cell = world.cells["c1"]
        root = (await world.show("root")).id
        volume = replace(await world.volume(root), ends_with_instance=ends)
        session = Session(host="h1", epoch=1, state=state)
        await cell.commit(Txn(put={VOLUME.at(root): encode(volume), SESSION.at("h1"): encode(session)}))
        await world.delete(server)

        after = await world.volume(root)
        tombstone = await world.read(cell, TOMBSTONE, "h1", root)
        assert await world.read(cell, INSTANCE, server) is None
        assert (after.instance_id, after.ends_with_instance) == ("", False)
        assert after.state is (VolumeState.DELETING if ends else VolumeState.AVAILABLE)
        assert (tombstone is not None) is ends
        is_touched = await world.read(cell, SESSION, "h1") != session
        assert is_touched is (ends and state is SessionState.JOIN)

    bootable_test(claim)()


@bootable_test
async def test_a_server_that_never_had_the_volume_it_was_to_boot_from_takes_it_from_nobody(
    world: Bootable,
) -> None:
    await world.ready()
    server = await world.running()
    cell = world.cells["c1"]
    root = (await world.show("root")).id
    record: Instance = await world.read(cell, INSTANCE, server)
    never = replace(record, host="", placement_epoch=0, vm_state=VmState.ERROR)
    others = replace(await world.volume(root), instance_id="another", ends_with_instance=True)
    await cell.commit(Txn(put={INSTANCE.at(server): encode(never), VOLUME.at(root): encode(others)}))
    await world.delete(server)

    assert await world.read(cell, INSTANCE, server) is None
    assert await world.volume(root) == others


@bootable_test
async def test_a_volume_of_an_image_that_is_plugged_in_brings_its_image(world: Bootable) -> None:
    (one,) = await world.ready("one")
    root = await world.of_image()
    await world.act("attach-volume", one, volume="root")

    order: Assignment = await world.read(world.cells["c1"], ASSIGNMENT, "h1", one)
    assert [each.volume_id for each in order.guest.volume_images] == [root.id]
    await world.told(one)
    await world.act("detach-volume", one, volume="root")
    order = await world.read(world.cells["c1"], ASSIGNMENT, "h1", one)
    assert order.guest.volume_images == ()
