"""Between what a core decided and a store: records encoded on the way out, decoded on the way in."""

from __future__ import annotations

from typing import TypeVar

from fabric.api.core.intent import Write
from fabric.store.base import Snapshot, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import Key

V = TypeVar("V")


def txn_of(write: Write) -> Txn:
    """A decided write as the store takes it."""
    return Txn(
        unchanged=write.unchanged,
        put={key: encode(value) for key, value in write.put.items()},
        delete=write.delete,
    )


def found(seen: Snapshot, kind: Key[V], *fields: str) -> V | None:
    """The record at a key that was read, None where it is absent. Raises Bug when it does not parse."""
    stored = seen.value(kind.at(*fields))
    return None if stored is None else decode(kind.record, stored)
