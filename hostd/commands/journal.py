"""The journal as a port: what this host has promised, written before it acts (R3).

A row per instance: the highest (placement epoch, generation) accepted, the latest one-shot action started and done. Rows of
released placements stay as tombstones, so that no late order can raise an old copy. Beside them the highest epoch granted (R1).
Where the journal is lost or damaged, `open` says so: nothing is started or destroyed until a snapshot has come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class JournalDamaged(Exception):
    """The journal cannot be trusted: it is set aside under another name, and a new one is begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRow:
    """What was accepted for one instance. (placement_epoch, generation) only grows; so does action_started.

    `made`: the placement's root disk has been made here. Where it is gone, people's data is: nobody makes an empty one in its stead.
    """

    instance_id: str
    placement_epoch: int = 0
    generation: int = 0
    action_started: int = 0
    action_done: int = 0
    released: bool = False
    made: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalState:
    """All of it, as read at start. `trusted` is False after damage or a loss, until `trust` is called."""

    epoch: int
    rows: Mapping[str, JournalRow]
    trusted: bool = True


class Journal(Protocol):
    """Durable when a method returns. Small and quick: these calls are made on the event loop."""

    def open(self) -> JournalState:
        """Read everything; a damaged file is set aside and `trusted` is False."""
        ...

    def write_epoch(self, epoch: int) -> None:
        """Record the highest epoch granted."""
        ...

    def write(self, row: JournalRow) -> None:
        """Record a row, whole."""
        ...

    def trust(self) -> None:
        """Record that it holds everything a whole snapshot has told: from now on what it does not know was not done here."""
        ...

    def erase(self, instance_id: str) -> None:
        """Drop a tombstone's row whose order can no longer be late."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...
