"""UserService: users and their roles, for system administrators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fabric.api.convert import user_message
from fabric.api.named import Named, named_by
from fabric.api.network_desk import named
from fabric.api.once import Change, Once
from fabric.api.pages import Pages
from fabric.clock import Clock
from fabric.errors import AlreadyExists, InvalidRequest, NotFound, PermissionDenied
from fabric.identity.core import check_password, says_too_much
from fabric.identity.directory import user_writes
from fabric.identity.passwords import Passwords
from fabric.identity.tokens import Tokens
from fabric.ids import Ids
from fabric.model.identity import Principal, Project, Role, RoleGrant, User
from fabric.pb.identity.v1 import user_service_pb2 as pb
from fabric.store.base import Store
from fabric.store.codec import decode, encode
from fabric.store.keys import PROJECT, PROJECT_NAME, ROLE, USER, USER_NAME

ROLES = {role.name.lower(): role for role in Role if role is not Role.UNSPECIFIED}
"""Roles by the words that people use."""

WORDS: dict[Role, str] = {role: word for word, role in ROLES.items()}

UPDATABLE = frozenset({"default_project", "disabled", "password", "system_admin"})
"""What `update_mask` may name."""


class UserHandlers:
    """The RPCs, as functions of a request and who asks."""

    def __init__(
        self,
        store: Store,
        *,
        passwords: Passwords,
        tokens: Tokens,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
    ) -> None:
        self._store = store
        self._users = Named(store, User, USER, "user", USER_NAME.at)
        self._projects = Named(store, Project, PROJECT, "project", PROJECT_NAME.at)
        self._passwords = passwords
        self._tokens = tokens
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
            mine = await self._administrator(principal)
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
                disabled=asked.disabled,
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            grant = None
            if project is not None:
                grant = RoleGrant(project_id=project.id, user_id=user.id, role=role, create_time_ms=now_ms)
            writes = user_writes(user, grant)
            return Change(
                resource_id=user.id, unchanged={**mine, **dict.fromkeys(writes.absent, 0)}, put=writes.put
            )

        done = await self._once.answer(decide, request, principal, without="password")
        found = await self._users.get(done.resource_id)
        return pb.CreateUserResponse(user=user_message(found.value), revision=done.revision)

    async def update_user(self, request: pb.UpdateUserRequest, principal: Principal) -> pb.UpdateUserResponse:
        paths = named(request.update_mask, UPDATABLE)

        async def decide() -> Change:
            mine = await self._administrator(principal)
            found = await self._users.get(request.user)
            standing: dict[str, int] = {}
            after = replace(found.value, update_time_ms=self._clock.now_ms())
            if "disabled" in paths:
                after = replace(after, disabled=request.disabled)
            if "system_admin" in paths:
                after = replace(after, system_admin=request.system_admin)
            if "default_project" in paths:
                project, standing = await self._default_project(request, after)
                after = replace(after, default_project_id=project)
            if after.id == principal.user_id and (after.disabled or not after.system_admin):
                raise InvalidRequest("nobody can lock themself out: ask another administrator", field="user")
            if "password" in paths:
                check_password(request.password, user_name=after.name)
                after = replace(after, password_hash=await self._passwords.hash(request.password))
            key = USER.at(after.id)
            return Change(
                resource_id=after.id,
                unchanged={**mine, **standing, key: found.mod_revision},
                put={key: encode(after)},
            )

        done = await self._once.answer(decide, request, principal, without="password")
        if (
            "password" in paths
            or ("disabled" in paths and request.disabled)
            or ("system_admin" in paths and not request.system_admin)
        ):
            await self._tokens.revoke_all(partial(says_too_much, user_id=done.resource_id))
        changed = await self._users.get(done.resource_id)
        return pb.UpdateUserResponse(user=user_message(changed.value), revision=done.revision)

    async def grant_role(self, request: pb.GrantRoleRequest, principal: Principal) -> pb.GrantRoleResponse:
        async def decide() -> Change:
            mine = await self._administrator(principal)
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
            return Change(
                resource_id=user.id, unchanged={**mine, key: seen.seen(key)}, put={key: encode(grant)}
            )

        done = await self._once.answer(decide, request, principal)
        await self._take(done.resource_id, request.project)
        return pb.GrantRoleResponse(revision=done.revision)

    async def revoke_role(self, request: pb.RevokeRoleRequest, principal: Principal) -> pb.RevokeRoleResponse:
        async def decide() -> Change:
            mine = await self._administrator(principal)
            user = (await self._users.get(request.user)).value
            project = (await self._projects.get(request.project)).value
            key = ROLE.at(user.id, project.id)
            seen = await self._store.get(key)
            stored = seen.value(key)
            if stored is None:
                # Who took it may have died before its tokens were ended, and this is the command given again.
                await self._take(user.id, project.id)
                raise NotFound(f"{user.name} has no role in {project.name}")
            has = WORDS[decode(RoleGrant, stored).role]
            if request.role not in {"", has}:
                raise NotFound(f"{user.name} has no role {request.role} in {project.name}, but {has}")
            return Change(resource_id=user.id, unchanged={**mine, key: seen.seen(key)}, delete=(key,))

        done = await self._once.answer(decide, request, principal)
        await self._take(done.resource_id, request.project)
        return pb.RevokeRoleResponse(revision=done.revision)

    async def _take(self, user_id: str, project: str) -> None:
        """End the tokens of a user that say more in a project than their role there now. Done again when the request is: a server may die
        before it. By then the role may be another one than the request's.
        """
        project_id = (await self._projects.get(project)).value.id
        key = ROLE.at(user_id, project_id)
        stored = (await self._store.get(key)).value(key)
        most = Role.UNSPECIFIED if stored is None else decode(RoleGrant, stored).role
        await self._tokens.revoke_all(
            partial(says_too_much, user_id=user_id, project_id=project_id, most=most)
        )

    async def _administrator(self, principal: Principal) -> dict[str, int]:
        """Who asks, to be compared: their token may have been good when the call came in. Of two administrators who lock each other out,
        one must find that they are out already.
        """
        found = await self._users.find(principal.user_id)
        if found is None or found.value.disabled or not found.value.system_admin:
            raise PermissionDenied("you do not administer the system any more", needed="system")
        return {USER.at(found.value.id): found.mod_revision}

    async def _default_project(self, request: pb.UpdateUserRequest, user: User) -> tuple[str, dict[str, int]]:
        """The project that a login without one is to be for, and the role there, to be compared. Raises InvalidRequest without it."""
        if not request.default_project:
            return "", {}
        field = "default_project"
        project = (await named_by(field, self._projects.get(request.default_project))).value
        key = ROLE.at(user.id, project.id)
        seen = await self._store.get(key)
        if key not in seen.entries and not user.system_admin:
            raise InvalidRequest(f"default_project: {user.name} has no role in {project.name}", field=field)
        return project.id, {key: seen.seen(key)}

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
