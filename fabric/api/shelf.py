"""A picture of one kind of thing, looked up by id or by name.

What everybody reads (flavors, images, networks, keypairs, the index of servers) is served from memory. A thing that is not in the
picture may be newer than it: before saying no, the shelf catches up with the store once, so that a read through any API server sees
every write that was acknowledged before (I12).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import Unavailable
from fabric.store import codec
from fabric.store.base import Store
from fabric.store.picture import Change, Held, Pace, Picture

V = TypeVar("V")

CATCH_UP_S = 2.0
"""How long a read may wait for the picture; the API's answer to a store that is away comes within 2 s."""

PACE = Pace(patience_s=0.05)
"""A person is waiting: a watch that has not brought everything by then is not waited for, but read around."""


class Shelf(Generic[V]):
    """Every value under a prefix of a store."""

    def __init__(self, store: Store, prefix: str, kind: type[V], *, clock: Clock) -> None:
        self._store = store
        self._prefix = prefix
        self.listeners: list[Callable[[Sequence[Change[V]]], None]] = []
        """Called with every batch of changes, when the picture shows it; they must not wait."""
        self.picture: Picture[V] = Picture(
            store,
            prefix,
            lambda _key, data: codec.decode(kind, data),
            clock=clock,
            pace=PACE,
            on_change=self._changed,
        )

    def _changed(self, changes: Sequence[Change[V]]) -> None:
        for listener in self.listeners:
            listener(changes)

    async def run(self) -> None:
        """Keep the picture, until cancelled."""
        await self.picture.run()

    @property
    def entries(self) -> Mapping[str, Held[V]]:
        return self.picture.entries

    def values(self) -> Iterable[V]:
        """What the picture shows now."""
        return (held.value for held in list(self.picture.entries.values()))

    async def now(self) -> int:
        """The store's revision. Raises Unavailable."""
        # The prefix itself is never a key: reading it costs nothing and tells the revision, linearizably.
        return (await self._store.get(self._prefix)).revision

    async def catch_up(self, *, timeout_s: float = CATCH_UP_S) -> int:
        """Show at least everything that is in the store now; returns the revision shown. Raises Unavailable."""
        try:
            # The store has a patience of its own, which may be longer than the caller's.
            async with within(timeout_s):
                await self.picture.at_least(await self.now(), timeout_s=timeout_s)
        except TimeoutError:
            raise Unavailable(
                f"store {self._store.name} did not answer within {timeout_s:g} s", store=self._store.name
            ) from None
        return self.picture.revision

    async def find(self, key: str) -> Held[V] | None:
        """The value at a key, from the picture if it is there, else as of now. Raises Unavailable."""
        held = self.picture.entries.get(key)
        if held is None:
            await self.catch_up()
            held = self.picture.entries.get(key)
        return held

    def revisions(self, *keys: str) -> dict[str, int]:
        """The revisions of what the picture shows at these keys now, to be compared when something is written that relies on it."""
        return {key: self.picture.entries[key].mod_revision for key in keys}

    async def matching(self, matches: Callable[[V], bool]) -> list[V]:
        """Every value that matches, from the picture if any does, else as of now. Raises Unavailable."""
        found = [value for value in self.values() if matches(value)]
        if not found:
            await self.catch_up()
            found = [value for value in self.values() if matches(value)]
        return found
