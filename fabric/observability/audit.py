"""The audit log: every call that changed something, and every call that was denied, in a file that shows tampering.

One JSON object a line. Each line carries the SHA-256 of the line before it, so that a line taken out, changed or put in is found by
`verify`. Cutting lines off the end is found by comparing the last digest with one that was noted elsewhere: `Book.digest`.

Denials can be made by anybody at any rate, so after some a minute only their number is kept: nothing is dropped silently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from fabric.clock import Clock
from fabric.errors import Bug

FIRST: Final = "0" * 64
"""What the first line has in place of a digest."""

DENIED_PER_MINUTE: Final = 600


class Sink(Protocol):
    """Where lines go. Writing must not fail silently."""

    def append(self, line: bytes) -> None:
        """Add one line, with its line end, after all others; where that fails, nothing of it."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written of one call."""

    time_ms: int
    method: str
    principal: str
    project: str
    peer: str
    request_id: str
    target: str
    outcome: str
    count: int = 1


def line(entry: Entry, before: str) -> tuple[bytes, str]:
    """The line of an entry after the line with the digest `before`, and the new digest."""
    fields = {name: getattr(entry, name) for name in Entry.__slots__}
    data = json.dumps({**fields, "before": before}, separators=(",", ":"), sort_keys=True).encode() + b"\n"
    return data, hashlib.sha256(data).hexdigest()


def verify(lines: Iterable[bytes]) -> str:
    """The digest of the last line. Raises Bug naming the first line that does not follow the one before it."""
    before = FIRST
    for number, data in enumerate(lines, start=1):
        try:
            chained = json.loads(data).get("before")
        except (ValueError, AttributeError):
            chained = None
        if chained != before:
            raise Bug(f"line {number} of the audit log does not follow the line before it", line=number)
        before = hashlib.sha256(data).hexdigest()
    return before


class Book:
    """One audit log being written. Writes are small and synchronous: a call is not answered before its line is handed to the system."""

    def __init__(self, sink: Sink, clock: Clock, *, digest: str = FIRST) -> None:
        self._sink = sink
        self._clock = clock
        self.digest = digest
        self._minute = -1
        self._denied = 0
        self._left_out: dict[tuple[str, str], int] = {}

    def write(self, entry: Entry) -> None:
        """Add an entry. What the sink raises is the caller's: of a line that was not written, the next one knows nothing."""
        data, digest = line(entry, self.digest)
        self._sink.append(data)
        self.digest = digest

    def record(
        self,
        *,
        method: str,
        principal: str,
        project: str,
        peer: str,
        request_id: str,
        outcome: str,
        target: str = "",
        is_denial: bool = False,
    ) -> None:
        """Write one call down. `outcome` is `OK` or the reason of its error."""
        now_ms = self._clock.now_ms()
        self._turn(now_ms)
        if is_denial:
            self._denied += 1
            if self._denied > DENIED_PER_MINUTE:
                self._left_out[method, outcome] = self._left_out.get((method, outcome), 0) + 1
                return
        self.write(Entry(now_ms, method, principal, project, peer, request_id, target, outcome))

    def _turn(self, now_ms: int) -> None:
        """At the turn of a minute, write down how many denials were only counted."""
        minute = now_ms // 60_000
        if minute == self._minute:
            return
        self._minute, self._denied = minute, 0
        while self._left_out:
            (method, outcome), count = next(iter(self._left_out.items()))
            self.write(Entry(now_ms, method, "", "", "", "", "", outcome, count))
            del self._left_out[method, outcome]
