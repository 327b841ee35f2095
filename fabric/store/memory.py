"""A store in this process's memory that keeps the port's laws exactly: for unit tests, simulation and the laptop.

Deterministic, and on asyncio's loop only: leases run on the loop's time, so a virtual-time loop makes them virtual, and
watchers are woken in the order they began. `history` is everything that was ever committed, for checkers; compaction
hides it from watchers, not from them.

Cost: a commit touches only the keys it names and the watchers of their prefixes; a list is a binary search plus what it
returns.
"""

from __future__ import annotations

import asyncio
import contextvars
from bisect import bisect_left, insort
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fabric.deadlines import within
from fabric.errors import NotFound, Unavailable
from fabric.store import rules
from fabric.store.base import Batch, Committed, Compacted, Entry, Event, Lease, Refused, Snapshot, Txn

CATCH_UP_REVISIONS = 1000
"""How many revisions a watcher that catches up is given at once (as etcd does)."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key changed at one revision. None stands for absence."""

    revision: int
    key: str
    before: bytes | None
    after: bytes | None


@dataclass(slots=True)
class _Granted:
    ttl_s: float
    timer: asyncio.TimerHandle
    ended: asyncio.Event
    keys: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Watcher:
    prefix: str
    revision: int
    """Nothing up to here is still to be handed on."""
    told: int
    """The revision the consumer knows of."""
    batches: deque[Batch] = field(default_factory=deque)
    is_behind: bool = True
    """Nothing is put into `batches`; what was missed is in the history."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class MemoryStore:
    """See the module. `progress_s` is how often a watcher of a quiet prefix hears the revision; None for never."""

    def __init__(self, name: str = "memory", *, progress_s: float | None = 2.0) -> None:
        self._name = name
        self._progress_s = progress_s
        self._entries: dict[str, Entry] = {}
        self._keys: list[str] = []
        self._revision = 1  # etcd's first: an empty store is at 1, its first write is 2
        self._compacted = 0
        self._history: list[Change] = []
        # Where in the history each revision begins: revision 2 is at index 0.
        self._begins: list[int] = []
        self._watchers: dict[str, dict[_Watcher, None]] = {}
        self._prefix_lengths: dict[int, int] = {}
        self._leases: dict[int, _Granted] = {}
        self._last_lease_id = 0
        self._is_closed = False

    @property
    def name(self) -> str:
        return self._name

    # ------------------------------------------------------------------ beyond the port

    @property
    def revision(self) -> int:
        """The newest revision."""
        return self._revision

    @property
    def history(self) -> Sequence[Change]:
        """Every committed change since revision 1, in order; not to be written to."""
        return self._history

    def names(self) -> Sequence[str]:
        """Every key there is now, in order."""
        return tuple(self._keys)

    def compact(self, revision: int) -> None:
        """Forget history before `revision`, as etcd does. Raises Compacted if that is past, or still to come."""
        if not self._compacted < revision <= self._revision:
            raise Compacted(self._compacted)
        self._compacted = revision

    def break_watches(self) -> None:
        """As if every watch stream broke now: each catches up from history when next read, unless that is compacted."""
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.batches.clear()
                watcher.is_behind = True
                watcher.woken.set()

    # ------------------------------------------------------------------ reading and writing

    async def get(self, *keys: str) -> Snapshot:
        rules.check_keys(keys)
        self._check_open()
        return self._read(sorted(set(keys)), ())

    async def list(self, prefix: str) -> Snapshot:
        self._check_open()
        return self._read((), (prefix,))

    async def commit(self, txn: Txn) -> Committed | Refused:
        rules.check(txn)
        self._check_open()
        for key, revision in txn.unchanged.items():
            if self._mod_revision(key) != revision:
                return Refused(self._read(sorted(txn.unchanged), ()))
        if any(next(self._under(prefix), None) is not None for prefix in txn.empty):
            return Refused(self._read(sorted(txn.unchanged), ()))
        for lease_id in txn.leases.values():
            if lease_id and lease_id not in self._leases:
                raise NotFound("the lease is gone", store=self._name)
        self._apply(
            [(key, value, txn.leases.get(key, 0)) for key, value in txn.put.items()],
            [key for key in dict.fromkeys(txn.delete) if key in self._entries],
        )
        return Committed(self._revision, self._read(txn.reads, txn.read_prefixes))

    def _apply(self, puts: Iterable[tuple[str, bytes, int]], deletes: Iterable[str]) -> None:
        """Write everything at one new revision; none is spent when there is nothing to write."""
        revision = self._revision + 1
        begin = len(self._history)
        for key, value, lease_id in puts:
            before = self._entries.get(key)
            if before is None:
                insort(self._keys, key)
            elif before.lease_id:
                self._leases[before.lease_id].keys.discard(key)
            self._entries[key] = Entry(
                key=key,
                value=value,
                mod_revision=revision,
                create_revision=revision if before is None else before.create_revision,
                lease_id=lease_id,
            )
            if lease_id:
                self._leases[lease_id].keys.add(key)
            self._history.append(Change(revision, key, None if before is None else before.value, value))
        for key in deletes:
            gone = self._entries.pop(key)
            del self._keys[bisect_left(self._keys, key)]
            if gone.lease_id:
                self._leases[gone.lease_id].keys.discard(key)
            self._history.append(Change(revision, key, gone.value, None))
        if len(self._history) > begin:
            self._revision = revision
            self._begins.append(begin)
            self._tell(self._history[begin:])

    def _read(self, keys: Iterable[str], prefixes: Iterable[str]) -> Snapshot:
        found = {key: entry for key in keys if (entry := self._entries.get(key)) is not None}
        for prefix in prefixes:
            for key in self._under(prefix):
                found[key] = self._entries[key]
        return Snapshot(self._revision, dict(sorted(found.items())))

    def _under(self, prefix: str) -> Iterator[str]:
        for index in range(bisect_left(self._keys, prefix), len(self._keys)):
            if not self._keys[index].startswith(prefix):
                return
            yield self._keys[index]

    def _mod_revision(self, key: str) -> int:
        entry = self._entries.get(key)
        return 0 if entry is None else entry.mod_revision

    # ------------------------------------------------------------------ watching

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        watcher = _Watcher(prefix, after, after)
        self._watchers.setdefault(prefix, {})[watcher] = None
        self._prefix_lengths[len(prefix)] = self._prefix_lengths.get(len(prefix), 0) + 1
        try:
            while not self._is_closed:
                batch = self._next(watcher)
                if batch is not None:
                    watcher.revision = watcher.told = batch.revision
                    yield batch
                    continue
                watcher.woken.clear()
                is_due = await self._woken(watcher)
                # A change may have come in the very instant the wait ended.
                is_even = not watcher.batches and not watcher.is_behind
                if is_due and is_even and self._revision > watcher.told:
                    watcher.revision = watcher.told = self._revision
                    yield Batch(self._revision)
        finally:
            self._forget(watcher)

    async def _woken(self, watcher: _Watcher) -> bool:
        """Wait until there may be something for the watcher; whether it has waited long enough to hear the revision at least."""
        if self._progress_s is None:
            await watcher.woken.wait()
            return False
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._progress_s
        # Lighter than a timeout around the wait, which in a simulation is most of what watchers cost.
        timer = loop.call_at(due_s, watcher.woken.set)
        try:
            await watcher.woken.wait()
        finally:
            timer.cancel()
        return loop.time() >= due_s

    def _next(self, watcher: _Watcher) -> Batch | None:
        """What the watcher has not had yet. Raises Compacted."""
        if not watcher.is_behind:
            return watcher.batches.popleft() if watcher.batches else None
        # etcd serves a watch that begins at the compacted revision, not one that begins before it.
        if max(1, watcher.revision) < self._compacted:
            raise Compacted(self._compacted)
        first = max(2, watcher.revision + 1)
        last = min(self._revision, first + CATCH_UP_REVISIONS - 1)
        if last >= self._revision:
            watcher.is_behind = False
        if first > last:
            return None
        begin, end = self._begins[first - 2], self._end_of(last)
        events = tuple(
            Event(change.key, change.after, change.revision)
            for change in self._history[begin:end]
            if change.key.startswith(watcher.prefix)
        )
        if events:
            return Batch(events[-1].mod_revision if last == self._revision else last, events)
        # Nothing of interest so far: not worth waking anybody, but never looked through again either.
        watcher.revision = last
        return self._next(watcher) if watcher.is_behind else None

    def _end_of(self, revision: int) -> int:
        return self._begins[revision - 1] if revision - 1 < len(self._begins) else len(self._history)

    def _tell(self, changes: Sequence[Change]) -> None:
        """Give one revision's changes to the watchers they concern, each getting them as one batch."""
        touched: dict[_Watcher, list[Event]] = {}
        for change in changes:
            event = Event(change.key, change.after, change.revision)
            for length in self._prefix_lengths:
                if length <= len(change.key):
                    for watcher in self._watchers.get(change.key[:length], ()):
                        touched.setdefault(watcher, []).append(event)
        for watcher, events in touched.items():
            # One that begins ahead of the store (it was told of a revision before a restore) waits for it.
            if not watcher.is_behind and events[0].mod_revision > watcher.revision:
                watcher.batches.append(Batch(events[0].mod_revision, tuple(events)))
            watcher.woken.set()

    def _forget(self, watcher: _Watcher) -> None:
        watchers = self._watchers[watcher.prefix]
        del watchers[watcher]
        if not watchers:
            del self._watchers[watcher.prefix]
        length = len(watcher.prefix)
        self._prefix_lengths[length] -= 1
        if not self._prefix_lengths[length]:
            del self._prefix_lengths[length]

    # ------------------------------------------------------------------ leases

    async def grant(self, ttl_s: float) -> Lease:
        self._check_open()
        self._last_lease_id += 1
        lease = Lease(self._last_lease_id, float(rules.whole_ttl_s(ttl_s)))
        timer = self._expire_later(lease.id, lease.ttl_s)
        self._leases[lease.id] = _Granted(lease.ttl_s, timer, asyncio.Event())
        return lease

    async def keep_alive(self, lease: Lease) -> None:
        while not self._is_closed and (granted := self._leases.get(lease.id)) is not None:
            granted.timer.cancel()
            granted.timer = self._expire_later(lease.id, granted.ttl_s)
            try:
                async with within(granted.ttl_s / 3):
                    await granted.ended.wait()
            except TimeoutError:
                continue

    def renew(self, lease: Lease) -> bool:
        """One beat of `keep_alive`, as the server takes it: False when the lease is gone."""
        granted = self._leases.get(lease.id)
        if granted is None:
            return False
        granted.timer.cancel()
        granted.timer = self._expire_later(lease.id, granted.ttl_s)
        return True

    async def revoke(self, lease: Lease) -> None:
        self._check_open()
        self._end_lease(lease.id)

    def _expire_later(self, lease_id: int, ttl_s: float) -> asyncio.TimerHandle:
        # A context of its own: the lease must end even when whoever granted it is dead, as a simulation may have it.
        return asyncio.get_running_loop().call_later(
            ttl_s, self._end_lease, lease_id, context=contextvars.Context()
        )

    def _end_lease(self, lease_id: int) -> None:
        granted = self._leases.get(lease_id)
        if granted is None:
            return
        granted.timer.cancel()
        self._apply((), sorted(granted.keys))
        del self._leases[lease_id]
        granted.ended.set()

    # ------------------------------------------------------------------ the end

    async def close(self) -> None:
        self._is_closed = True
        for granted in self._leases.values():
            granted.timer.cancel()
            granted.ended.set()
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.woken.set()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable(f"store {self._name} is closed", store=self._name)
