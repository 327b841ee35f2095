"""The store as a port: a revisioned key-value space with compare-and-write transactions, watches and leases.

The shape is etcd's (v3 API), less what we must not lean on. What every implementation guarantees, and
`tests/conformance/store` checks:

- Every successful transaction takes one new revision; revisions only grow; all its effects are visible together.
- `get` and `list` are linearizable: they see every write acknowledged before they were called.
- A transaction names the revisions it read (`unchanged`); it is applied only if all of them still hold.
- A watch delivers every event after its start revision, in order, once, in batches that never split a revision;
  or it raises `Compacted`. It resumes by itself over broken connections and dead members.
- A write whose answer was lost raises `Ambiguous`, never a plain `Unavailable` (R12).
- A lease is a hint for where to look, never a lock (host protocol, section 5).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Compacted(Exception):
    """History before `revision` is gone: the watcher must list again. Not an error of anybody's."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"history before revision {revision} is compacted")
        self.revision = revision


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as it stood at some revision."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a read saw: the entries that exist, by key, all at one revision."""

    revision: int
    entries: Mapping[str, Entry]

    def value(self, key: str) -> bytes | None:
        """The key's value, or None where it is absent."""
        entry = self.entries.get(key)
        return None if entry is None else entry.value

    def seen(self, key: str) -> int:
        """The revision to compare in a transaction: the key's mod_revision, 0 where it is absent."""
        entry = self.entries.get(key)
        return 0 if entry is None else entry.mod_revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Txn:
    """A whole write: applied completely if every `unchanged` and every `empty` holds, else not at all.

    `unchanged` maps a key to the mod_revision that was read, 0 meaning "absent". `empty` holds prefixes below which there
    must be no key: what is deleted while something may just be made that hangs on it. `reads` and `read_prefixes` are read
    inside the transaction, after its writes, when it is applied: the only reads that may grant anything (R11). `leases`
    binds keys of `put` to a lease.
    """

    unchanged: Mapping[str, int] = field(default_factory=dict)
    empty: Sequence[str] = ()
    put: Mapping[str, bytes] = field(default_factory=dict)
    delete: Sequence[str] = ()
    leases: Mapping[str, int] = field(default_factory=dict)
    reads: Sequence[str] = ()
    read_prefixes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Committed:
    """The transaction was applied at `revision`; `read` holds what its reads saw."""

    revision: int
    read: Snapshot


@dataclass(frozen=True, slots=True)
class Refused:
    """Something had changed: `current` holds every key of `unchanged` as it is now. Nothing was written."""

    current: Snapshot


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key. `value` is None for a deletion."""

    key: str
    value: bytes | None
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Events up to and including `revision`, in order, whole revisions only; empty for a progress mark."""

    revision: int
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted lease: keys put under it vanish some time after `ttl_s` without a keepalive (bound: 2 x TTL + an election)."""

    id: int
    ttl_s: float


class Store(Protocol):
    """One etcd cluster, or something that keeps its laws. All methods raise `Unavailable` when it cannot be reached."""

    @property
    def name(self) -> str:
        """What people call it: `global`, or the cell's name."""
        ...

    async def get(self, *keys: str) -> Snapshot:
        """Read keys, linearizably, at one revision. Raises Unavailable."""
        ...

    async def list(self, prefix: str) -> Snapshot:
        """Read every key under a prefix at one revision (pages are fetched at that revision). Raises Unavailable."""
        ...

    async def commit(self, txn: Txn) -> Committed | Refused:
        """Apply a transaction or refuse it. Raises Ambiguous when the answer was lost, Unavailable when it was never sent."""
        ...

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        """Every change under a prefix after revision `after`, for ever. Raises Compacted; everything else it survives."""
        ...

    async def grant(self, ttl_s: float) -> Lease:
        """A new lease. Raises Unavailable."""
        ...

    async def keep_alive(self, lease: Lease) -> None:
        """Keep the lease until cancelled; returns as soon as it is, or may be, lost (measured from when beats were sent)."""
        ...

    async def revoke(self, lease: Lease) -> None:
        """End the lease and its keys now. A lease already gone is fine. Raises Unavailable."""
        ...

    async def close(self) -> None:
        """Let go of connections. Watches end."""
        ...
