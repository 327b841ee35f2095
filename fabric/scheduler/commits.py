"""Between values and a store: encode what a core decided, decode what it asks about, and wait for a store no longer than agreed."""

from __future__ import annotations

from typing import TypeVar

from fabric.deadlines import within
from fabric.errors import Ambiguous, Unavailable
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.picture import Seen
from fabric.store import codec
from fabric.store.base import Committed, Refused, Snapshot, Store, Txn

V = TypeVar("V")


async def commit(store: Store, change: Change, *, timeout_s: float) -> Committed | Refused:
    """Commit a change.

    Raises:
        Ambiguous: it may or may not have been applied, also when the store did not answer in time.
        Unavailable: it was never sent.
    """
    txn = Txn(
        unchanged=change.unchanged,
        put={key: codec.encode(value) for key, value in change.put.items()},
        delete=change.delete,
    )
    try:
        async with within(timeout_s):
            return await store.commit(txn)
    except TimeoutError:
        raise Ambiguous(
            f"store {store.name} did not answer a write within {timeout_s} s", store=store.name
        ) from None


async def read(store: Store, *keys: str, timeout_s: float) -> Snapshot:
    """Read keys at one revision. Raises Unavailable, also when the store does not answer in time."""
    try:
        async with within(timeout_s):
            return await store.get(*keys)
    except TimeoutError:
        raise Unavailable(
            f"store {store.name} did not answer a read within {timeout_s} s", store=store.name
        ) from None


def seen(snapshot: Snapshot, key: str, kind: type[V]) -> Seen[V]:
    """What a snapshot says of one key. Raises Bug for bytes that are no such record."""
    value = snapshot.value(key)
    return Seen(
        value=None if value is None else codec.decode(kind, value),
        revision=snapshot.seen(key),
        known=snapshot.seen(key) or snapshot.revision,
    )
