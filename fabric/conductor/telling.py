"""What a host is told: its orders and releases, in the order the store made them, through a queue that is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from fabric.conductor.core import flow
from fabric.errors import Bug
from fabric.model.instance import Assignment, Tombstone
from fabric.model.session import FromConductor, Snapshot
from fabric.rpc.session_codec import pack_from_conductor
from fabric.store.base import Snapshot as Found
from fabric.store.codec import decode
from fabric.store.keys import ASSIGNMENT, TOMBSTONE

log = structlog.get_logger()

V = TypeVar("V")

OUTGOING_LIMIT: Final = 1024
"""Messages that may wait for a slow host; a host slower than that is told everything anew in another session."""

PART_BYTES: Final = 1024 * 1024
"""A snapshot's parts are about this large."""


@dataclass(frozen=True, slots=True)
class Change:
    """An assignment or a tombstone of a host, as the store's watch brought it."""

    kind: type[Assignment] | type[Tombstone]
    data: bytes
    revision: int


class Telling:
    """One session's outgoing side. `on_full` is called when the host is too slow to be told more."""

    def __init__(self, host: str, *, on_full: Callable[[], None]) -> None:
        self.epoch = 0
        self.revision = 0
        self._host = host
        self._on_full = on_full
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue(OUTGOING_LIMIT)
        self._placements: dict[str, int] = {}
        # Changes that the watch brings before the join has told at which revision to begin.
        self._early: list[Change] | None = []

    @property
    def placements(self) -> Mapping[str, int]:
        """Which placement of which instance the host was last told of."""
        return self._placements

    async def next(self) -> bytes:
        """The next message to send."""
        return await self._outgoing.get()

    def say(self, message: FromConductor) -> None:
        """Queue a message."""
        try:
            self._outgoing.put_nowait(pack_from_conductor(message))
        except asyncio.QueueFull:
            self._on_full()

    def changed(self, change: Change) -> None:
        """Tell one change, unless what was told in full was newer already."""
        if self._early is not None:
            self._early.append(change)
        elif change.revision > self.revision:
            self._tell(change)

    def everything(self, found: Found, revision: int) -> None:
        """Tell all that is wanted of the host at this revision, in parts; then what came before anybody knew where to begin."""
        self.revision = revision
        self._placements = {}
        parts: list[tuple[list[Assignment], list[Tombstone]]] = [([], [])]
        size = 0
        for key, entry in found.entries.items():
            if size > PART_BYTES:
                parts.append(([], []))
                size = 0
            size += len(entry.value)
            if key.startswith(ASSIGNMENT.under(self._host)):
                assignment = self._readable(Assignment, entry.value)
                if assignment is not None:
                    self._placements[assignment.instance_id] = assignment.placement_epoch
                    parts[-1][0].append(assignment)
            elif key.startswith(TOMBSTONE.under(self._host)):
                tombstone = self._readable(Tombstone, entry.value)
                if tombstone is not None:
                    parts[-1][1].append(tombstone)
        for place, (assignments, tombstones) in enumerate(parts):
            self.say(
                Snapshot(
                    epoch=self.epoch,
                    revision=revision,
                    orders=tuple(flow.order_of(each, self.epoch) for each in assignments),
                    releases=tuple(flow.release_of(each, self.epoch) for each in tombstones),
                    last=place == len(parts) - 1,
                )
            )
        early, self._early = self._early or (), None
        for change in early:
            self.changed(change)

    def _tell(self, change: Change) -> None:
        match self._readable(change.kind, change.data):
            case Assignment() as assignment:
                self._placements[assignment.instance_id] = assignment.placement_epoch
                self.say(flow.order_of(assignment, self.epoch))
            case Tombstone() as tombstone:
                self.say(flow.release_of(tombstone, self.epoch))

    def _readable(self, kind: type[V], data: bytes) -> V | None:
        """The record; None for one that does not parse, which must not cost the host all the others."""
        try:
            return decode(kind, data)
        except Bug as broken:
            log.error("orders.undecodable", host=self._host, record=kind.__name__, why=broken.message)
            return None
