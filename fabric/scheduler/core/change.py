"""What is to be written, as values: a core decides it, a shell encodes and commits it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fabric.errors import Bug


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One transaction on one store: applied whole if every `unchanged` still holds, else not at all.

    `unchanged` maps keys to the revisions that were read (0: absent), `put` maps keys to the records they are to hold.
    """

    unchanged: Mapping[str, int] = field(default_factory=dict)
    put: Mapping[str, object] = field(default_factory=dict)
    delete: tuple[str, ...] = ()


def together(changes: Iterable[Change]) -> Change:
    """Several changes as one. Raises Bug when two of them write the same key, or compare one at different revisions."""
    unchanged: dict[str, int] = {}
    put: dict[str, object] = {}
    deleted: list[str] = []
    for change in changes:
        for key, revision in change.unchanged.items():
            if unchanged.setdefault(key, revision) != revision:
                raise Bug(f"{key} is compared at two revisions in one transaction")
        for key in (*change.put, *change.delete):
            if key in put or key in deleted:
                raise Bug(f"{key} is written twice in one transaction")
        put.update(change.put)
        deleted.extend(change.delete)
    return Change(unchanged=unchanged, put=put, delete=tuple(deleted))
