from __future__ import annotations

import asyncio
from itertools import count

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from fabric.api.projects import ProjectHandlers
from fabric.errors import InvalidRequest, NotFound, QuotaExceeded
from fabric.ids import RandomIds
from fabric.model.identity import Principal
from fabric.model.quota import Charge, Quota
from fabric.pb.identity.v1 import project_service_pb2 as pb
from fabric.quota.core import Admission
from fabric.quota.ledger import Ledger
from fabric.store.codec import decode
from fabric.store.keys import QUOTA
from fabric.store.memory import MemoryStore
from tests.unit.store.virtual import LoopClock

ADMIN = Principal(user_id="a", user_name="a", system_admin=True)
LIMIT = Charge(instances=10, vcpus=20, ram_mib=4096, volumes=10, volume_gib=100)


class World:
    """One project, and what it is charged."""

    def __init__(self) -> None:
        self.store = MemoryStore("global")
        self._numbers = count()
        self.handlers = ProjectHandlers(
            self.store, default_limit=LIMIT, clock=LoopClock(), ids=RandomIds(), jitter=lambda: 0.0
        )
        self.ledger = Ledger(self.store, ids=RandomIds(), jitter=lambda: 0.0)

    def rid(self) -> str:
        return f"r{next(self._numbers)}"

    async def create(self) -> pb.Project:
        request = pb.CreateProjectRequest(request_id=self.rid(), project=pb.Project(name="nebula"))
        return (await self.handlers.create_project(request, ADMIN)).project

    async def update(self, *paths: str, request_id: str = "", **limits: int) -> pb.Project:
        request = pb.UpdateProjectRequest(
            request_id=request_id or self.rid(),
            project="nebula",
            update_mask=FieldMask(paths=paths),
            description="Nebula Inc.",
            quota_limit=pb.QuotaAmounts(**limits),
        )
        return (await self.handlers.update_project(request, ADMIN)).project

    async def charge(self, project_id: str, **amounts: int) -> None:
        mark = f"answered/{self.rid()}"
        admission = Admission(charge=Charge(**amounts), mark=mark, unchanged={mark: 0}, put={mark: "made"})
        await self.ledger.admit(project_id, admission)

    async def quota(self, project_id: str) -> Quota:
        key = QUOTA.at(project_id)
        return decode(Quota, (await self.store.get(key)).entries[key].value)


async def test_only_what_is_named_is_changed() -> None:
    world = World()
    before = await world.create()

    after = await world.update("quota_limit.volumes", "quota_limit.vcpus", vcpus=40, ram_mib=1)

    assert (after.quota_limit.volumes, after.quota_limit.vcpus) == (0, 40)
    assert after.quota_limit.ram_mib == before.quota_limit.ram_mib
    assert after.description == ""
    assert (await world.update("description")).description == "Nebula Inc."


async def test_a_limit_below_what_is_used_lets_that_be_and_no_more() -> None:
    world = World()
    project = await world.create()
    await world.charge(project.id, instances=3)

    after = await world.update("quota_limit.instances", instances=2)

    assert (after.quota_limit.instances, after.quota_used.instances) == (2, 3)
    with pytest.raises(QuotaExceeded):
        await world.charge(project.id, instances=1)


async def test_neither_a_new_limit_nor_what_is_charged_meanwhile_is_lost() -> None:
    world = World()
    project = await world.create()

    await asyncio.gather(
        *(world.charge(project.id, volumes=1) for _ in range(5)),
        world.update("quota_limit.volumes", volumes=7),
    )

    quota = await world.quota(project.id)
    assert (quota.limit.volumes, quota.used.volumes) == (7, 5)


async def test_an_update_sent_again_is_made_once() -> None:
    world = World()
    await world.create()
    await world.update("quota_limit.vcpus", request_id="same", vcpus=1)
    await world.update("quota_limit.vcpus", vcpus=2)

    again = await world.update("quota_limit.vcpus", request_id="same", vcpus=1)

    assert again.quota_limit.vcpus == 2


async def test_what_cannot_be_changed_is_refused_by_name() -> None:
    world = World()
    with pytest.raises(NotFound):
        await world.update("description")
    await world.create()

    for path in ("name", "quota_limit", "quota_used.vcpus"):
        with pytest.raises(InvalidRequest) as refused:
            await world.update(path)
        assert refused.value.field == "update_mask"
