"""Out of what watch streams bring, the one true sequence: every event once, in order. Values only.

Three things are straightened here that a stream may do. An answer too large for one message comes in fragments. After a
reconnect, and by faults of etcd before 3.4.25, events come again. And an answer's header may be ahead of its events while
the server catches up, so a place to resume is only ever taken from events, or from marks that are in step.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

from fabric.store.base import Batch, Event


class Sequence:
    """What a watcher has been given so far."""

    def __init__(self, after: int) -> None:
        self._revision = after
        # Keys seen at `_revision`. None: everything up to and including it is known to have been seen.
        self._keys: set[str] | None = None
        self._parts: list[Event] = []

    @property
    def revision(self) -> int:
        """Everything up to here has been handed on."""
        return self._revision

    @property
    def resume_at(self) -> int:
        """The first revision to ask a new stream for.

        One revision is asked for again and dropped. Not for safety of ours: etcd before 3.5.18 forgets a deletion made
        exactly at the compacted revision and still serves a watch that starts there. Asking one earlier makes that watch
        come back as compacted.
        """
        return max(1, self._revision)

    def begin_stream(self) -> None:
        """A new stream: parts of an answer the old one did not finish will come again."""
        self._parts.clear()

    def take(self, events: Listing[Event], *, is_fragment: bool) -> Batch | None:
        """One answer's events. Returns what is new of it, in whole revisions, once its last fragment is there."""
        if is_fragment or self._parts:
            self._parts.extend(events)
            if is_fragment:
                return None
            events, self._parts = tuple(self._parts), []
        new = [event for event in events if self._is_new(event)]
        if not new:
            return None
        last = new[-1].mod_revision
        keys = {event.key for event in new if event.mod_revision == last}
        if last == self._revision and self._keys is not None:
            self._keys |= keys
        else:
            self._revision, self._keys = last, keys
        return Batch(last, tuple(new))

    def mark(self, revision: int) -> Batch | None:
        """A mark that is in step: nothing up to `revision` is still to come. Returns a batch if that is news."""
        if self._parts or revision <= self._revision:
            return None
        self._revision, self._keys = revision, None
        return Batch(revision)

    def _is_new(self, event: Event) -> bool:
        if event.mod_revision != self._revision:
            return event.mod_revision > self._revision
        # A key changes once per revision, so a key not seen at this one is the rest of a revision that came in two
        # answers. etcd promises not to; losing it silently would be the worse way to find out.
        return self._keys is not None and event.key not in self._keys
