"""Identity as a port: who makes ids and secrets, so that a simulation can replay them.

Ids are UUIDs made by the server (version 4, RFC 9562); they are never chosen by a client and never used twice.
"""

from __future__ import annotations

import secrets
import uuid
from typing import Protocol


class Ids(Protocol):
    """A source of names nobody else has."""

    def new_id(self) -> str:
        """A fresh UUID in its canonical 36-character form."""
        ...

    def new_secret(self, nbytes: int = 32) -> bytes:
        """Unguessable bytes, for tokens and tickets."""
        ...


class RandomIds:
    """The operating system's randomness."""

    def new_id(self) -> str:
        return str(uuid.uuid4())

    def new_secret(self, nbytes: int = 32) -> bytes:
        return secrets.token_bytes(nbytes)


def is_id(text: str) -> bool:
    """Whether `text` is a UUID in canonical lower-case form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
