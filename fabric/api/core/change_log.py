"""The last changes of several sources, in the order they were learnt of: what watchers go on from. Bounded; what is older is forgotten.

A source (a cell's servers, the index) has revisions of its own, which only grow. A position says of each source up to which revision a
watcher was told. Whoever reads keeps nothing but a number: the place in the log up to which it has read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """One change: of which source, at which of its revisions."""

    source: str
    revision: int
    news: V


class ChangeLog(Generic[V]):
    """See the module. `limit` is how many changes are remembered."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: deque[Entry[V]] = deque()
        self._end = 0
        self._position: dict[str, int] = {}
        # The revision of the last change of a source that is not remembered any more.
        self._floors: dict[str, int] = {}

    @property
    def end(self) -> int:
        """The place after the last change."""
        return self._end

    @property
    def position(self) -> Mapping[str, int]:
        """Up to where each source is known."""
        return dict(self._position)

    def begin(self, source: str, revision: int) -> None:
        """From here on every change of the source is added; nothing is known of those before.

        A source that was known before has been set back: what was remembered may not have happened, so all of it is forgotten.
        """
        if source in self._position:
            self._entries.clear()
            self._floors = dict(self._position)
        self._position[source] = self._floors[source] = revision

    def add(self, source: str, revision: int, news: Iterable[V]) -> None:
        """Everything that is new of a source, up to this revision of it."""
        for each in news:
            self._entries.append(Entry(source, revision, each))
            self._end += 1
        self._position[source] = revision
        while len(self._entries) > self._limit:
            gone = self._entries.popleft()
            self._floors[gone.source] = max(gone.revision, self._floors.get(gone.source, 0))

    def since(self, place: int) -> list[Entry[V]] | None:
        """Every change from a place on. None: some of them are forgotten."""
        count = self._end - place
        if count > len(self._entries):
            return None
        return [self._entries[index] for index in range(len(self._entries) - count, len(self._entries))]

    def after(self, position: Mapping[str, int]) -> list[Entry[V]] | None:
        """Every change after a position. None: what came in between is not known for every source."""
        for source, revision in self._position.items():
            if not self._floors[source] <= position.get(source, -1) <= revision:
                return None
        return [each for each in self._entries if each.revision > position[each.source]]
