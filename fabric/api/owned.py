"""Things of the global store that belong to a project: found by id or by name among that project's, linearizably.

A project's things are stored below the project's id, so those of others are not there to be found: what is foreign and what is absent are
the same to a handler, and so to whoever asks.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from fabric.api.named import Found, absent, readable
from fabric.ids import is_id
from fabric.store.base import Snapshot, Store
from fabric.store.codec import decode
from fabric.store.keys import Key

V = TypeVar("V")


class Owned(Generic[V]):
    """One kind of thing. `key` takes the project and the id, `name_key` the project and the name, and holds the id."""

    def __init__(self, store: Store, key: Key[V], what: str, name_key: Key[str] | None = None) -> None:
        self._store = store
        self._key = key
        self._what = what
        self._name_key = name_key

    async def find(self, project_id: str, name_or_id: str) -> Found[V] | None:
        """By id, else by name: ids win, because programs send them. Raises Unavailable."""
        if is_id(name_or_id):
            found = await self.at(project_id, name_or_id)
            if found is not None:
                return found
        if self._name_key is None or not name_or_id:
            return None
        key = self._name_key.at(project_id, name_or_id)
        named = (await self._store.get(key)).value(key)
        return None if named is None else await self.at(project_id, decode(str, named))

    async def get(self, project_id: str, name_or_id: str) -> Found[V]:
        """As `find`. Raises NotFound."""
        found = await self.find(project_id, name_or_id)
        if found is None:
            raise absent(self._what, name_or_id)
        return found

    async def at(self, project_id: str, resource_id: str) -> Found[V] | None:
        """By id. Raises Unavailable."""
        key = self._key.at(project_id, resource_id)
        return self.seen(await self._store.get(key), key)

    def seen(self, snapshot: Snapshot, key: str) -> Found[V] | None:
        """What a read saw at a key."""
        value = snapshot.value(key)
        if value is None:
            return None
        return Found(decode(self._key.record, value), snapshot.seen(key), snapshot.revision)

    async def all(self, project_id: str) -> tuple[list[Found[V]], int]:
        """Every one of the project's, and the revision. Raises Unavailable."""
        snapshot = await self._store.list(self._key.under(project_id))
        return readable(self._key.record, snapshot), snapshot.revision
