"""Logging in: a name and a password for a token.

An unknown user and a wrong password get the same words after the same time. Who fails waits, longer each time, per account and address:
another address's failures lock nobody out.
"""

from __future__ import annotations

from collections import OrderedDict

from fabric.clock import Clock
from fabric.errors import Unauthenticated
from fabric.identity.core import Failures, check_wait, failed_again, make_token
from fabric.identity.directory import Directory
from fabric.identity.passwords import Passwords
from fabric.identity.tokens import Tokens
from fabric.model.identity import Role, Token

REMEMBERED = 10_000


class Login:
    """Turns credentials into tokens."""

    def __init__(self, directory: Directory, passwords: Passwords, tokens: Tokens, clock: Clock) -> None:
        self._directory = directory
        self._passwords = passwords
        self._tokens = tokens
        self._clock = clock
        self._failures: OrderedDict[tuple[str, str], Failures] = OrderedDict()

    async def login(
        self, *, user_name: str, password: str, project: str, asked_s: int, peer: str
    ) -> tuple[str, Token]:
        """A new token's secret, and its record.

        Raises:
            Unauthenticated: wrong, unknown or disabled; the words do not tell which.
            PermissionDenied: the password is right, and the user has no role in the project.
            TooMuch: too many wrong ones before, or too many logins at once.
            Unavailable: the store cannot be reached.
        """
        account = (user_name, peer)
        check_wait(self._failures.get(account, Failures()), now_s=self._clock.boot_s())
        user = await self._directory.find_user(user_name)
        is_right = await self._passwords.matches("" if user is None else user.password_hash, password)
        if user is None or not is_right or user.disabled:
            self._fail(account)
            raise Unauthenticated("user or password is wrong")
        self._failures.pop(account, None)
        name = project or user.default_project_id
        found = await self._directory.find_project(name) if name else None
        role = Role.UNSPECIFIED if found is None else await self._directory.role(user.id, found.id)
        token = make_token(
            user, found, role, asked_project=name, now_ms=self._clock.now_ms(), asked_s=asked_s
        )
        return await self._tokens.issue(token), token

    def _fail(self, account: tuple[str, str]) -> None:
        failures = self._failures.pop(account, Failures())
        self._failures[account] = failed_again(failures, now_s=self._clock.boot_s())
        while len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)
