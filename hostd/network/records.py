"""What is wired here, on disk: so that a daemon that starts without its conductor still serves DHCP, filters and metadata.

One file per instance, readable to root alone: it holds user data.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from hostd.network.base import Wiring

_log = structlog.get_logger(__name__)


class WiringRecords:
    """The records in one folder. Methods raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> Iterator[Wiring]:
        """Every record that can be read; one that cannot is left alone, and its instance must be wired again."""
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.json")):
            try:
                yield msgspec.json.decode(path.read_bytes(), type=Wiring)
            except msgspec.MsgspecError as error:
                # Without the error's words: they may quote what the record holds.
                _log.error("wiring.unreadable", file=path.name, kind=type(error).__name__)

    def write(self, wiring: Wiring) -> None:
        """Keep a record, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(wiring.guest.id)
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(msgspec.json.encode(wiring))
        part.replace(path)

    def remove(self, instance_id: str) -> None:
        """Drop a record; there being none is success."""
        with contextlib.suppress(FileNotFoundError):
            self._path(instance_id).unlink()

    def _path(self, instance_id: str) -> Path:
        return self._folder / f"{instance_id}.json"
