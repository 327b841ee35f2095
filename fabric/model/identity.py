"""Who: projects, users, roles and tokens (the slice of Keystone that a running server needs)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Role(enum.IntEnum):
    """What a user may do in a project; each includes the ones before it."""

    UNSPECIFIED = 0
    READER = 1
    MEMBER = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What owns servers and quota."""

    id: str
    name: str
    description: str = ""
    create_time_ms: int = 0
    update_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody. `password_hash` is an argon2id string, empty for users who cannot log in by password."""

    id: str
    name: str
    password_hash: str = field(default="", repr=False)
    default_project_id: str = ""
    system_admin: bool = False
    disabled: bool = False
    create_time_ms: int = 0
    update_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleGrant:
    """A user's role in a project."""

    project_id: str
    user_id: str
    role: Role
    create_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An issued token: the key it is stored under is the SHA-256 of the secret, which is stored nowhere.

    Scoped to one project with one role; `system_admin` is copied from the user when it is issued.
    """

    id: str
    user_id: str
    user_name: str
    project_id: str
    project_name: str
    role: Role
    system_admin: bool = False
    issue_time_ms: int = 0
    expire_time_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is asking, as proven: by a token (a user in a project) or by a client certificate (a service, or a host).

    `service` is `api`, `scheduler` or `conductor`; `host` a host's name. `cell` and `cert_serial` (hexadecimal) are of the
    certificate. `expire_time_ms` is the token's. `peer` is the address they ask from; it proves nothing.
    """

    user_id: str = ""
    user_name: str = ""
    project_id: str = ""
    project_name: str = ""
    role: Role = Role.UNSPECIFIED
    system_admin: bool = False
    service: str = ""
    token_id: str = ""
    expire_time_ms: int = 0
    host: str = ""
    cell: str = ""
    cert_serial: str = ""
    peer: str = field(default="", compare=False)
