"""Things of the global store that have an id and a unique name: found by either, linearizably.

Reads go to the store, not to a picture of it: so what was made through one server is found through every other (I12).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fabric.errors import InvalidRequest, NotFound, Reason
from fabric.ids import is_id
from fabric.store.base import Snapshot, Store
from fabric.store.codec import decode
from fabric.store.keys import Key
from fabric.store.parsed import parsed

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Found(Generic[V]):
    """A thing as it was at `revision`, and the revision to compare when it is changed."""

    value: V
    mod_revision: int
    revision: int


class Named(Generic[V]):
    """One kind of thing: its key by id, and the key that holds the id by name."""

    def __init__(
        self, store: Store, kind: type[V], key: Key[V], what: str, name_key: Callable[[str], str]
    ) -> None:
        self._store = store
        self._kind = kind
        self._key = key
        self._what = what
        self._name_key = name_key

    async def find(self, name_or_id: str) -> Found[V] | None:
        """By id, else by name: ids win, because programs send them. Raises Unavailable."""
        if is_id(name_or_id):
            found = await self._at(name_or_id)
            if found is not None:
                return found
        name_key = self._name_key(name_or_id)
        named = (await self._store.get(name_key)).value(name_key)
        return None if named is None else await self._at(decode(str, named))

    async def get(self, name_or_id: str) -> Found[V]:
        """As `find`. Raises NotFound, in the same words for what is absent and what is somebody else's."""
        found = await self.find(name_or_id)
        if found is None:
            raise absent(self._what, name_or_id)
        return found

    async def is_taken(self, name: str) -> bool:
        """Whether there is one of that name. Raises Unavailable."""
        key = self._name_key(name)
        return key in (await self._store.get(key)).entries

    async def all(self) -> tuple[list[Found[V]], int]:
        """Every one, and the revision. Raises Unavailable."""
        snapshot = await self._store.list(self._key.under())
        return readable(self._kind, snapshot), snapshot.revision

    async def _at(self, resource_id: str) -> Found[V] | None:
        key = self._key.at(resource_id)
        seen = await self._store.get(key)
        value = seen.value(key)
        return None if value is None else Found(decode(self._kind, value), seen.seen(key), seen.revision)


def readable(kind: type[V], listed: Snapshot) -> list[Found[V]]:
    """Everything that a list has read, but for what does not parse."""
    return [Found(value, listed.seen(key), listed.revision) for key, value in parsed(kind, listed)]


def absent(what: str, name: str) -> NotFound:
    """The one text for what is not there, or not the caller's to see."""
    return NotFound(f"there is no {what} {name!r}")


async def named_by(field: str, looking: Awaitable[V]) -> V:
    """What a field of a request names. That it is not there is the request's fault: raises InvalidRequest, naming the field."""
    try:
        return await looking
    except NotFound as gone:
        raise InvalidRequest(gone.message, field=field, reason=Reason.RESOURCE_NOT_FOUND) from None
