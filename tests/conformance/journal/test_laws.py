"""Every journal keeps every law; and what only a file can suffer."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hostd.commands.journal import Journal, JournalRow, JournalState
from hostd.commands.journal_memory import JournalMemory, MemoryJournal
from hostd.commands.journal_sqlite import SqliteJournal
from tests.conformance.guests import an_id

Make = Callable[[], Journal]
Law = Callable[[Make], None]

ROW = JournalRow(instance_id=an_id("one"), placement_epoch=3, generation=7, action_started=2, action_done=1)
TOMB = JournalRow(instance_id=an_id("two"), placement_epoch=9, released=True)
MADE = JournalRow(instance_id=an_id("three"), placement_epoch=1, generation=1, made=True)


def reopened(journal: Journal) -> JournalState:
    """What a journal holds for the next daemon."""
    state = journal.open()
    journal.close()
    return state


def a_new_journal_is_empty_and_not_trusted(make: Make) -> None:
    """A lost disk looks just like a new host: neither may act before it was told."""
    journal = make()

    state = journal.open()
    assert (state.epoch, dict(state.rows), state.trusted) == (0, {}, False)
    journal.close()


def what_was_written_is_there_after_a_restart(make: Make) -> None:
    journal = make()
    journal.open()
    journal.write_epoch(4)
    journal.write(ROW)
    journal.write(TOMB)
    journal.write(MADE)
    journal.close()

    state = reopened(make())
    assert state.epoch == 4
    assert state.rows == {ROW.instance_id: ROW, TOMB.instance_id: TOMB, MADE.instance_id: MADE}


def trust_lasts(make: Make) -> None:
    journal = make()
    journal.open()
    journal.trust()
    journal.close()

    assert reopened(make()).trusted


def a_row_is_replaced_whole_and_erased(make: Make) -> None:
    journal = make()
    journal.open()
    journal.write(ROW)
    later = replace(ROW, generation=8, action_done=2)
    journal.write(later)
    journal.write(TOMB)
    journal.erase(TOMB.instance_id)
    journal.erase(TOMB.instance_id)
    journal.close()

    assert reopened(make()).rows == {ROW.instance_id: later}


def the_epoch_never_falls(make: Make) -> None:
    journal = make()
    journal.open()
    journal.write_epoch(7)
    journal.write_epoch(5)
    journal.close()

    assert reopened(make()).epoch == 7


def an_epoch_or_a_part_of_a_snapshot_makes_no_trust(make: Make) -> None:
    journal = make()
    journal.open()
    journal.write_epoch(7)
    journal.write(ROW)
    journal.close()

    assert not reopened(make()).trusted


LAWS: tuple[Law, ...] = (
    a_new_journal_is_empty_and_not_trusted,
    what_was_written_is_there_after_a_restart,
    a_row_is_replaced_whole_and_erased,
    the_epoch_never_falls,
    an_epoch_or_a_part_of_a_snapshot_makes_no_trust,
    trust_lasts,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "hostd.db"


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, path: Path) -> Make:
    if request.param == "sqlite":
        return lambda: SqliteJournal(path)
    memory = JournalMemory()
    return lambda: MemoryJournal(memory)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_journals(law: Law, make: Make) -> None:
    law(make)


def written(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.open()
    journal.write_epoch(4)
    journal.write(ROW)
    journal.close()


def flip_a_value(path: Path) -> None:
    """What rots without the database's noticing: a value in a sound page."""
    database = sqlite3.connect(path)
    database.execute("UPDATE instance SET generation = 6")
    database.commit()
    database.close()


def garble_a_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:6000] = b"\xa5" * 1904
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def garble_the_head(path: Path) -> None:
    path.write_bytes(b"not a database at all" + path.read_bytes()[21:])


def come_from_the_future(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.commit()
    database.close()


@pytest.mark.parametrize(
    "damage",
    [flip_a_value, garble_a_page, cut_off, garble_the_head, come_from_the_future],
    ids=lambda do: do.__name__,
)
def test_a_damaged_journal_is_set_aside_and_nothing_trusted(
    path: Path, damage: Callable[[Path], None]
) -> None:
    written(path)
    damage(path)
    damaged = path.read_bytes()

    journal = SqliteJournal(path)
    state = journal.open()

    assert (dict(state.rows), state.trusted) == ({}, False)
    assert path.with_name("hostd.db.damaged-1").read_bytes() == damaged
    journal.write(TOMB)
    journal.trust()
    journal.close()
    again = reopened(SqliteJournal(path))
    assert (dict(again.rows), again.trusted) == ({TOMB.instance_id: TOMB}, True)


def test_a_journal_of_the_first_schema_is_taken_over(path: Path) -> None:
    written(path)
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE instance DROP COLUMN made")
    database.execute("INSERT INTO mark (name, value) VALUES ('trusted', 1)")
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()

    state = reopened(SqliteJournal(path))

    assert (state.epoch, dict(state.rows), state.trusted) == (4, {ROW.instance_id: ROW}, True)


def test_one_damage_never_overwrites_another(path: Path) -> None:
    for number in (1, 2, 3):
        written(path)
        flip_a_value(path)
        journal = SqliteJournal(path)
        journal.open()
        journal.close()
        assert path.with_name(f"hostd.db.damaged-{number}").exists()


def test_distrust_lasts_over_a_restart(path: Path) -> None:
    """A crash between finding the damage and hearing the snapshot must not make an empty journal look sound."""
    written(path)
    flip_a_value(path)
    for _ in range(2):
        journal = SqliteJournal(path)
        assert not journal.open().trusted
        journal.close()


def test_a_row_is_on_the_disk_when_write_returns(path: Path) -> None:
    """The writer is killed right after: what it wrote is there, and its lock is not."""
    program = (
        "import os, pathlib, sys\n"
        "from hostd.commands.journal import JournalRow\n"
        "from hostd.commands.journal_sqlite import SqliteJournal\n"
        "journal = SqliteJournal(pathlib.Path(sys.argv[1]))\n"
        "journal.open()\n"
        "journal.write(JournalRow(instance_id='x', placement_epoch=5))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run((sys.executable, "-c", program, str(path)), check=False)

    assert reopened(SqliteJournal(path)).rows["x"].placement_epoch == 5


def test_a_journal_that_cannot_be_opened_for_now_is_not_taken_for_damaged(path: Path) -> None:
    """A disk without room (or a process without descriptors) fails the opening of a sound journal. It was set aside for that, and what
    this host has promised with it: tombstones, what was made, which action is under way.
    """
    written(path)
    (wal := path.with_name(f"{path.name}-wal")).mkdir()

    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        SqliteJournal(path).open()
    assert not list(path.parent.glob("*.damaged-*"))
    wal.rmdir()
    assert reopened(SqliteJournal(path)).rows == {ROW.instance_id: ROW}


def test_a_disk_without_room_is_no_damage(path: Path) -> None:
    """A file of the first schema is changed when it is opened, which takes room."""
    written(path)
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE instance DROP COLUMN made")
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()
    program = (
        "import pathlib, resource, sqlite3, sys\n"
        "from hostd.commands.journal_sqlite import SqliteJournal\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))\n"
        "try:\n"
        "    SqliteJournal(pathlib.Path(sys.argv[1])).open()\n"
        "except sqlite3.OperationalError as failed:\n"
        "    print(failed.sqlite_errorname)\n"
    )

    ended = subprocess.run(
        (sys.executable, "-c", program, str(path)), check=True, capture_output=True, text=True
    )

    assert "SQLITE_IOERR_WRITE" in ended.stdout
    assert not list(path.parent.glob("*.damaged-*"))


def test_two_daemons_cannot_have_one_journal(path: Path) -> None:
    first = SqliteJournal(path)
    first.open()

    with pytest.raises(sqlite3.OperationalError, match="locked"):
        reopened(SqliteJournal(path))
    assert not list(path.parent.glob("*.damaged-*"))
    first.close()
