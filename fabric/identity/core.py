"""Decisions about who: how long tokens last, which passwords are good, how long somebody who guesses must wait. Functions of values."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.errors import InvalidRequest, PermissionDenied, TooMuch
from fabric.model.identity import Principal, Project, Role, Token, User

LONGEST_TOKEN_S = 3600
"""A token lasts an hour at most (security.md, stolen token)."""

PASSWORD_LENGTH = (8, 1024)

FREE_TRIES = 5
"""So many wrong passwords cost nothing: people mistype."""

LONGEST_WAIT_S = 60.0
FORGET_AFTER_S = 900.0


def check_password(password: str, *, user_name: str) -> None:
    """Whether a password may be set. Length is what counts (NIST SP 800-63B, 5.1.1): no rules about kinds of characters.

    Raises:
        InvalidRequest: too short, too long, or the user's own name.
    """
    least, most = PASSWORD_LENGTH
    if not least <= len(password) <= most:
        raise InvalidRequest(f"password must have {least} to {most} characters", field="password")
    if password.casefold() == user_name.casefold():
        raise InvalidRequest("password must not be the user's name", field="password")


def lifetime_s(asked_s: int) -> int:
    """How long a token is to last: what was asked for, an hour when nothing was, never more."""
    return min(asked_s, LONGEST_TOKEN_S) if asked_s > 0 else LONGEST_TOKEN_S


def make_token(
    user: User, project: Project | None, role: Role, *, asked_project: str, now_ms: int, asked_s: int
) -> Token:
    """The record of a new token: one user, in one project with one role.

    Raises:
        PermissionDenied: no role in the project that was asked for, in the same words whether there is such a project or not; or none was
            asked for, and the user has no default.
    """
    if asked_project and (project is None or (role is Role.UNSPECIFIED and not user.system_admin)):
        raise PermissionDenied(f"you have no role in a project {asked_project!r}")
    if project is None and not user.system_admin:
        raise PermissionDenied("you have no default project; name one")
    return Token(
        id="",
        user_id=user.id,
        user_name=user.name,
        project_id="" if project is None else project.id,
        project_name="" if project is None else project.name,
        role=Role.ADMIN if user.system_admin else role,
        system_admin=user.system_admin,
        issue_time_ms=now_ms,
        expire_time_ms=now_ms + lifetime_s(asked_s) * 1000,
    )


def says_too_much(token: Token, *, user_id: str, project_id: str = "", most: Role = Role.UNSPECIFIED) -> bool:
    """Whether a token says more than its user may now: anything, or in one project more than the role `most`.

    A system administrator's says what it does for another reason than a role in a project.
    """
    if token.user_id != user_id or not project_id:
        return token.user_id == user_id
    return token.project_id == project_id and not token.system_admin and token.role > most


def principal_of(token: Token, *, now_ms: int) -> Principal | None:
    """Who a token proves its bearer to be; None when its time is over."""
    if now_ms >= token.expire_time_ms:
        return None
    return Principal(
        user_id=token.user_id,
        user_name=token.user_name,
        project_id=token.project_id,
        project_name=token.project_name,
        role=token.role,
        system_admin=token.system_admin,
        token_id=token.id,
        expire_time_ms=token.expire_time_ms,
    )


@dataclass(frozen=True, slots=True)
class Failures:
    """Wrong passwords in a row for one account from one address, and when the last was."""

    count: int = 0
    last_s: float = 0.0


def failed_again(failures: Failures, *, now_s: float) -> Failures:
    """One more. Old ones are forgotten, so that nobody is locked out for ever."""
    if now_s - failures.last_s > FORGET_AFTER_S:
        return Failures(1, now_s)
    return Failures(failures.count + 1, now_s)


def check_wait(failures: Failures, *, now_s: float) -> None:
    """Whether another try is allowed now: the wait doubles with every failure. Raises TooMuch with what is left of it."""
    if failures.count <= FREE_TRIES or now_s - failures.last_s > FORGET_AFTER_S:
        return
    wait_s = min(2.0 ** (failures.count - FREE_TRIES - 1), LONGEST_WAIT_S)
    left_s = failures.last_s + wait_s - now_s
    if left_s > 0:
        raise TooMuch("too many wrong passwords; wait before the next try", retry_after_s=left_s)
