"""What a mutant is: a rule of the protocol taken away, by names of the shipped modules that are replaced while schedules run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from fabric.store.base import Committed, Refused, Store, Txn

Swap = tuple[object, str, object]
"""An object, the name of one of its attributes, and what stands there instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A rule taken away.

    `within` is how many schedules may pass before it is found; 0 for one that these faults do not bring to light, because of `upheld_by`.
    """

    name: str
    without: str
    within: int
    swaps: Callable[[], tuple[Swap, ...]]
    upheld_by: str = ""


def less(txn: Txn, *kinds: str) -> Txn:
    """The transaction without comparing keys of these kinds."""
    return replace(
        txn, unchanged={key: seen for key, seen in txn.unchanged.items() if not key.startswith(kinds)}
    )


def committing(owner: object, *kinds: str) -> Callable[[], tuple[Swap, ...]]:
    """The module's own `commit(store, change, ...)` without comparing keys of these kinds."""

    def swaps() -> tuple[Swap, ...]:
        commit = owner.commit  # type: ignore[attr-defined]  # every owner given has one

        async def careless(store: Store, change: Any, **options: Any) -> Committed | Refused:
            return cast("Committed | Refused", await commit(store, less(change, *kinds), **options))

        return ((owner, "commit", careless),)

    return swaps
