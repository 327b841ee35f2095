"""A prefix of a store kept in memory: listed once, followed by a watch, and re-read now and then all the same.

Correctness never hangs on watch delivery alone: etcd has lost, repeated and reordered events before. So every
`reread_s` the whole prefix is listed again and compared; a difference is repaired and reported. And whether the store can be
reached at all is asked of the store, every `contact_s`, because a watch that is quiet says nothing.

Runs on asyncio and the Clock only, so the same code runs in simulation.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

import structlog

from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import FabricError, Unavailable
from fabric.store.base import Batch, Compacted, Snapshot, Store

log = structlog.get_logger()

V = TypeVar("V")

RETRY_S = (0.2, 2.0)

LONG_AGO_S = float("-inf")


@dataclass(frozen=True, slots=True)
class Held(Generic[V]):
    """One key's value and the revision to compare when writing what was decided by it."""

    value: V
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Change(Generic[V]):
    """One key as it was and as it is. None stands for absence."""

    key: str
    before: Held[V] | None
    after: Held[V] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often a picture does what it does by the clock."""

    reread_s: float = 60.0
    """A full re-read, to repair what a watch may have lost."""
    contact_s: float = 1.0
    """A small read, to know that the store is there."""
    stale_after_s: float = 4.0
    """Without a successful read for so long the store counts as unreachable."""
    patience_s: float = 0.2
    """How long `at_least` lets the watch come by itself before it asks for a re-read."""


class Picture(Generic[V]):
    """The entries under a prefix, decoded, as of `revision`.

    `on_change` is called once per batch, after `entries` shows it, with the keys that changed; it must not wait. Before the batch in which
    the store turns out to have been set back, `on_set_back` is: what was known by the revisions until then may have later ones than what is
    so now. An entry that cannot be decoded is left out and named in `broken`: one bad record must not blind a whole process.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        decode: Callable[[str, bytes], V],
        *,
        clock: Clock,
        on_change: Callable[[Sequence[Change[V]]], None] | None = None,
        on_set_back: Callable[[], None] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._decode = decode
        self._clock = clock
        self._on_change = on_change
        self._on_set_back = on_set_back
        self._pace = Pace() if pace is None else pace
        self._entries: dict[str, Held[V]] = {}
        self._broken: dict[str, int] = {}
        self._revision = 0
        self._contact_boot_s = LONG_AGO_S
        # Keys deleted while a re-read is under way: its answer may be older than that and still show them.
        self._deleted: dict[str, int] | None = None
        self._moved = asyncio.Event()
        self._reread_wanted = asyncio.Event()
        self._is_answered: bool | None = None

    # ------------------------------------------------------------------ what it shows

    @property
    def entries(self) -> Mapping[str, Held[V]]:
        """By key. A live view: it changes between awaits."""
        return MappingProxyType(self._entries)

    @property
    def broken(self) -> Mapping[str, int]:
        """Keys whose value could not be decoded, with their mod_revision."""
        return MappingProxyType(self._broken)

    @property
    def revision(self) -> int:
        """Everything under the prefix up to here is shown. 0 before the first list."""
        return self._revision

    @property
    def contact_boot_s(self) -> float:
        """When the last read that the store answered was sent, on CLOCK_BOOTTIME; minus infinity for never."""
        return self._contact_boot_s

    @property
    def is_connected(self) -> bool:
        """Whether the store has answered lately."""
        return self._clock.boot_s() - self._contact_boot_s <= self._pace.stale_after_s

    @property
    def is_fresh(self) -> bool:
        """Whether the picture may be shown as the present: it has been listed, and the store answers."""
        return self._revision > 0 and self.is_connected

    async def at_least(self, revision: int, *, timeout_s: float) -> None:
        """Wait until the picture shows everything up to `revision`, such as that of one's own write.

        Raises:
            Unavailable: it did not get there in time.
        """
        try:
            async with within(timeout_s):
                while self._revision < revision:
                    moved = self._moved
                    try:
                        async with within(self._pace.patience_s):
                            await moved.wait()
                    except TimeoutError:
                        # A write elsewhere in the store moves its revision but sends nothing under this prefix.
                        self._reread_wanted.set()
        except TimeoutError:
            raise Unavailable(
                f"store {self._store.name}: what is under {self._prefix!r} is known up to revision"
                f" {self._revision}, not {revision}",
                store=self._store.name,
            ) from None

    # ------------------------------------------------------------------ what keeps it so

    async def run(self) -> None:
        """Keep the picture until cancelled, or until the store is closed."""
        async with asyncio.TaskGroup() as tasks:
            contact = tasks.create_task(self._keep_contact(), name=f"picture {self._prefix} contact")
            is_closed = False
            while not is_closed:
                await self._list()
                watching = tasks.create_task(self._watch(), name=f"picture {self._prefix} watch")
                rereading = tasks.create_task(self._keep_rereading(), name=f"picture {self._prefix} reread")
                try:
                    await asyncio.wait({watching, rereading}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    watching.cancel()
                    rereading.cancel()
                await asyncio.wait({watching, rereading})
                is_closed = not watching.cancelled() and watching.result() is _End.CLOSED
            contact.cancel()

    async def _list(self) -> None:
        pause_s = RETRY_S[0]
        while await self._reread() is _Reread.FAILED:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_S[1])

    async def _watch(self) -> _End:
        """Take in what the watch brings, until there is a reason to list again."""
        batches = self._store.watch(self._prefix, after=self._revision)
        try:
            async for batch in batches:
                self._take(batch)
        except Compacted as gone:
            log.info("picture.compacted", store=self._store.name, prefix=self._prefix, revision=gone.revision)
            return _End.COMPACTED
        finally:
            if isinstance(batches, AsyncGenerator):
                await batches.aclose()
        return _End.CLOSED

    async def _keep_rereading(self) -> None:
        """Re-read now and then, until the store turns out to have been set back."""
        outcome = _Reread.DONE
        while outcome is not _Reread.SET_BACK:
            with contextlib.suppress(TimeoutError):
                async with within(self._pace.reread_s):
                    await self._reread_wanted.wait()
            self._reread_wanted.clear()
            outcome = await self._reread()

    async def _keep_contact(self) -> None:
        while True:
            await self._asked(self._store.get())  # no keys: just the revision, as sound as any read
            await asyncio.sleep(self._pace.contact_s)

    async def _asked(self, reading: Awaitable[Snapshot]) -> Snapshot | None:
        """What a read brought, or None; either way it is known when the store last answered."""
        sent_boot_s = self._clock.boot_s()
        try:
            snapshot = await reading
        except Unavailable as away:
            if self._is_answered is not False:
                self._is_answered = False
                log.warning(
                    "picture.store_away", store=self._store.name, prefix=self._prefix, why=away.message
                )
            return None
        if self._is_answered is False:
            log.info("picture.store_back", store=self._store.name, prefix=self._prefix)
        self._is_answered = True
        self._contact_boot_s = max(self._contact_boot_s, sent_boot_s)
        return snapshot

    async def _reread(self) -> _Reread:
        asked_at = self._revision
        self._deleted = {}
        try:
            snapshot = await self._asked(self._store.list(self._prefix))
            if snapshot is None:
                return _Reread.FAILED
            if snapshot.revision >= asked_at:
                self._compare(snapshot)
                return _Reread.DONE
        finally:
            self._deleted = None
        # A list is never older than what was known when it was asked for. So this is another store than it was: one
        # restored from a backup. What it says now is all there is.
        log.error(
            "picture.store_set_back",
            store=self._store.name,
            prefix=self._prefix,
            known=asked_at,
            found=snapshot.revision,
        )
        self._adopt(snapshot)
        return _Reread.SET_BACK

    def _adopt(self, snapshot: Snapshot) -> None:
        """Show exactly this, whatever was shown before."""
        changes: list[Change[V]] = []
        for key in [*self._entries, *self._broken]:
            if key not in snapshot.entries:
                changes += self._set(key, None, snapshot.revision)
        for key, entry in snapshot.entries.items():
            changes += self._set(key, entry.value, entry.mod_revision)
        self._advance(snapshot.revision, changes, is_set_back=True)

    def _compare(self, snapshot: Snapshot) -> None:
        """Make good what the watch has not brought, whether it is late or has lost it."""
        deleted = self._deleted or {}
        changes: list[Change[V]] = []
        missed = 0
        is_set_back = False
        for key, entry in snapshot.entries.items():
            seen = max(self._seen(key), deleted.get(key, 0))
            # One that is older than what was seen by then is of a store that was set back, and has gone on since.
            is_older = entry.mod_revision < seen <= snapshot.revision
            is_set_back = is_set_back or is_older
            if entry.mod_revision > seen or is_older:
                missed += entry.mod_revision <= self._revision
                changes += self._set(key, entry.value, entry.mod_revision)
        for key in [*self._entries, *self._broken]:
            if key not in snapshot.entries and self._seen(key) <= snapshot.revision:
                missed += snapshot.revision <= self._revision
                changes += self._set(key, None, snapshot.revision)
        if missed:
            log.warning("picture.repaired", store=self._store.name, prefix=self._prefix, missed=missed)
        self._advance(max(self._revision, snapshot.revision), changes, is_set_back=is_set_back)

    def _take(self, batch: Batch) -> None:
        changes: list[Change[V]] = []
        for event in batch.events:
            if event.mod_revision > self._revision:  # else a re-read was faster
                if event.value is None and self._deleted is not None:
                    self._deleted[event.key] = event.mod_revision
                changes += self._set(event.key, event.value, event.mod_revision)
        self._advance(max(self._revision, batch.revision), changes)

    def _seen(self, key: str) -> int:
        held = self._entries.get(key)
        return self._broken.get(key, 0) if held is None else held.mod_revision

    def _set(self, key: str, value: bytes | None, revision: int) -> Iterable[Change[V]]:
        """Show one key as it is now; yields what that changed, which is nothing for a key that stays undecodable."""
        before, after = self._entries.pop(key, None), None
        self._broken.pop(key, None)
        if value is not None:
            try:
                after = self._entries[key] = Held(self._decode(key, value), revision)
            except (FabricError, ValueError) as error:
                self._broken[key] = revision
                log.error("picture.undecodable", store=self._store.name, key=key, error=type(error).__name__)
        return () if before is None and after is None else (Change(key, before, after),)

    def _advance(self, revision: int, changes: Sequence[Change[V]], *, is_set_back: bool = False) -> None:
        self._revision = revision
        if is_set_back and self._on_set_back is not None:
            self._on_set_back()
        if changes and self._on_change is not None:
            self._on_change(changes)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


class _End(enum.Enum):
    """Why a watch ended."""

    CLOSED = enum.auto()
    COMPACTED = enum.auto()


class _Reread(enum.Enum):
    """How a re-read ended."""

    DONE = enum.auto()
    FAILED = enum.auto()
    SET_BACK = enum.auto()
