"""What a transaction may look like, for every implementation alike. Values only.

etcd refuses some of these by itself, with words made for people who know etcd; checking before anything is sent gives
one answer for all stores, and lets a fake be as strict as the real thing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from fabric.errors import Bug, Reason, TooMuch
from fabric.store.base import Txn

TXN_OPS_LIMIT = 128
"""etcd's default `--max-txn-ops`: at most so many compares, and so many operations."""

TXN_BYTES_LIMIT = 1_572_864
"""etcd's default `--max-request-bytes` (1.5 MiB)."""

SHORTEST_LEASE_S = 2
"""etcd never grants less than one and a half of its default election timeout (1 s), in whole seconds."""


def check_keys(keys: Iterable[str]) -> None:
    """Whether these can be keys. Raises Bug: etcd has no empty key."""
    if "" in keys:
        raise Bug("an empty key")


def check(txn: Txn) -> None:
    """Whether a store may be asked this.

    Raises:
        Bug: contradicts itself: puts and deletes one key, or names a lease for a key it does not put.
        TooMuch: more operations or bytes than etcd takes in one transaction; split it.
    """
    for keys in (txn.unchanged, txn.empty, txn.put, txn.delete, txn.reads):
        check_keys(keys)
    both = set(txn.put).intersection(txn.delete)
    if both:
        raise Bug(f"a transaction both puts and deletes {min(both)}")
    unbound = set(txn.leases).difference(txn.put)
    if unbound:
        raise Bug(f"a transaction binds {min(unbound)} to a lease but does not put it")
    ops = max(
        len(txn.unchanged) + len(txn.empty),
        len(txn.put) + len(set(txn.delete)) + len(txn.reads) + len(txn.read_prefixes),
    )
    if ops > TXN_OPS_LIMIT:
        raise TooMuch(
            f"a transaction of {ops} operations; the store takes {TXN_OPS_LIMIT}",
            reason=Reason.TOO_LARGE,
            operations=ops,
        )
    size = sum(map(len, _texts(txn))) + sum(map(len, txn.put.values()))
    if size > TXN_BYTES_LIMIT:
        raise TooMuch(
            f"a transaction of {size} bytes; the store takes {TXN_BYTES_LIMIT}",
            reason=Reason.TOO_LARGE,
            bytes=size,
        )


def whole_ttl_s(ttl_s: float) -> int:
    """What a store grants when asked for `ttl_s`: whole seconds, never less than asked for."""
    if not 0 < ttl_s < 9_000_000_000:
        raise Bug(f"a lease of {ttl_s} s; etcd takes 1 to 9,000,000,000")
    return max(SHORTEST_LEASE_S, math.ceil(ttl_s))


def _texts(txn: Txn) -> Iterator[str]:
    # Keys that are compared travel twice: as a compare and as a read of the refusal.
    yield from txn.unchanged
    yield from txn.unchanged
    yield from txn.empty
    yield from txn.put
    yield from txn.delete
    yield from txn.reads
    yield from txn.read_prefixes
