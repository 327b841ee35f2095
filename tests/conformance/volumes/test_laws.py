"""Every driver of volumes keeps every law; the rest is what only files have."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fabric.deadlines import within
from fabric.model.volume import SHARED_MARK, GuestVolume
from hostd.core.faults import FaultCode
from hostd.driver.base import DiskFile
from hostd.driver.fake import INSTANT, FakeMachine, FakeShelf
from hostd.volumes.absent import NOT_SHARED
from hostd.volumes.base import VolumeError, Volumes
from hostd.volumes.fake import FakeVolumes
from hostd.volumes.files import FileVolumes
from hostd.volumes.shared import SharedVolumes
from tests.conformance.volumes.laws import LAWS, ONE, Law

GIB = 1 << 30
MISSING = [name for name in ("qemu-img", "prlimit", "setpriv") if shutil.which(name) is None]
needs_programs = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")


class FakeRig:
    def __init__(self) -> None:
        self.machine = FakeMachine("fake-1", delays=INSTANT)
        self.volumes: Volumes = FakeVolumes(self.machine)

    def another(self) -> Volumes:
        return FakeVolumes(self.machine)

    def size_gib(self, volume_id: str) -> int:
        return self.machine.volumes[volume_id]

    def lose(self, volume_id: str) -> None:
        self.machine.volumes[volume_id] = -1

    def image(self, content: bytes, size_gib: int = 0) -> DiskFile:
        name = content.hex()
        self.machine.images[name] = size_gib * GIB or len(content)
        self.machine.image_data[name] = content
        return DiskFile(path=f"/fake/cache/{name}", format="raw", serial="", readonly=True)

    def begins_with(self, volume_id: str, content: bytes) -> bool:
        return self.machine.volume_data[volume_id].startswith(content)


class ShelfRig(FakeRig):
    """Those of a directory that simulated machines share: another daemon is another machine's."""

    def __init__(self) -> None:
        self.shelf = FakeShelf()
        self.machine = FakeMachine("fake-1", delays=INSTANT)
        self.machine.share("pool", self.shelf)
        self.volumes = FakeVolumes(self.machine, "pool")

    def another(self) -> Volumes:
        machine = FakeMachine("fake-2", delays=INSTANT, images=self.machine.images)
        machine.share("pool", self.shelf)
        return FakeVolumes(machine, "pool")

    def size_gib(self, volume_id: str) -> int:
        return self.shelf.sizes[volume_id]

    def lose(self, volume_id: str) -> None:
        self.shelf.sizes[volume_id] = -1

    def begins_with(self, volume_id: str, content: bytes) -> bool:
        return self.shelf.data[volume_id].startswith(content)


class FileRig:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.volumes: Volumes = self.another()

    def another(self) -> Volumes:
        return FileVolumes(self.root)

    def size_gib(self, volume_id: str) -> int:
        return Path(self.volumes.path(volume_id)).stat().st_size // GIB

    def lose(self, volume_id: str) -> None:
        Path(self.volumes.path(volume_id)).unlink()

    def image(self, content: bytes, size_gib: int = 0) -> DiskFile:
        path = self.root.with_name(f"{content.hex()}.raw")
        path.write_bytes(content)
        os.truncate(path, size_gib * GIB or 1 << 20)
        return DiskFile(path=str(path), format="raw", serial="", readonly=True)

    def begins_with(self, volume_id: str, content: bytes) -> bool:
        with Path(self.volumes.path(volume_id)).open("rb") as file:
            return file.read(len(content)) == content


class SharedRig(FileRig):
    def __init__(self, root: Path) -> None:
        root.mkdir()
        (root / SHARED_MARK).touch()
        super().__init__(root)

    def another(self) -> Volumes:
        return SharedVolumes(self.root)


each_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)


@each_law
async def test_fake_volumes(law: Law) -> None:
    await law(FakeRig())


@each_law
async def test_fake_volumes_that_are_shared(law: Law) -> None:
    await law(ShelfRig())


async def test_a_directory_that_is_not_shared_here_is_out_of_reach_and_says_so() -> None:
    assert not await NOT_SHARED.is_unmade(ONE.id)
    for act in (
        NOT_SHARED.ensure(ONE, None),
        NOT_SHARED.remove(ONE.id),
        NOT_SHARED.held(),
        NOT_SHARED.grow(ONE.id, 1),
    ):
        with pytest.raises(VolumeError) as refused:
            await act
        assert refused.value.code == FaultCode.VOLUME_UNREACHABLE
    with pytest.raises(VolumeError):
        NOT_SHARED.path(ONE.id)


@needs_programs
@each_law
async def test_files_on_the_host(law: Law, tmp_path: Path) -> None:
    await law(FileRig(tmp_path / "volumes"))


@needs_programs
@each_law
async def test_a_shared_directory(law: Law, tmp_path: Path) -> None:
    await law(SharedRig(tmp_path / "volumes"))


async def test_a_volume_takes_no_room_before_it_is_written_to(tmp_path: Path) -> None:
    disk = await FileVolumes(tmp_path).ensure(ONE, None)

    assert Path(disk.path).stat().st_blocks * 512 < 1 << 20


async def test_a_volume_that_could_never_fit_is_refused(tmp_path: Path) -> None:
    volumes = FileVolumes(tmp_path)

    with pytest.raises(VolumeError) as refused:
        await volumes.ensure(GuestVolume(id=ONE.id, size_gib=1 << 24), None)

    assert refused.value.code == FaultCode.DISK_FULL
    assert (await volumes.ensure(ONE, None)).serial == ONE.serial


async def test_a_volume_is_readable_to_its_guest_alone(tmp_path: Path) -> None:
    volumes = FileVolumes(tmp_path)
    mine, next_one = os.geteuid(), os.geteuid() or 1_900_000_007

    for owner in (mine, next_one):
        path = Path((await volumes.ensure(ONE, owner)).path)
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (owner, 0o600)


async def test_what_a_guest_writes_to_its_beginning_makes_it_no_other_kind_of_disk(tmp_path: Path) -> None:
    volumes = FileVolumes(tmp_path)
    first = await volumes.ensure(ONE, None)
    overwrite(Path(first.path), b"QFI\xfb\x00\x00\x00\x03")

    assert await volumes.ensure(ONE, None) == first


def overwrite(path: Path, beginning: bytes) -> None:
    with path.open("r+b") as file:
        file.write(beginning)


async def test_a_directory_that_is_not_mounted_is_not_an_empty_one(tmp_path: Path) -> None:
    volumes = SharedVolumes(tmp_path)
    assert not await volumes.is_unmade(ONE.id)

    for act in (volumes.ensure(ONE, None), volumes.remove(ONE.id), volumes.held()):
        with pytest.raises(VolumeError) as refused:
            await act
        assert refused.value.code == FaultCode.VOLUME_UNREACHABLE
    assert list(tmp_path.iterdir()) == []


class StaleVolumes(SharedVolumes):
    """Of a directory that its server has exported anew since it was mounted: the kernel says so of whatever is looked at."""

    def check(self) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


async def test_what_cannot_be_looked_at_is_not_known_to_be_unmade(tmp_path: Path) -> None:
    """The error came through as one without a word, so that a guest that runs was said to have failed."""
    assert not await StaleVolumes(tmp_path).is_unmade(ONE.id)


class HungVolumes(SharedVolumes):
    """Of a directory whose server is away: whoever looks at it waits, as with a hard mount of NFS, until it is back."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_back = threading.Event()
        self.waited: set[threading.Thread] = set()

    def check(self) -> None:
        self.waited.add(threading.current_thread())
        # Bounded, so that a test that fails ends.
        self.is_back.wait(10)
        super().check()


async def test_a_shared_directory_that_hangs_holds_up_nothing_else(tmp_path: Path) -> None:
    """What is held was looked at on the event loop itself, by a generator that a thread had only made: the release of one volume stopped
    the daemon, its beats with it. And what did wait in threads took those that all files of the host are handled with.
    """
    (tmp_path / SHARED_MARK).touch()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    volumes = HungVolumes(tmp_path)

    acts = [
        asyncio.ensure_future(act)
        for act in (volumes.is_unmade(ONE.id), volumes.ensure(ONE, None), volumes.held())
    ]
    async with within(5):
        assert await asyncio.to_thread(lambda: "local") == "local"
    assert not any(act.done() for act in acts)
    volumes.is_back.set()
    is_unmade, made, _ = await asyncio.gather(*acts)

    assert is_unmade
    assert made == DiskFile(path=volumes.path(ONE.id), format="raw", serial=ONE.serial)
    assert threading.main_thread() not in volumes.waited


async def test_what_was_given_up_while_a_shared_directory_hung_changes_nothing_once_it_is_back(
    tmp_path: Path,
) -> None:
    """The volume may be another host's by then. And whoever wants it here meanwhile waits for the thread that still is at it."""
    (tmp_path / SHARED_MARK).touch()
    volumes = HungVolumes(tmp_path)
    first = asyncio.ensure_future(volumes.ensure(ONE, None))
    while not volumes.waited:
        await asyncio.sleep(0.01)
    first.cancel()
    async with within(5):
        await asyncio.wait({first})
    assert first.cancelled()
    second = asyncio.ensure_future(volumes.ensure(ONE, None))
    await asyncio.sleep(0.05)
    assert len(volumes.waited) == 1
    second.cancel()
    await asyncio.wait({second})

    volumes.is_back.set()

    await volumes.held()
    assert [path.name for path in tmp_path.iterdir()] == [SHARED_MARK]
    assert (await volumes.ensure(ONE, None)).path == volumes.path(ONE.id)


def test_a_daemon_ends_while_a_shared_directory_hangs(tmp_path: Path) -> None:
    """Python waits at exit for the threads of its own executor: a daemon that was told to stop ran until it was killed."""
    program = """
import asyncio, pathlib, threading
from hostd.volumes.shared import SharedVolumes

class Hung(SharedVolumes):
    def check(self):
        threading.Event().wait()

async def main():
    try:
        await asyncio.wait_for(Hung(pathlib.Path(".")).held(), 0.1)
    except TimeoutError:
        print("told to stop")

asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        timeout=20,
        check=True,
    )

    assert ended.stdout == b"told to stop\n"


async def test_two_who_want_a_volume_at_once_get_the_same_one(tmp_path: Path) -> None:
    volumes = FileVolumes(tmp_path)

    first, second = await asyncio.gather(volumes.ensure(ONE, None), volumes.ensure(ONE, None))

    assert first == second
