from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.clock import Clock, SystemClock
from fabric.errors import InvalidRequest, Reason, TooMuch
from fabric.ids import RandomIds
from fabric.images.blobs import PIECE_BYTES, FileBlobs
from fabric.images.core.inspect import ImageLimits, Inspection
from fabric.images.memory import MemoryBlobs
from fabric.images.service import receive, sweep
from fabric.model.image import ImageFormat
from fabric.workers import Inline
from tests.unit.images.evil_images import EVIL, GOOD, disk, qcow2

T = TypeVar("T")

LIMITS = ImageLimits()
DISK_SHA256 = hashlib.sha256(disk()).hexdigest()


def _inspect(
    declared: ImageFormat, data: bytes, *, piece: int = 1 << 20, limits: ImageLimits = LIMITS
) -> int:
    inspection = Inspection(declared, limits)
    for begin in range(0, len(data), piece):
        inspection.feed(data[begin : begin + piece])
    return inspection.finish().virtual_size_bytes


def test_the_corpus_is_large_enough() -> None:
    assert len(EVIL) >= 40


@pytest.mark.parametrize("name", EVIL)
def test_an_evil_image_is_refused_with_its_reason(name: str) -> None:
    declared, data = EVIL[name]

    with pytest.raises(InvalidRequest) as refused:
        _inspect(declared, data)

    assert refused.value.reason is Reason.IMAGE_REJECTED
    assert refused.value.field == "image"


@pytest.mark.parametrize("name", EVIL)
def test_no_cutting_into_pieces_gets_an_evil_image_past(name: str) -> None:
    declared, data = EVIL[name]

    with pytest.raises(InvalidRequest):
        _inspect(declared, data, piece=4093)


@pytest.mark.parametrize("name", GOOD)
def test_a_plain_image_is_accepted_with_the_size_of_its_disk(name: str) -> None:
    declared, data, size = GOOD[name]

    assert _inspect(declared, data) == size


@given(st.binary(max_size=2048))
def test_whatever_follows_the_magic_is_accepted_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        size = _inspect(ImageFormat.QCOW2, b"QFI\xfb" + data)
    except InvalidRequest:
        return
    assert 0 < size <= LIMITS.max_virtual_bytes


@given(st.integers(0, 119), st.binary(min_size=1, max_size=8))
def test_a_damaged_header_never_names_another_file(offset: int, damage: bytes) -> None:
    data = bytearray(qcow2())
    data[offset : offset + len(damage)] = damage

    try:
        _inspect(ImageFormat.QCOW2, bytes(data))
    except InvalidRequest:
        return
    assert data[8:20] == bytes(12)
    assert not data[79] & 0b111


def test_an_image_larger_than_allowed_is_cut_off_at_once() -> None:
    inspection = Inspection(ImageFormat.RAW, ImageLimits(max_bytes=1000))

    inspection.feed(bytes(1000))

    with pytest.raises(TooMuch):
        inspection.feed(b"x")


def test_a_refusal_comes_as_soon_as_the_header_is_there() -> None:
    inspection = Inspection(ImageFormat.RAW, LIMITS)

    with pytest.raises(InvalidRequest):
        inspection.feed(qcow2(clusters=100)[:200_000])


# ------------------------------------------------------------------------------------------ storing


async def _pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


def _blobs(folder: Path, *, total: int = 1 << 30, uploads: int = 2, clock: Clock | None = None) -> FileBlobs:
    return FileBlobs(
        folder,
        workers=Inline(),
        clock=clock or SystemClock(),
        ids=RandomIds(),
        total_bytes=total,
        uploads=uploads,
    )


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_an_accepted_image_is_stored_under_its_digest(tmp_path: Path) -> None:
    blobs, data = _blobs(tmp_path), disk()

    received = await receive(
        blobs,
        _pieces(data[:1000], data[1000:]),
        declared=ImageFormat.RAW,
        expected_sha256=DISK_SHA256,
        limits=LIMITS,
        owner="p",
    )

    assert received.sha256 == hashlib.sha256(data).hexdigest()
    assert b"".join([piece async for piece in blobs.read(received.sha256)]) == data
    assert b"".join([piece async for piece in blobs.read(received.sha256, 1_000_000)]) == data[1_000_000:]
    assert len(_files(tmp_path)) == 1


async def test_nobody_else_on_the_machine_can_read_an_image(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        await receive(
            _blobs(tmp_path / "blobs"),
            _pieces(disk()),
            declared=ImageFormat.RAW,
            expected_sha256=DISK_SHA256,
            limits=LIMITS,
            owner="p",
        )
    finally:
        os.umask(before)

    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


async def test_nothing_is_left_of_a_refused_image(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        await receive(
            _blobs(tmp_path),
            _pieces(qcow2()),
            declared=ImageFormat.RAW,
            expected_sha256=DISK_SHA256,
            limits=LIMITS,
            owner="p",
        )

    assert _files(tmp_path) == []


async def test_bytes_that_changed_on_their_way_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await receive(
            _blobs(tmp_path),
            _pieces(disk()),
            declared=ImageFormat.RAW,
            expected_sha256="0" * 64,
            limits=LIMITS,
            owner="p",
        )

    assert refused.value.field == "image.sha256"
    assert _files(tmp_path) == []


async def test_nothing_is_left_of_an_upload_that_is_given_up(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield disk()
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await receive(
            _blobs(tmp_path),
            broken(),
            declared=ImageFormat.RAW,
            expected_sha256=DISK_SHA256,
            limits=LIMITS,
            owner="p",
        )

    assert _files(tmp_path) == []


async def test_a_full_store_says_so_and_has_room_again_afterwards(tmp_path: Path) -> None:
    blobs = _blobs(tmp_path, total=len(disk()) + 10)

    with pytest.raises(TooMuch):
        await receive(
            blobs,
            _pieces(disk(), disk()),
            declared=ImageFormat.RAW,
            expected_sha256=DISK_SHA256,
            limits=LIMITS,
            owner="p",
        )
    received = await receive(
        blobs,
        _pieces(disk()),
        declared=ImageFormat.RAW,
        expected_sha256=DISK_SHA256,
        limits=LIMITS,
        owner="p",
    )

    assert received.size_bytes == len(disk())


async def test_too_many_uploads_at_once_are_refused(tmp_path: Path) -> None:
    blobs = _blobs(tmp_path, uploads=1)
    first = await blobs.begin("p")

    with pytest.raises(TooMuch):
        await blobs.begin("q")
    await first.discard()

    await (await blobs.begin("q")).discard()


async def test_servers_that_share_a_folder_know_what_the_others_have_freed(tmp_path: Path) -> None:
    """Each counted what it had put there, and whichever swept a blob away gave it back in its own count: with two of them the store was
    full for one, sooner or later, with nothing in it.
    """
    one, other = (_blobs(tmp_path, total=100) for _ in range(2))
    upload = await one.begin("p")
    await upload.write(b"x" * 60)
    await upload.keep("ab" * 32)
    assert await other.delete("ab" * 32, older_than_s=0)

    await sweep(one, _no_blobs)

    again = await one.begin("p")
    await again.write(b"y" * 60)
    await sweep(one, _no_blobs)
    with pytest.raises(TooMuch):
        await again.write(b"y" * 60)
    await again.discard()


async def test_a_file_younger_than_the_clock_is_new_and_no_younger(tmp_path: Path) -> None:
    """The clock counts milliseconds, file systems less: a blob put in this very millisecond was of a negative age, and what asked for blobs
    of any age passed over it. CI met it once.
    """
    blobs = _blobs(tmp_path, clock=_Clock())
    upload = await blobs.begin("p")
    await upload.keep("ab" * 32)

    assert [blob.age_s for blob in await blobs.list()] == [0]
    assert await blobs.delete("ab" * 32, older_than_s=0)
    assert _files(tmp_path) == []

    left = await blobs.begin("p")
    assert await blobs.clean(older_than_s=0) == 1
    await left.discard()


async def test_bytes_that_are_put_while_the_same_are_swept_away_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep looked how old a file was and removed what was there then, which somebody had just put: their image had no bytes, and nobody
    was told.
    """
    clock, sha256 = _Clock(), "ab" * 32
    blobs = _blobs(tmp_path, clock=clock)
    place = tmp_path / "ab" / sha256
    await (await blobs.begin("p")).keep(sha256)
    os.utime(place, (0, 0))
    clock.ms = 8_000_000
    new = tmp_path / "new"
    new.write_bytes(b"the same")
    os.utime(new, (8_000, 8_000))
    stat = Path.stat

    def look(path: Path, **options: Any) -> os.stat_result:
        found = stat(path, **options)
        if path == place and new.exists():
            new.replace(place)
        return found

    # The other server comes at one instant in the middle of a call, where no fake of ours is asked.
    monkeypatch.setattr(Path, "stat", look)

    assert not await blobs.delete(sha256, older_than_s=7200)
    assert b"".join([piece async for piece in blobs.read(sha256)]) == b"the same"
    assert _files(tmp_path) == [place]


async def test_what_a_sweep_has_in_its_hands_is_still_read(tmp_path: Path) -> None:
    """For an instant a blob is under another name, and whoever wanted it then was told that there was none."""
    blobs, sha256 = _blobs(tmp_path), "ab" * 32
    upload = await blobs.begin("p")
    await upload.write(b"some")
    await upload.keep(sha256)
    aside = (tmp_path / "ab" / sha256).rename(tmp_path / "partial" / "aside")
    asyncio.get_running_loop().call_later(0.005, aside.rename, tmp_path / "ab" / sha256)

    assert b"".join([piece async for piece in blobs.read(sha256)]) == b"some"


class _Held(Inline):
    """Workers that are at something for as long as a test likes, whoever hangs up, and that are full then."""

    def __init__(self) -> None:
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.is_full = False
        self.failed: list[Exception] = []

    async def run(self, work: Callable[[], T]) -> T:
        if self.is_full:
            raise TooMuch("too much of this is being asked at once", retry_after_s=1.0)
        return await asyncio.shield(asyncio.ensure_future(self._in_time(work)))

    async def _in_time(self, work: Callable[[], T]) -> T:
        await self.may_go_on.wait()
        try:
            return work()
        except Exception as error:
            self.failed.append(error)
            raise


def _is_open(path: Path) -> bool:
    links = list(Path("/proc/self/fd").iterdir())
    return str(path) in {str(link.readlink()) for link in links if link.is_symlink()}


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("hang_ups", [1, 2])
async def test_hanging_up_on_a_download_leaves_its_file_to_whoever_reads_it(
    tmp_path: Path, *, is_full: bool, hang_ups: int
) -> None:
    """The file was closed on the event loop, which waits for the reader's lock: whoever hung up while the disk was slow stopped the server
    until it was done.
    """
    workers, sha256 = _Held(), "ab" * 32
    blobs = FileBlobs(
        tmp_path, workers=workers, clock=SystemClock(), ids=RandomIds(), total_bytes=1 << 30, uploads=1
    )
    upload = await blobs.begin("p")
    await upload.write(b"x" * (2 * PIECE_BYTES))
    await upload.keep(sha256)
    pieces = blobs.read(sha256)
    await anext(pieces)
    workers.may_go_on.clear()
    reading = asyncio.ensure_future(anext(pieces))
    await _turns()
    for _ in range(hang_ups):
        reading.cancel()
        await _turns()
    assert _is_open(tmp_path / "ab" / sha256)
    workers.is_full = is_full

    workers.may_go_on.set()

    await asyncio.wait({reading})
    await _turns()
    assert workers.failed == []
    assert not _is_open(tmp_path / "ab" / sha256)


async def _turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def _no_blobs() -> frozenset[str]:
    return frozenset()


async def test_what_is_given_up_is_removed_however_busy_the_workers_are(tmp_path: Path) -> None:
    """The removal was refused with everything else that was too much, and the bytes counted as free all the same: who kept the workers busy
    with downloads and broke uploads off filled the disk.
    """

    class Busy(Inline):
        is_full = False

        async def run(self, work: Callable[[], T]) -> T:
            if self.is_full:
                raise TooMuch("too much of this is being asked at once", retry_after_s=1.0)
            return await super().run(work)

    workers = Busy()
    blobs = FileBlobs(
        tmp_path, workers=workers, clock=SystemClock(), ids=RandomIds(), total_bytes=1 << 30, uploads=1
    )
    upload = await blobs.begin("p")
    await upload.write(b"some")
    workers.is_full = True
    await upload.discard()
    workers.is_full = False

    assert _files(tmp_path) == []
    await (await blobs.begin("p")).discard()


async def test_one_project_cannot_keep_all_others_from_uploading(tmp_path: Path) -> None:
    """Four uploads may be under way at a server, and each may last an hour: one project that began four and sent nothing kept everybody
    from making images, hosts with snapshots among them.
    """
    blobs = _blobs(tmp_path, uploads=4)
    several = [await blobs.begin("p"), await blobs.begin("p")]

    with pytest.raises(TooMuch, match="2 uploads"):
        await blobs.begin("p")
    other = await blobs.begin("q")
    await several.pop().discard()

    for upload in (await blobs.begin("p"), other, *several):
        await upload.discard()


class _Clock:
    def __init__(self) -> None:
        self.ms = 0

    def now_ms(self) -> int:
        return self.ms

    def boot_s(self) -> float:
        return self.ms / 1000


async def test_a_sweep_takes_what_is_old_and_nobody_names() -> None:
    clock = _Clock()
    blobs = MemoryBlobs(clock)
    for name in ("a" * 64, "b" * 64):
        blobs.put(name, b"x")
    clock.ms = 8_000_000
    blobs.put("c" * 64, b"x")

    async def used() -> frozenset[str]:
        return frozenset({"b" * 64})

    assert await sweep(blobs, used) == 1
    assert {blob.sha256 for blob in await blobs.list()} == {"b" * 64, "c" * 64}
