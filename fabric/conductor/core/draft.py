"""A transaction while it is being decided: what was read, and what is to be written on the strength of it.

A decision reads its draft and writes into it; the next decision on the same draft sees what the first one wrote. So several may share one
transaction, and what each relied on is compared when it is committed. No I/O: a shell reads the keys, a shell commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from fabric.errors import Bug
from fabric.store.keys import Key

V = TypeVar("V")

Ref = tuple[Key[object], tuple[str, ...]]
"""A key to read: its row and the fields to fill in."""


def ref(row: Key[V], *fields: str) -> Ref:
    """A key to read."""
    return (cast("Key[object]", row), fields)


@dataclass(frozen=True, slots=True)
class Found:
    """What a key held when it was read: None and 0 where it was absent."""

    value: object | None
    revision: int


class Draft:
    """See the module. Keys that were not read cannot be decided on: asking for one is a Bug."""

    def __init__(self, found: Mapping[str, Found]) -> None:
        self._found = dict(found)
        self._unchanged: dict[str, int] = {}
        self._puts: dict[str, object] = {}
        self._deletes: dict[str, None] = {}

    @property
    def unchanged(self) -> Mapping[str, int]:
        """The revisions to compare."""
        return self._unchanged

    @property
    def puts(self) -> Mapping[str, object]:
        """The values to put."""
        return self._puts

    @property
    def deletes(self) -> tuple[str, ...]:
        """The keys to delete."""
        return tuple(self._deletes)

    @property
    def size(self) -> int:
        """How many compares or operations the transaction has, whichever is more (etcd limits both to 128)."""
        return max(len(self._unchanged), len(self._puts) + len(self._deletes))

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._puts or self._deletes)

    def add(self, found: Mapping[str, Found]) -> None:
        """Take in more that was read. What was decided on already stays as it was read first: the compare tells if it has moved."""
        self._found = {**found, **self._found}

    def missing(self, refs: Iterable[Ref]) -> tuple[Ref, ...]:
        """Those that were not read yet."""
        return tuple((row, fields) for row, fields in refs if row.at(*fields) not in self._found)

    def get(self, row: Key[V], *fields: str) -> V | None:
        """What is there, decisions taken so far included."""
        key = row.at(*fields)
        if key in self._puts:
            return cast("V", self._puts[key])
        if key in self._deletes:
            return None
        if key not in self._found:
            raise Bug(f"{key} was decided on but not read", key=key)
        return cast("V | None", self._found[key].value)

    def rely_on(self, row: Key[V], *fields: str) -> None:
        """Compare a key that is only read."""
        key = row.at(*fields)
        self._unchanged[key] = self._found[key].revision

    def put(self, row: Key[V], *fields: str, value: V) -> None:
        """Write what was read, comparing it."""
        self.rely_on(row, *fields)
        self.create(row, *fields, value=value)

    def delete(self, row: Key[V], *fields: str) -> None:
        """Remove what was read, comparing it."""
        self.rely_on(row, *fields)
        key = row.at(*fields)
        self._puts.pop(key, None)
        self._deletes[key] = None

    def create(self, row: Key[V], *fields: str, value: V) -> None:
        """Write without comparing: for keys whose existence says the same whoever wrote them first (`over`, `refund`)."""
        key = row.at(*fields)
        self._deletes.pop(key, None)
        self._puts[key] = value
