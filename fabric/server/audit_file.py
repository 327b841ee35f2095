"""The audit log as a file: appended to, handed to the system with every line, forced to disk every second."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import structlog

from fabric.errors import TooMuch
from fabric.observability.audit import FIRST
from fabric.workers import Workers

log = structlog.get_logger()

SYNC_S = 1.0


class AuditFile:
    """One file, written by one process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._is_synced = True
        self.digest = self._last_digest()
        """The digest of the last line: where the chain goes on."""

    def append(self, line: bytes) -> None:
        before = os.fstat(self._descriptor).st_size
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            # A full disk takes some of it: half a line would run into the next one.
            os.ftruncate(self._descriptor, before)
            raise
        self._is_synced = False

    async def run(self, workers: Workers) -> None:
        """Force what was written to disk, until cancelled."""
        while True:
            await asyncio.sleep(SYNC_S)
            if not self._is_synced:
                self._is_synced = True
                try:
                    await workers.run(self._sync)
                except (TooMuch, OSError) as failed:
                    # Too much else to do, or a disk in trouble: nothing is given up, the next second tries again.
                    self._is_synced = False
                    log.error("audit.not_synced", error=type(failed).__name__)

    def close(self) -> None:
        """Force everything to disk and let go of the file."""
        self._sync()
        os.close(self._descriptor)

    def _sync(self) -> None:
        os.fdatasync(self._descriptor)

    def _last_digest(self) -> str:
        size = os.fstat(self._descriptor).st_size
        lines = _tail(self._descriptor, size)
        if lines and not lines[-1].endswith(b"\n"):
            # Cut off by a crash while it was written: its call was never answered.
            torn = lines.pop()
            os.ftruncate(self._descriptor, size - len(torn))
            log.warning("audit.torn_line", removed_bytes=len(torn))
        return hashlib.sha256(lines[-1]).hexdigest() if lines else FIRST


def _tail(descriptor: int, size: int) -> list[bytes]:
    """The last lines of a file: at least two, where it has them."""
    length = 4096
    while True:
        begin = max(0, size - length)
        lines = os.pread(descriptor, size - begin, begin).splitlines(keepends=True)
        if begin == 0:
            return lines
        if len(lines) > 2:
            return lines[1:]  # the first may have begun before
        length *= 2
