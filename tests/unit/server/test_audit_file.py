"""The audit log's file: what fails now is tried again, and nothing that was written is forgotten."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from fabric.errors import TooMuch
from fabric.server.audit_file import SYNC_S, AuditFile
from tests.unit.store.virtual import run

T = TypeVar("T")


class Busy:
    """Workers with too much to do, for a while."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.done = 0

    async def run(self, work: Callable[[], T]) -> T:
        if self.refusals:
            self.refusals -= 1
            raise TooMuch("too much of this is being asked at once")
        self.done += 1
        return work()


def test_a_line_that_could_not_be_forced_to_disk_is_tried_again(tmp_path: Path) -> None:
    workers = Busy(refusals=2)

    async def world() -> None:
        book = AuditFile(tmp_path / "audit.jsonl")
        book.append(b"{}\n")
        syncing = asyncio.create_task(book.run(workers))
        await asyncio.sleep(4.5 * SYNC_S)
        assert not syncing.done()
        syncing.cancel()
        await asyncio.gather(syncing, return_exceptions=True)
        book.close()

    run(world())

    assert workers.done == 1


def test_half_a_line_is_taken_back(tmp_path: Path) -> None:
    """What a full disk took of a line ran into the next one, and both were lost to whoever reads the log."""
    path = tmp_path / "audit.jsonl"
    book = AuditFile(path)
    book.append(b"{1}\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, limits[1]))  # two bytes more: as a disk with no more room
    try:
        with pytest.raises(OSError, match="File too large"):
            book.append(b"{2}\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    book.append(b"{3}\n")
    book.close()

    assert path.read_bytes() == b"{1}\n{3}\n"
