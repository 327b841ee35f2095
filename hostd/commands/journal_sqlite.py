"""The journal in SQLite: WAL with synchronous=FULL, so that a row is on the disk when `write` returns (R3).

Every row carries a checksum of its own, because SQLite checks the structure of its pages but not what is in them. A journal
that is missing, unreadable or fails a check is not trusted, and stays so over restarts until a conductor's whole snapshot is in it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from hostd.commands.journal import JournalDamaged, JournalRow, JournalState

_SCHEMA: Final = 2
_COLUMNS: Final = "instance_id, placement_epoch, generation, action_started, action_done, released, made"

_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_IOERR_READ,
        sqlite3.SQLITE_IOERR_SHORT_READ,
        sqlite3.SQLITE_IOERR_CORRUPTFS,
        sqlite3.SQLITE_IOERR_DATA,
    }
)
"""Operational errors that come of what is in the file (a table that is missing, a block that cannot be read); what SQLite itself calls
damaged is none of these."""

_NO_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_CANTOPEN})
"""Operational errors that a full disk may come as."""

_PAGE_BYTES: Final = 4096
"""SQLite's own default."""
_RESERVED_BYTES: Final = 1 << 20
"""Of the file and of its log each: rows of some thousand instances."""
_SPARE_BYTES: Final = 4 * _RESERVED_BYTES
_LEAST_BYTES: Final = 1 << 16
"""Where there is no room for all of it, half will do, and so on down to this."""
_LONGEST_NAME: Final = 64
"""Of a mark. What is longer was written to take room."""

_log = structlog.get_logger(__name__)


def checksum(row: JournalRow) -> int:
    """CRC-32 of the row's fields: for rot and torn pages, not against an adversary (who owns the host anyway)."""
    fields = (
        row.instance_id,
        row.placement_epoch,
        row.generation,
        row.action_started,
        row.action_done,
        int(row.released),
        # Only where it is set: rows of the first schema, which did not know it, keep their checksums.
        *(("made",) if row.made else ()),
    )
    return zlib.crc32("\x1f".join(map(str, fields)).encode())


class SqliteJournal:
    """`Journal` in one file. Not for two processes: the second to open it fails at once.

    Opening it raises sqlite3.OperationalError where it cannot be opened now; only what is damaged is set aside.

    It has room of its own on the disk, so that a host whose disk is full can still be told what to delete: in the file and its log, which
    so need not grow, and in a spare file, which is given up where a daemon cannot begin for want of room.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spare = path.with_name(f"{path.name}.spare")
        self._database: sqlite3.Connection | None = None

    def open(self) -> JournalState:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state = self._sound()
        if not self._reserve() and self._give_up_spare():
            self._reserve()
        self._keep_spare()
        return state

    def _sound(self) -> JournalState:
        try:
            return self._load()
        except (JournalDamaged, sqlite3.DatabaseError) as error:
            self._disconnect()
            if not isinstance(error, sqlite3.OperationalError) or error.sqlite_errorcode in _DAMAGE:
                _log.error("journal.damaged", reason=str(error), set_aside=str(self._set_aside()))
                return self._load()
            # Another daemon has it, or there is no room, no right, no descriptor: what it holds is as sound as it was.
            if error.sqlite_errorcode not in _NO_ROOM or not self._give_up_spare():
                raise
        return self._sound()

    def write_epoch(self, epoch: int) -> None:
        self._execute(
            "INSERT INTO mark (name, value) VALUES ('epoch', ?) "
            "ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
            (epoch,),
        )

    def write(self, row: JournalRow) -> None:
        self._execute(
            f"REPLACE INTO instance ({_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
            (
                row.instance_id,
                row.placement_epoch,
                row.generation,
                row.action_started,
                row.action_done,
                row.released,
                row.made,
                checksum(row),
            ),
        )

    def trust(self) -> None:
        self._execute("REPLACE INTO mark (name, value) VALUES ('trusted', 1)", ())

    def erase(self, instance_id: str) -> None:
        self._execute("DELETE FROM instance WHERE instance_id = ?", (instance_id,))

    def close(self) -> None:
        if self._database is not None:
            self._disconnect()
            # The log has just been taken away, and its room is there for the next one.
            self._keep_spare()

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            raise RuntimeError("the journal is not open")
        return self._database

    def _execute(self, statement: str, values: tuple[str | int, ...]) -> None:
        self._opened().execute(statement, values)

    def _load(self) -> JournalState:
        database = sqlite3.connect(self._path, isolation_level=None, timeout=1.0)
        self._database = database
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        # The log goes into the file, and begins anew, before it is larger than what is reserved for it.
        database.execute(f"PRAGMA wal_autocheckpoint = {_RESERVED_BYTES // 2 // _PAGE_BYTES}")
        schema: int = database.execute("PRAGMA user_version").fetchone()[0]
        if schema == 0:
            self._create(database)
        elif schema == 1:
            self._learn_what_was_made(database)
        elif schema != _SCHEMA:
            raise JournalDamaged(f"schema {schema} is not {_SCHEMA}")
        verdict: str = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise JournalDamaged(verdict)
        rows: dict[str, JournalRow] = {}
        statement = f"SELECT {_COLUMNS}, checksum FROM instance"  # noqa: S608 - constants
        for *fields, released, made, expected in database.execute(statement):
            row = JournalRow(
                instance_id=fields[0],
                placement_epoch=fields[1],
                generation=fields[2],
                action_started=fields[3],
                action_done=fields[4],
                released=bool(released),
                made=bool(made),
            )
            if checksum(row) != expected:
                raise JournalDamaged(f"the row of instance {row.instance_id} fails its checksum")
            rows[row.instance_id] = row
        marks: dict[str, int] = dict(database.execute("SELECT name, value FROM mark"))
        return JournalState(epoch=marks.get("epoch", 0), rows=rows, trusted=bool(marks.get("trusted", 0)))

    def _disconnect(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _reserve(self) -> bool:
        """Have room, as far as there is any; False for none. What was written and deleted is used again before a file grows."""
        is_reserved = any(self._takes(size_bytes) for size_bytes in _halves(_RESERVED_BYTES))
        with contextlib.suppress(sqlite3.OperationalError):
            self._execute("DELETE FROM mark WHERE length(name) > ?", (_LONGEST_NAME,))
            self._execute("PRAGMA wal_checkpoint(PASSIVE)", ())
        return is_reserved

    def _takes(self, size_bytes: int) -> bool:
        try:
            self._execute("REPLACE INTO mark (name, value) VALUES (?, 0)", ("x" * size_bytes,))
        except sqlite3.OperationalError as error:
            _log.warning("journal.no_room", bytes=size_bytes, reason=str(error))
            return False
        return True

    def _keep_spare(self) -> None:
        """Have a spare file, as large as there is room for."""
        if self._spare.exists():
            return
        for size_bytes in _halves(_SPARE_BYTES):
            with contextlib.suppress(OSError):
                _fill(self._spare, size_bytes)
                return

    def _give_up_spare(self) -> bool:
        """Free the room of the spare file; False where there is none."""
        try:
            self._spare.unlink()
        except OSError:
            return False
        _log.warning("journal.spare_used")
        return True

    @staticmethod
    def _create(database: sqlite3.Connection) -> None:
        database.execute("BEGIN IMMEDIATE")
        database.execute(
            "CREATE TABLE instance (instance_id TEXT PRIMARY KEY, placement_epoch INTEGER NOT NULL, "
            "generation INTEGER NOT NULL, action_started INTEGER NOT NULL, action_done INTEGER NOT NULL, "
            "released INTEGER NOT NULL, made INTEGER NOT NULL, checksum INTEGER NOT NULL) STRICT"
        )
        database.execute("CREATE TABLE mark (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT")
        database.execute(f"PRAGMA user_version = {_SCHEMA}")
        database.execute("COMMIT")

    @staticmethod
    def _learn_what_was_made(database: sqlite3.Connection) -> None:
        """From the first schema. That its disks were made will be known again when their guests are next started."""
        database.execute("BEGIN IMMEDIATE")
        database.execute("ALTER TABLE instance ADD COLUMN made INTEGER NOT NULL DEFAULT 0")
        database.execute(f"PRAGMA user_version = {_SCHEMA}")
        database.execute("COMMIT")

    def _set_aside(self) -> Path:
        """Move the damaged files out of the way, never over an earlier damage."""
        number = 1
        while (target := self._path.with_name(f"{self._path.name}.damaged-{number}")).exists():
            number += 1
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}{suffix}", f"{target}{suffix}")  # noqa: PTH105 - suffixed names
        return target


def _halves(most_bytes: int) -> Iterator[int]:
    """It, its half, and so on."""
    while most_bytes >= _LEAST_BYTES:
        yield most_bytes
        most_bytes //= 2


def _fill(path: Path, size_bytes: int) -> None:
    """Make a file that has its room on the disk, or none. Raises OSError."""
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        except OSError:
            path.unlink()
            raise
