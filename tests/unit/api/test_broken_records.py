"""A record that does not parse, as one that a newer server has written, is missing from lists, and hides nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from fabric.api.cells import Cells
from fabric.api.flavors import FlavorHandlers
from fabric.api.hosts import HostHandlers
from fabric.api.images import ImageHandlers
from fabric.api.projects import ProjectHandlers
from fabric.api.volumes import VolumeHandlers
from fabric.identity.directory import project_writes
from fabric.ids import RandomIds
from fabric.images.core.inspect import ImageLimits
from fabric.images.memory import MemoryBlobs
from fabric.model.flavor import Flavor
from fabric.model.host import Host, Resources
from fabric.model.identity import Principal, Project
from fabric.model.image import Image, ImageFormat, ImageState
from fabric.model.quota import Charge
from fabric.model.volume import VolumeEntry
from fabric.pb.compute.v1 import flavor_service_pb2, host_service_pb2
from fabric.pb.identity.v1 import project_service_pb2
from fabric.pb.image.v1 import image_service_pb2
from fabric.pb.volume.v1 import volume_service_pb2
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import FLAVOR, HOST, IMAGE, PROJECT, QUOTA, USE, VOLUME_ENTRY
from fabric.store.memory import MemoryStore
from tests.unit.store.virtual import LoopClock, run

NO_RECORD = b"\xff"
ADMIN = Principal(user_id="a", project_id="p", system_admin=True)


async def flavors(store: MemoryStore) -> list[str]:
    records = {FLAVOR.at("1"): encode(Flavor(id="1", name="good", vcpus=1, ram_mib=1, disk_gib=1))}
    await store.commit(Txn(put={**records, FLAVOR.at("0"): NO_RECORD}))
    handlers = FlavorHandlers(store, clock=LoopClock(), ids=RandomIds(), jitter=lambda: 0.5)
    answer = await handlers.list_flavors(flavor_service_pb2.ListFlavorsRequest(), ADMIN)
    return [each.name for each in answer.flavors]


async def images(store: MemoryStore) -> list[str]:
    good = Image(id="1", name="good", project_id="p", format=ImageFormat.RAW, state=ImageState.ACTIVE)
    await store.commit(Txn(put={IMAGE.at("1"): encode(good), IMAGE.at("0"): NO_RECORD}))
    handlers = ImageHandlers(
        store,
        MemoryBlobs(LoopClock()),
        limits=ImageLimits(),
        clock=LoopClock(),
        ids=RandomIds(),
        jitter=lambda: 0.5,
    )
    answer = await handlers.list_images(image_service_pb2.ListImagesRequest(), ADMIN)
    return [each.name for each in answer.images]


async def projects(store: MemoryStore) -> list[str]:
    project = Project(id="1", name="good", create_time_ms=1, update_time_ms=1)
    writes = project_writes(project, Charge(), op_id="o")
    await store.commit(Txn(put={**writes.put, PROJECT.at("0"): NO_RECORD, QUOTA.at("0"): NO_RECORD}))
    handlers = ProjectHandlers(
        store, default_limit=Charge(), clock=LoopClock(), ids=RandomIds(), jitter=lambda: 0.5
    )
    answer = await handlers.list_projects(project_service_pb2.ListProjectsRequest(), ADMIN)
    return [each.name for each in answer.projects]


async def hosts(store: MemoryStore) -> list[str]:
    put = {
        HOST.at(name): encode(Host(name=name, cell="c1", zone="z", capacity=Resources(vcpus=1)))
        for name in ("good", "of-broken-use")
    }
    await store.commit(Txn(put={**put, HOST.at("a"): NO_RECORD, USE.at("of-broken-use"): NO_RECORD}))
    handlers = HostHandlers(Cells({"c1": store}, clock=LoopClock()), clock=LoopClock(), jitter=lambda: 0.5)
    answer = await handlers.list_hosts(host_service_pb2.ListHostsRequest(), ADMIN)
    return [each.name for each in answer.hosts]


async def volumes(store: MemoryStore) -> list[str]:
    good = VolumeEntry(id="1", project_id="p", user_id="u", name="good", size_gib=1)
    await store.commit(
        Txn(put={VOLUME_ENTRY.at("p", "1"): encode(good), VOLUME_ENTRY.at("p", "0"): NO_RECORD})
    )

    async def no_image(_word: str, _who: Principal) -> Image:
        raise AssertionError("a list looks for no image")

    handlers = VolumeHandlers(
        store,
        Cells({}, clock=LoopClock()),
        image=no_image,
        clock=LoopClock(),
        ids=RandomIds(),
        jitter=lambda: 0.5,
    )
    answer = await handlers.list_volumes(volume_service_pb2.ListVolumesRequest(), ADMIN)
    return [each.name for each in answer.volumes]


@pytest.mark.parametrize("listed", [flavors, images, projects, hosts, volumes])
def test_a_broken_record_hides_no_other_from_a_list(
    listed: Callable[[MemoryStore], Awaitable[list[str]]],
) -> None:
    """One that did not parse made every list of its kind an internal error, for everybody."""

    async def world() -> None:
        assert await listed(MemoryStore()) == ["good"]

    run(world())
