"""The journal on a disk that is full to the last byte, root's share too: what a host must be told goes on being written down."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.commands.journal import JournalRow
from hostd.commands.journal_sqlite import SqliteJournal

pytestmark = pytest.mark.owns_machine

DISK_BYTES = 32 << 20
WRITES = 2_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)), check=True)
    yield folder
    subprocess.run(("umount", "--lazy", str(folder)), check=True)


def filled(disk: Path, name: str = "guest.qcow2") -> None:
    """Let a guest write until there is no room for a byte more."""
    with (disk / name).open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\1" * 4096):
            pass


def row(number: int) -> JournalRow:
    return JournalRow(
        instance_id=f"00000000-0000-4000-8000-{number:012d}",
        placement_epoch=1,
        generation=number,
        action_started=0,
        action_done=0,
        released=True,
        made=True,
    )


def test_what_is_promised_on_a_full_disk_is_written(disk: Path) -> None:
    journal = SqliteJournal(disk / "journal")
    journal.open()
    filled(disk)

    for number in range(WRITES):
        journal.write_epoch(number)
        journal.write(row(number))

    journal.close()
    again = SqliteJournal(disk / "journal")
    state = again.open()
    again.close()
    assert state.epoch == WRITES - 1
    assert len(state.rows) == WRITES


def test_a_daemon_begins_on_a_full_disk_time_and_again(disk: Path) -> None:
    """A log is taken away with the last connection, so who begins needs room for another one."""
    for number in range(3):
        journal = SqliteJournal(disk / "journal")
        journal.open()
        filled(disk, f"guest-{number}.qcow2")
        journal.write(row(number))
        journal.close()
        filled(disk, f"guest-{number}.qcow2")

    last = SqliteJournal(disk / "journal")
    state = last.open()
    last.close()
    assert len(state.rows) == 3


def test_a_journal_without_room_for_more_is_as_good_as_it_was(disk: Path) -> None:
    journal = SqliteJournal(disk / "journal")
    journal.open()
    journal.write(row(1))
    journal.close()
    (disk / "journal.spare").unlink()
    with (disk / "guest.qcow2").open("wb") as file:
        file.truncate(0)
    filled(disk)
    with (disk / "guest.qcow2").open("r+b") as file:
        file.truncate((disk / "guest.qcow2").stat().st_size - (256 << 10))

    again = SqliteJournal(disk / "journal")
    state = again.open()
    again.write_epoch(7)
    again.close()

    assert list(state.rows.values()) == [row(1)]
