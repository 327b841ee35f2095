"""What is wired here and what plan was followed, on disk: a daemon that starts without its conductor serves and filters as before.

One file per instance, readable to root alone: it holds user data. One file for the plan.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

from fabric.model.network_plan import NetworkPlan
from hostd.network.base import Wiring

_log = structlog.get_logger(__name__)

_RECORD: Final = ".json"
_PART: Final = ".part"
"""What begins to be written, and is put in place when it is whole."""


class WiringRecords:
    """The records in one folder. Methods raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> Iterator[Wiring]:
        """Every record that can be read; one that cannot is left alone, and its instance must be wired again."""
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob(f"*{_RECORD}")):
            try:
                yield msgspec.json.decode(path.read_bytes(), type=Wiring)
            except msgspec.MsgspecError as error:
                # Without the error's words: they may quote what the record holds.
                _log.error("wiring.unreadable", file=path.name, kind=type(error).__name__)

    def write(self, wiring: Wiring) -> None:
        """Keep a record, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(self._path(wiring.guest.id), msgspec.json.encode(wiring))

    def remove(self, instance_id: str) -> None:
        """Drop a record, and what was to become one; there being none is success."""
        path = self._path(instance_id)
        for each in (path, _part_of(path)):
            each.unlink(missing_ok=True)

    def sweep(self, kept: Container[str]) -> None:
        """Drop what is of no instance in `kept`, readable or not: it holds user data."""
        for path in list(self._folder.glob("*")):
            if path.suffix in {_RECORD, _PART} and path.stem not in kept:
                _log.warning("wiring.stray", file=path.name)
                path.unlink(missing_ok=True)

    def _path(self, instance_id: str) -> Path:
        return self._folder / f"{instance_id}{_RECORD}"


class PlanRecord:
    """The plan that is to be followed, in one file. Methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> NetworkPlan | None:
        """The plan; None where there is none, or none that can be read: then the conductor's next one is waited for."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=NetworkPlan)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, ValueError) as error:
            _log.error("plan.unreadable", kind=type(error).__name__)
            return None

    def write(self, plan: NetworkPlan) -> None:
        """Keep the plan, whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _write(self._path, msgspec.json.encode(plan))

    def remove(self) -> None:
        """Drop it; there being none is success."""
        self._path.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    return path.with_suffix(_PART)


def _write(path: Path, content: bytes) -> None:
    part = _part_of(path)
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
        file.write(content)
    part.replace(path)
