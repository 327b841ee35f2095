"""The values of a shelf by what they have in common, kept as its picture changes: nobody reads through everybody's to find their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from fabric.api.shelf import Shelf
from fabric.store.picture import Change

V = TypeVar("V")


class Groups(Generic[V]):
    """An index. Every value is in the group that `group_of` says."""

    def __init__(self, shelf: Shelf[V], group_of: Callable[[V], str]) -> None:
        self._group_of = group_of
        self._members: dict[str, dict[str, V]] = {}
        shelf.listeners.append(self._on_change)

    def of(self, group: str) -> list[V]:
        """What the picture shows of a group now."""
        return list(self._members.get(group, {}).values())

    def _on_change(self, changes: Sequence[Change[V]]) -> None:
        for change in changes:
            if change.before is not None:
                group = self._group_of(change.before.value)
                members = self._members[group]
                del members[change.key]
                if not members:
                    del self._members[group]
            if change.after is not None:
                self._members.setdefault(self._group_of(change.after.value), {})[change.key] = (
                    change.after.value
                )
