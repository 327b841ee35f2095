"""Lists of records as far as they parse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import structlog

from fabric.errors import Bug
from fabric.store.base import Snapshot
from fabric.store.codec import decode

log = structlog.get_logger()

V = TypeVar("V")


def parsed(kind: type[V], listed: Snapshot) -> Iterator[tuple[str, V]]:
    """Everything that a list has read, by key. One that does not parse is left out, and said in the log: it must hold up no other."""
    for key, entry in listed.entries.items():
        try:
            value = decode(kind, entry.value)
        except Bug as broken:
            log.error("record.undecodable", key=key, why=broken.message)
        else:
            yield key, value
