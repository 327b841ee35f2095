"""Drafts against the store: read the keys, commit what was decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fabric.conductor.core.draft import Draft, Found, Ref
from fabric.store.base import Committed, Store, Txn
from fabric.store.codec import decode, encode


async def read(store: Store, refs: Iterable[Ref]) -> Mapping[str, Found]:
    """What these keys hold, at one revision. Raises Unavailable, and Bug for a record that does not parse."""
    rows = {row.at(*fields): row for row, fields in refs}
    if not rows:
        return {}
    snapshot = await store.get(*rows)
    return {
        key: Found(
            None if (value := snapshot.value(key)) is None else decode(row.record, value), snapshot.seen(key)
        )
        for key, row in rows.items()
    }


def transaction(draft: Draft) -> Txn:
    """The draft as a transaction."""
    return Txn(
        unchanged=dict(draft.unchanged),
        put={key: encode(value) for key, value in draft.puts.items()},
        delete=draft.deletes,
    )


async def commit(store: Store, draft: Draft) -> bool:
    """Write what was decided. False: something had moved, and it must be decided anew.

    Raises Ambiguous, Unavailable. Nothing here asks what became of an ambiguous write, because every decision of a conductor is made
    from the records alone: whoever reads them again decides rightly whether it was applied or not, and a copy applied late compares
    the same revisions as the one that was lost (R12).
    """
    return not draft or isinstance(await store.commit(transaction(draft)), Committed)
