"""The answers that request_ids were given, which are remembered for a while: in the global store the API's, in each cell its own."""

from __future__ import annotations

from typing import Final

import structlog

from fabric.errors import Bug
from fabric.model.instance import Answered
from fabric.store.base import Store, Txn
from fabric.store.codec import decode
from fabric.store.keys import Key

log = structlog.get_logger()

TOGETHER: Final = 64
"""Answers forgotten in one transaction; the store compares 128 keys at once."""


async def forget_answers(store: Store, kind: Key[Answered], *, now_ms: int) -> int:
    """Remove answers whose time is over; returns how many. Raises Unavailable."""
    found = await store.list(kind.under())
    old = [key for key, entry in found.entries.items() if _is_over(key, entry.value, now_ms=now_ms)]
    for begin in range(0, len(old), TOGETHER):
        part = old[begin : begin + TOGETHER]
        # A refusal means that somebody else is forgetting them too.
        await store.commit(Txn(unchanged={key: found.seen(key) for key in part}, delete=part))
    return len(old)


def _is_over(key: str, data: bytes, *, now_ms: int) -> bool:
    try:
        return decode(Answered, data).expire_time_ms <= now_ms
    except Bug as broken:
        # Not for anybody to take away unread; and all the others must go, or the store fills up.
        log.error("answer.undecodable", key=key, why=broken.message)
        return False
