"""A journal that lives as long as the `JournalMemory` it is given: the disk of a simulated host."""

from __future__ import annotations

from dataclasses import dataclass, field

from hostd.commands.journal import JournalRow, JournalState


@dataclass(slots=True)
class JournalMemory:
    """What is on the simulated disk. It outlives the daemon; `lose` is the fault of losing it."""

    epoch: int = 0
    rows: dict[str, JournalRow] = field(default_factory=dict)
    trusted: bool = False

    def lose(self) -> None:
        """Lose everything, as a replaced disk does."""
        self.epoch = 0
        self.rows.clear()
        self.trusted = False


class MemoryJournal:
    """`Journal` on a `JournalMemory`; durable in the sense of the simulation."""

    def __init__(self, memory: JournalMemory | None = None) -> None:
        self._memory = memory if memory is not None else JournalMemory()

    def open(self) -> JournalState:
        return JournalState(
            epoch=self._memory.epoch, rows=dict(self._memory.rows), trusted=self._memory.trusted
        )

    def write_epoch(self, epoch: int) -> None:
        self._memory.epoch = max(epoch, self._memory.epoch)

    def write(self, row: JournalRow) -> None:
        self._memory.rows[row.instance_id] = row

    def trust(self) -> None:
        self._memory.trusted = True

    def erase(self, instance_id: str) -> None:
        self._memory.rows.pop(instance_id, None)

    def close(self) -> None:
        """Nothing to let go of."""
