"""Passwords as argon2id hashes (RFC 9106), with a cost that one login can bear and a flood of logins cannot misuse.

The library's defaults take 0.75 s on a small machine: a lever against the server. With 19 MiB and two passes (OWASP's second choice) it
is a tenth, on a pool of two threads with a short queue.
"""

from __future__ import annotations

from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from fabric.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The parameters of argon2id. Stored in every hash, so they may change at any time."""

    memory_kib: int = 19 * 1024
    passes: int = 2
    lanes: int = 1


CHEAP = Cost(memory_kib=8, passes=1)
"""For tests and simulations: no protection at all."""


class Passwords:
    """Makes and checks hashes, off the event loop."""

    def __init__(self, workers: Workers, cost: Cost | None = None) -> None:
        cost = Cost() if cost is None else cost
        self._workers = workers
        self._hasher = PasswordHasher(
            memory_cost=cost.memory_kib, time_cost=cost.passes, parallelism=cost.lanes
        )
        # Checked for users that do not exist: a login takes as long whether there is such a user or not.
        self._nobody = self._hasher.hash("nobody has this password")

    async def hash(self, password: str) -> str:
        """The hash of a new password. Raises TooMuch when too many are being made."""
        return await self._workers.run(lambda: self._hasher.hash(password))

    async def matches(self, password_hash: str, password: str) -> bool:
        """Whether a password is the one; the hash of nobody may be empty, and takes as long. Raises TooMuch."""
        return await self._workers.run(lambda: self._matches(password_hash, password))

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            self._hasher.verify(password_hash or self._nobody, password)
        except (VerificationError, InvalidHashError):
            return False
        return bool(password_hash)
