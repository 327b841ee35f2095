"""The first system administrator: made once, by whichever server of the fabric comes first, and never touched again."""

from __future__ import annotations

import asyncio

import structlog

from fabric.clock import Clock
from fabric.errors import TooMuch, Unavailable
from fabric.identity.core import check_password
from fabric.identity.directory import Directory, project_writes, user_writes
from fabric.identity.passwords import Passwords
from fabric.ids import Ids
from fabric.model.identity import Project, Role, RoleGrant, User
from fabric.model.quota import Charge
from fabric.store.base import Store, Txn

log = structlog.get_logger()


async def ensure_administrator(
    store: Store,
    *,
    user_name: str,
    project_name: str,
    password: str,
    limit: Charge,
    passwords: Passwords,
    clock: Clock,
    ids: Ids,
    pause_s: float = 0.5,
) -> None:
    """Make the administrator and their project, unless there is a user of that name. Waits until the store can be reached, and while
    too many other passwords are being hashed.

    Several servers may do this at once: the name's key is compared as absent, so one of them makes it and the others find it.

    Raises:
        InvalidRequest: the password is not good enough.
    """
    check_password(password, user_name=user_name)
    directory = Directory(store)
    while True:
        try:
            if await directory.find_user(user_name) is not None:
                return
            existing = await directory.find_project(project_name)
            now_ms = clock.now_ms()
            project = existing or Project(
                id=ids.new_id(), name=project_name, create_time_ms=now_ms, update_time_ms=now_ms
            )
            user = User(
                id=ids.new_id(),
                name=user_name,
                password_hash=await passwords.hash(password),
                default_project_id=project.id,
                system_admin=True,
                create_time_ms=now_ms,
                update_time_ms=now_ms,
            )
            grant = RoleGrant(project_id=project.id, user_id=user.id, role=Role.ADMIN, create_time_ms=now_ms)
            parts = [user_writes(user, grant)]
            if existing is None:
                parts.append(project_writes(project, limit, op_id=ids.new_id()))
            # Whether it was applied or not, the next round looks: so an answer that was lost needs no settling.
            await store.commit(
                Txn(
                    unchanged={key: 0 for part in parts for key in part.absent},
                    put={key: value for part in parts for key, value in part.put.items()},
                )
            )
            log.info("administrator.made", user=user_name, project=project_name)
        except (Unavailable, TooMuch) as away:
            log.warning("administrator.waiting", why=away.message)
            await asyncio.sleep(pause_s)
