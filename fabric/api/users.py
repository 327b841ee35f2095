"""UserService: users and their roles, for system administrators."""

from __future__ import annotations

from collections.abc import Callable

from fabric.api.convert import user_message
from fabric.api.named import Named, named_by
from fabric.api.once import Change, Once
from fabric.api.pages import Pages
from fabric.clock import Clock
from fabric.errors import AlreadyExists, InvalidRequest
from fabric.identity.core import check_password
from fabric.identity.directory import user_writes
from fabric.identity.passwords import Passwords
from fabric.ids import Ids
from fabric.model.identity import Principal, Project, Role, RoleGrant, User
from fabric.pb.identity.v1 import user_service_pb2 as pb
from fabric.store.base import Store
from fabric.store.codec import encode
from fabric.store.keys import PROJECT, PROJECT_NAME, ROLE, USER, USER_NAME

ROLES = {role.name.lower(): role for role in Role if role is not Role.UNSPECIFIED}
"""Roles by the words that people use."""


class UserHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(
        self, store: Store, *, passwords: Passwords, clock: Clock, ids: Ids, jitter: Callable[[], float]
    ) -> None:
        self._store = store
        self._users = Named(store, User, USER, "user", USER_NAME.at)
        self._projects = Named(store, Project, PROJECT, "project", PROJECT_NAME.at)
        self._passwords = passwords
        self._once = Once(store, clock=clock, jitter=jitter)
        self._pages = Pages()
        self._clock = clock
        self._ids = ids

    async def get_user(self, request: pb.GetUserRequest, principal: Principal) -> pb.GetUserResponse:
        found = await self._users.get(request.user)
        return pb.GetUserResponse(user=user_message(found.value), revision=found.revision)

    async def list_users(self, request: pb.ListUsersRequest, principal: Principal) -> pb.ListUsersResponse:
        found, revision = await self._users.all()
        page, token = self._pages.cut(
            sorted(found, key=lambda each: each.value.name), request, key=lambda each: each.value.name
        )
        return pb.ListUsersResponse(
            users=[user_message(each.value) for each in page], next_page_token=token, revision=revision
        )

    async def create_user(self, request: pb.CreateUserRequest, principal: Principal) -> pb.CreateUserResponse:
        asked = request.user
        check_password(request.password, user_name=asked.name)
        project = await self._first_project(request)
        role = ROLES.get(request.role, Role.MEMBER)

        async def decide() -> Change:
            # Looked at before the hash is made: a name that is taken costs nothing.
            if await self._users.is_taken(asked.name):
                raise AlreadyExists(f"there is a user {asked.name!r} already", name=asked.name)
            now_ms = self._clock.now_ms()
            user = User(
                id=self._ids.new_id(),
                name=asked.name,
                password_hash=await self._passwords.hash(request.password),
                default_project_id="" if project is None else project.id,
                system_admin=asked.system_admin,
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            grant = None
            if project is not None:
                grant = RoleGrant(project_id=project.id, user_id=user.id, role=role, create_time_ms=now_ms)
            writes = user_writes(user, grant)
            return Change(resource_id=user.id, unchanged=dict.fromkeys(writes.absent, 0), put=writes.put)

        done = await self._once.answer(decide, request, principal, without="password")
        found = await self._users.get(done.resource_id)
        return pb.CreateUserResponse(user=user_message(found.value), revision=done.revision)

    async def grant_role(self, request: pb.GrantRoleRequest, principal: Principal) -> pb.GrantRoleResponse:
        async def decide() -> Change:
            user = (await self._users.get(request.user)).value
            project = (await self._projects.get(request.project)).value
            key = ROLE.at(user.id, project.id)
            seen = await self._store.get(key)
            grant = RoleGrant(
                project_id=project.id,
                user_id=user.id,
                role=ROLES[request.role],
                create_time_ms=self._clock.now_ms(),
            )
            return Change(resource_id=user.id, unchanged={key: seen.seen(key)}, put={key: encode(grant)})

        done = await self._once.answer(decide, request, principal)
        return pb.GrantRoleResponse(revision=done.revision)

    async def _first_project(self, request: pb.CreateUserRequest) -> Project | None:
        """The project of the first role, which is also what a login without one is for."""
        asked, default = request.project, request.user.default_project_id
        if request.role and not asked:
            raise InvalidRequest("role needs a project to be in", field="project")
        project = (await named_by("project", self._projects.get(asked))).value if asked else None
        if default and (project is None or default != project.id):
            raise InvalidRequest(
                "user.default_project_id must be the project of the first role",
                field="user.default_project_id",
            )
        return project
