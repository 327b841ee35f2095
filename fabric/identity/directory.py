"""Projects, users and roles in the global store: found by id or by name, made once.

Names are made unique by a key of their own that is compared as absent in the transaction that makes the thing.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.errors import Conflict
from fabric.ids import is_id
from fabric.model.identity import Project, Role, RoleGrant, User
from fabric.model.quota import Charge, Quota
from fabric.store.base import Store
from fabric.store.codec import decode, encode
from fabric.store.keys import PROJECT, PROJECT_NAME, QUOTA, ROLE, USER, USER_NAME


@dataclass(frozen=True, slots=True)
class Standing:
    """A user's role in a project, UNSPECIFIED for none; and the keys that it was read from, with the revisions they had."""

    role: Role
    unchanged: dict[str, int]


@dataclass(frozen=True, slots=True)
class Writes:
    """Part of a transaction: what it compares as absent and what it puts."""

    absent: tuple[str, ...]
    put: dict[str, bytes]


def project_writes(project: Project, limit: Charge, *, op_id: str) -> Writes:
    """What makes a project, with its quota."""
    name = PROJECT_NAME.at(project.name)
    return Writes(
        absent=(name,),
        put={
            PROJECT.at(project.id): encode(project),
            name: encode(project.id),
            QUOTA.at(project.id): encode(Quota(project_id=project.id, limit=limit, op_id=op_id)),
        },
    )


def user_writes(user: User, grant: RoleGrant | None) -> Writes:
    """What makes a user, with a first role."""
    name = USER_NAME.at(user.name)
    put = {USER.at(user.id): encode(user), name: encode(user.id)}
    if grant is not None:
        put[ROLE.at(grant.user_id, grant.project_id)] = encode(grant)
    return Writes(absent=(name,), put=put)


class Directory:
    """Reads of projects, users and roles; linearizable, so that what was just made is found through every server."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find_project(self, name_or_id: str) -> Project | None:
        """A project by id, else by name."""
        value = await self._find(PROJECT.under(), PROJECT_NAME.at(name_or_id), name_or_id)
        return None if value is None else decode(Project, value)

    async def find_user(self, name_or_id: str) -> User | None:
        """A user by id, else by name."""
        value = await self._find(USER.under(), USER_NAME.at(name_or_id), name_or_id)
        return None if value is None else decode(User, value)

    async def standing(self, user: User, project: Project | None) -> Standing:
        """What a user may do in a project. Raises Conflict when the user is not any more as they were read."""
        mine = USER.at(user.id)
        keys = (mine,) if project is None else (mine, ROLE.at(user.id, project.id))
        seen = await self._store.get(*keys)
        stored = seen.value(mine)
        if stored is None or decode(User, stored) != user:
            raise Conflict("the user was changed in this very moment; log in again")
        granted = None if project is None else seen.value(keys[-1])
        role = Role.UNSPECIFIED if granted is None else decode(RoleGrant, granted).role
        return Standing(role, {key: seen.seen(key) for key in keys})

    async def _find(self, prefix: str, name_key: str, name_or_id: str) -> bytes | None:
        # Names may look like ids; an id wins, because ids are what programs send.
        by_id = prefix + name_or_id if is_id(name_or_id) else name_key
        seen = await self._store.get(by_id, name_key)
        if by_id != name_key and by_id in seen.entries:
            return seen.value(by_id)
        named = seen.value(name_key)
        if named is None:
            return None
        key = prefix + decode(str, named)
        return (await self._store.get(key)).value(key)
