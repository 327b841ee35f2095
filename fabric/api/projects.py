"""ProjectService: what owns servers and quota, for system administrators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fabric.api.convert import charge_value, project_message
from fabric.api.named import Named, absent, readable
from fabric.api.network_desk import named
from fabric.api.once import Change, Once
from fabric.api.pages import Pages
from fabric.clock import Clock
from fabric.errors import AlreadyExists
from fabric.identity.directory import project_writes
from fabric.ids import Ids
from fabric.model.identity import Principal, Project
from fabric.model.quota import Charge, Quota
from fabric.pb.identity.v1 import project_service_pb2 as pb
from fabric.store.base import Store
from fabric.store.codec import decode, encode
from fabric.store.keys import PROJECT, PROJECT_NAME, QUOTA

LIMIT = "quota_limit."
UPDATABLE = frozenset({"description"} | {LIMIT + each.name for each in pb.QuotaAmounts.DESCRIPTOR.fields})
"""What `update_mask` may name."""


class ProjectHandlers:
    """The RPCs, as functions of a request and who asks. `default_limit` is a new project's when nothing is said."""

    def __init__(
        self, store: Store, *, default_limit: Charge, clock: Clock, ids: Ids, jitter: Callable[[], float]
    ) -> None:
        self._store = store
        self._projects = Named(store, Project, PROJECT, "project", PROJECT_NAME.at)
        self._once = Once(store, clock=clock, jitter=jitter)
        self._pages = Pages()
        self._default_limit = default_limit
        self._clock = clock
        self._ids = ids

    async def get_project(self, request: pb.GetProjectRequest, principal: Principal) -> pb.GetProjectResponse:
        found = await self._projects.get(request.project)
        return pb.GetProjectResponse(
            project=project_message(found.value, await self._quota(found.value.id)), revision=found.revision
        )

    async def list_projects(
        self, request: pb.ListProjectsRequest, principal: Principal
    ) -> pb.ListProjectsResponse:
        found, revision = await self._projects.all()
        quotas = {
            each.value.project_id: each.value
            for each in readable(Quota, await self._store.list(QUOTA.under()))
        }
        page, token = self._pages.cut(
            sorted(found, key=lambda each: each.value.name), request, key=lambda each: each.value.name
        )
        shown = [project_message(each.value, quotas.get(each.value.id)) for each in page]
        return pb.ListProjectsResponse(projects=shown, next_page_token=token, revision=revision)

    async def create_project(
        self, request: pb.CreateProjectRequest, principal: Principal
    ) -> pb.CreateProjectResponse:
        asked = request.project
        limit = self._default_limit
        if asked.HasField("quota_limit"):
            limit = charge_value(asked.quota_limit, self._default_limit)

        async def decide() -> Change:
            if await self._projects.is_taken(asked.name):
                raise AlreadyExists(f"there is a project {asked.name!r} already", name=asked.name)
            now_ms = self._clock.now_ms()
            project = Project(
                id=self._ids.new_id(),
                name=asked.name,
                description=asked.description,
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            writes = project_writes(project, limit, op_id=self._ids.new_id())
            return Change(resource_id=project.id, unchanged=dict.fromkeys(writes.absent, 0), put=writes.put)

        done = await self._once.answer(decide, request, principal)
        found = await self._projects.get(done.resource_id)
        return pb.CreateProjectResponse(
            project=project_message(found.value, await self._quota(found.value.id)), revision=done.revision
        )

    async def update_project(
        self, request: pb.UpdateProjectRequest, principal: Principal
    ) -> pb.UpdateProjectResponse:
        paths = named(request.update_mask, UPDATABLE)
        limits = {
            path.removeprefix(LIMIT): getattr(request.quota_limit, path.removeprefix(LIMIT))
            for path in paths
            if path.startswith(LIMIT)
        }

        async def decide() -> Change:
            found = await self._projects.get(request.project)
            before, key = found.value, QUOTA.at(found.value.id)
            after = replace(
                before,
                description=request.description if "description" in paths else before.description,
                update_time_ms=self._clock.now_ms(),
            )
            unchanged = {PROJECT.at(before.id): found.mod_revision}
            put = {PROJECT.at(before.id): encode(after)}
            if limits:
                seen = await self._store.get(key)
                stored = seen.value(key)
                if stored is None:
                    raise absent("project", request.project)
                quota = decode(Quota, stored)
                # What is charged changes with every create, which compares this record too: neither is lost.
                unchanged[key] = seen.seen(key)
                put[key] = encode(
                    replace(quota, limit=replace(quota.limit, **limits), op_id=self._ids.new_id())
                )
            return Change(resource_id=before.id, unchanged=unchanged, put=put)

        done = await self._once.answer(decide, request, principal)
        made = await self._projects.get(done.resource_id)
        return pb.UpdateProjectResponse(
            project=project_message(made.value, await self._quota(made.value.id)), revision=done.revision
        )

    async def _quota(self, project_id: str) -> Quota | None:
        key = QUOTA.at(project_id)
        value = (await self._store.get(key)).value(key)
        return None if value is None else decode(Quota, value)
