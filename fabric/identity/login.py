"""Logging in: a name and a password for a token.

An unknown user and a wrong password get the same words after the same time. Who fails waits, longer each time, per account and address:
another address's failures lock nobody out.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from fabric.clock import Clock
from fabric.errors import TooMuch, Unauthenticated
from fabric.identity.core import FREE_TRIES, Failures, check_wait, failed_again, make_token
from fabric.identity.directory import Directory
from fabric.identity.passwords import Passwords
from fabric.identity.tokens import Tokens
from fabric.model.identity import Token

K = TypeVar("K")

REMEMBERED = 10_000

AT_ONCE = 8
"""Logins from one address that may be under way: fewer than half of what the hashing pool and its queue hold, so that an address that
floods them leaves room for all others."""


class Login:
    """Turns credentials into tokens."""

    def __init__(self, directory: Directory, passwords: Passwords, tokens: Tokens, clock: Clock) -> None:
        self._directory = directory
        self._passwords = passwords
        self._tokens = tokens
        self._clock = clock
        self._failures: OrderedDict[tuple[str, str], Failures] = OrderedDict()
        self._under_way: Counter[str] = Counter()
        self._trying: Counter[tuple[str, str]] = Counter()

    async def login(
        self, *, user_name: str, password: str, project: str, asked_s: int, peer: str
    ) -> tuple[str, Token]:
        """A new token's secret, and its record.

        Raises:
            Unauthenticated: wrong, unknown or disabled; the words do not tell which.
            PermissionDenied: the password is right, and the user has no role in the project.
            Conflict: somebody changed the user, or took the role, in this very moment.
            TooMuch: too many wrong ones before, or too many logins at once.
            Unavailable: the store cannot be reached.
        """
        account = (user_name, peer)
        with self._counted(account):
            user = await self._directory.find_user(user_name)
            is_right = await self._passwords.matches("" if user is None else user.password_hash, password)
            if user is None or not is_right or user.disabled:
                self._fail(account)
                raise Unauthenticated("user or password is wrong")
            self._failures.pop(account, None)
        name = project or user.default_project_id
        found = await self._directory.find_project(name) if name else None
        standing = await self._directory.standing(user, found)
        token = make_token(
            user, found, standing.role, asked_project=name, now_ms=self._clock.now_ms(), asked_s=asked_s
        )
        # Whoever is kept out, or taken a role, while they log in, gets no token that was decided on before.
        return await self._tokens.issue(token, unchanged=standing.unchanged), token

    @contextmanager
    def _counted(self, account: tuple[str, str]) -> Iterator[None]:
        """One try of an account from an address, while it lasts. Raises TooMuch."""
        _, peer = account
        failures = self._failures.get(account, Failures())
        check_wait(failures, now_s=self._clock.boot_s())
        # Failures are counted when they are known: many tries at once must not all go by what was known before the first.
        if failures.count >= FREE_TRIES and self._trying[account]:
            raise TooMuch("another try for this account is under way", retry_after_s=1.0)
        if self._under_way[peer] >= AT_ONCE:
            raise TooMuch("too many logins from this address are under way", retry_after_s=1.0, limit=AT_ONCE)
        self._trying[account] += 1
        self._under_way[peer] += 1
        try:
            yield
        finally:
            _one_less(self._trying, account)
            _one_less(self._under_way, peer)

    def _fail(self, account: tuple[str, str]) -> None:
        failures = self._failures.pop(account, Failures())
        self._failures[account] = failed_again(failures, now_s=self._clock.boot_s())
        while len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)


def _one_less(counts: Counter[K], key: K) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
