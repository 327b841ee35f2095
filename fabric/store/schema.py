"""The version of what is stored, kept in the store itself, so that a binary never misreads what another one wrote.

A process works with any version from `OLDEST` to `SCHEMA_VERSION` and writes what the store's version allows. So during a rolling
upgrade old and new run side by side at the old version, and the version is raised, by an administrator, only when the last
old process is gone. The value is plain decimal digits: every version ever made can read it.

To change what is stored incompatibly: raise `SCHEMA_VERSION`, add a row to `CHANGES`, and a test that runs both versions.
"""

from __future__ import annotations

import asyncio

import structlog

from fabric.errors import Bug, Conflict, Unavailable, WrongState
from fabric.store.base import Committed, Store, Txn

log = structlog.get_logger()

KEY = "schema"

SCHEMA_VERSION = 1
"""The newest version this code can read and write."""

OLDEST = 1
"""The oldest version this code can read and write."""

RETRY_S = 1.0

CHANGES = {
    1: "The first: fabric.record.v1 messages under the keys of fabric/store/keys.py.",
}


async def open_schema(store: Store) -> int:
    """The version the store is at; an empty store is put at the newest.

    Raises:
        WrongState: the store is at a version this code does not know.
        Unavailable: the store cannot be reached.
    """
    while True:
        found = (await store.get(KEY)).value(KEY)
        if found is not None:
            return _supported(_parsed(found, store.name), store.name)
        # Two processes may come first. The writes are equal, so even one whose answer is lost needs no settling: the
        # next read shows whoever won.
        await store.commit(Txn(unchanged={KEY: 0}, put={KEY: b"%d" % SCHEMA_VERSION}))


async def opened(store: Store) -> int:
    """`open_schema` of a store that may be away: waits for it as long as it takes. Raises WrongState."""
    while True:
        try:
            return await open_schema(store)
        except Unavailable as away:
            log.warning("store.away", store=store.name, why=away.message)
            await asyncio.sleep(RETRY_S)


async def raise_schema(store: Store, to: int) -> None:
    """Let every process write version `to` from now on. Old ones refuse to start, and must be gone already.

    Raises:
        WrongState: `to` is not newer than what the store has, or not known to this code.
        Conflict: somebody else raised it meanwhile.
        Ambiguous, Unavailable: as `Store.commit`.
    """
    now = await open_schema(store)
    _supported(to, store.name)
    if to <= now:
        raise WrongState(
            f"store {store.name} is at schema {now}, which is not older than {to}", store=store.name
        )
    seen = await store.get(KEY)
    if not isinstance(
        await store.commit(Txn(unchanged={KEY: seen.seen(KEY)}, put={KEY: b"%d" % to})), Committed
    ):
        raise Conflict(f"store {store.name}: the schema was changed meanwhile", store=store.name)


def _parsed(value: bytes, store: str) -> int:
    if not value.isdigit():
        raise Bug(f"store {store}: {KEY} holds no number", store=store)
    return int(value)


def _supported(version: int, store: str) -> int:
    if not OLDEST <= version <= SCHEMA_VERSION:
        raise WrongState(
            f"store {store} is at schema {version}; this program knows {OLDEST} to {SCHEMA_VERSION}: run one that knows it",
            store=store,
            schema=version,
        )
    return version
