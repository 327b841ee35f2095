"""Tokens between commands: one file for each login, readable by its owner alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from fabric.cli.profiles import Login

MARGIN_S = 60
"""A token is not used in its last minute: it could end under way."""


@dataclass(frozen=True, slots=True)
class Cached:
    """A token and until when it is good."""

    token: str = field(repr=False)
    expire_s: int


class TokenCache:
    """A folder of tokens. Losing it costs a login, so every doubt about a file means that it is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, login: Login, *, now_s: float) -> str:
        """The login's token, if it is still good; else nothing."""
        try:
            data = json.loads(self._path(login).read_text())
            found = Cached(str(data["token"]), int(data["expire_s"]))
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return found.token if found.expire_s - MARGIN_S > now_s else ""

    def put(self, login: Login, found: Cached) -> None:
        """Keep a token. A cache that cannot be written is done without."""
        path = self._path(login)
        draft = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump({"token": found.token, "expire_s": found.expire_s}, file)
            draft.replace(path)

    def drop(self, login: Login) -> None:
        """Forget the login's token."""
        with contextlib.suppress(OSError):
            self._path(login).unlink(missing_ok=True)

    def _path(self, login: Login) -> Path:
        name = f"{login.endpoint}\0{login.username}\0{login.project}"
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"
