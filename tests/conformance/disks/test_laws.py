"""Every kind of disks keeps every law; and what only real files can show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fabric.clock import SystemClock
from fabric.errors import Unavailable
from fabric.model.image import ImageFormat
from fabric.model.instance import ImageRef, Rescue
from fabric.model.volume import GuestVolume
from hostd.core.faults import FaultCode
from hostd.driver.base import DiskFile
from hostd.driver.fake import INSTANT, FakeMachine
from hostd.images.base import DiskError, Held
from hostd.images.cache import ImageCache
from hostd.images.copies import ABANDONED_S, Copies
from hostd.images.disks import DiskSettings, LocalDisks
from hostd.images.fake import FakeDisks
from hostd.volumes.files import FileVolumes
from tests.conformance.disks.laws import GUEST, IMAGE, LAWS, Law, Source, bring, copied, ignore
from tests.conformance.guests import a_port, an_id, an_image

MISSING = [
    name
    for name in ("qemu-img", "genisoimage", "prlimit", "setpriv", "isoinfo")
    if shutil.which(name) is None
]
needs_programs = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")
needs_root = pytest.mark.owns_machine


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder that guests' users can search, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="cf-disks-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def disks(state: Path) -> LocalDisks:
    return LocalDisks(DiskSettings(state=state, cache_max_age_s=0), SystemClock())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
async def test_fake_disks(law: Law) -> None:
    await law(FakeDisks(FakeMachine("fake-1", delays=INSTANT)))


@needs_programs
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
async def test_local_disks(law: Law, disks: LocalDisks) -> None:
    await law(disks)


def info(path: str) -> dict[str, object]:
    command = ("qemu-img", "info", "--output=json", "-f", "qcow2", path)
    found: dict[str, object] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


@needs_programs
async def test_a_root_disk_is_as_large_as_the_flavor_and_starts_as_the_image(disks: LocalDisks) -> None:
    await bring(disks)

    root = (await disks.ensure_guest(GUEST, 1)).disks[0]

    seen = info(root.path)
    assert seen["virtual-size"] == 1 << 30
    assert seen["backing-filename-format"] == "raw"
    assert root.backing is not None
    assert Path(root.backing.path).read_bytes() == Source().content


@needs_programs
async def test_a_rescue_with_another_image_or_password_is_made_anew(disks: LocalDisks) -> None:
    """The disk of one that failed is on its own image: with another beneath it, it is neither."""
    await bring(disks)
    await disks.ensure_guest(GUEST, 1)
    larger = Source(Source().content * 2)
    other = an_image(larger.content, id=an_id("other"))
    await bring(disks, larger.fetch, other)

    async def rescued(image: ImageRef, user_data: bytes) -> tuple[Path, bytes]:
        guest = replace(GUEST, rescue=Rescue(image=image, user_data=user_data))
        made = await disks.ensure_guest(guest, 1, made=True)
        drive = next(Path(disk.path) for disk in made.disks if disk.serial == "config-2")
        return Path(made.disks[0].path), drive.read_bytes()

    await rescued(IMAGE, b"the first password")
    path, drive = await rescued(other, b"the second password")
    written = ("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 4k", str(path))
    subprocess.run(written, check=True, capture_output=True)
    before = path.read_bytes()
    await rescued(other, b"the second password")

    seen = info(str(path))
    assert seen["backing-filename"] == disks.image_file(other).path
    assert seen["virtual-size"] == other.virtual_size_bytes
    assert b"the second password" in drive
    assert path.read_bytes() == before


@needs_programs
async def test_a_root_disk_is_never_replaced(disks: LocalDisks) -> None:
    await bring(disks)
    path = (await disks.ensure_guest(GUEST, 1)).disks[0].path
    written = ("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 4k", path)
    subprocess.run(written, check=True, capture_output=True)
    before = Path(path).read_bytes()

    await disks.ensure_guest(GUEST, 1)

    assert Path(path).read_bytes() == before


@needs_programs
@needs_root
async def test_a_disk_that_its_guest_may_have_written_is_looked_at_as_its_user(disks: LocalDisks) -> None:
    """A hypervisor that its guest has taken over writes what it likes into its disk's header: nobody with rights may parse that. At each
    start the size of a root disk was looked up by a qemu-img that was root, who may read what its owner may not.
    """
    await bring(disks)
    Path((await disks.ensure_guest(GUEST, 1)).disks[0].path).chmod(0)

    with pytest.raises(DiskError):
        await disks.ensure_guest(GUEST, 1)


@needs_programs
async def test_a_qcow2_image_is_kept_flat(disks: LocalDisks, tmp_path: Path) -> None:
    image, content = a_qcow2(tmp_path)

    await bring(disks, Source(content).fetch, image)

    backing = (await disks.ensure_guest(replace(GUEST, image=image), 1)).disks[0].backing
    assert backing is not None
    assert Path(backing.path).read_bytes() == Source().content


def a_qcow2(folder: Path, *options: str) -> tuple[ImageRef, bytes]:
    flat, made = folder / "flat", folder / "made.qcow2"
    flat.write_bytes(Source().content)
    command = ("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *options, str(flat), str(made))
    subprocess.run(command, check=True)
    content = made.read_bytes()
    image = an_image(content, format=ImageFormat.QCOW2, virtual_size_bytes=len(Source().content))
    return image, content


@needs_programs
async def test_an_image_that_names_another_file_is_never_opened(disks: LocalDisks, tmp_path: Path) -> None:
    """Whoever could place such an image would read the host's files through its own disk."""
    secret, evil = tmp_path / "secret", tmp_path / "evil"
    secret.write_bytes(b"HOSTSECRET".ljust(1 << 20))
    for options in (("-b", str(secret), "-F", "raw"), ("-o", f"data_file={secret},data_file_raw=on")):
        evil.unlink(missing_ok=True)
        command = ("qemu-img", "create", "-q", "-f", "qcow2", *options, str(evil), "1M")
        subprocess.run(command, check=True)
        content = evil.read_bytes()
        image = an_image(content, format=ImageFormat.QCOW2, virtual_size_bytes=1 << 20)

        with pytest.raises(DiskError) as refused:
            await bring(disks, Source(content).fetch, image)
        assert refused.value.code == FaultCode.IMAGE_REJECTED


@needs_programs
async def test_an_image_with_another_size_than_recorded_is_refused(disks: LocalDisks, tmp_path: Path) -> None:
    image, content = a_qcow2(tmp_path)

    with pytest.raises(DiskError) as refused:
        await disks.ensure_image(replace(image, virtual_size_bytes=1), Source(content).fetch, ignore)

    assert refused.value.code == FaultCode.IMAGE_REJECTED


@needs_programs
async def test_the_config_drive_says_what_openstack_says(disks: LocalDisks) -> None:
    guest = replace(
        GUEST,
        hostname="web",
        ports=(a_port(),),
        user_data=b"#cloud-config\n",
        public_keys={"k": "ssh-ed25519 A"},
    )
    await bring(disks)

    drive = (await disks.ensure_guest(guest, 1)).disks[1].path

    assert b"Volume id: config-2\n" in iso("-d", drive)
    listing = iso("-J", "-f", drive).decode().splitlines()
    assert "/openstack/latest/meta_data.json" in listing
    assert "/openstack/2018-08-27/network_data.json" in listing
    meta_data = json.loads(iso("-J", "-x", "/openstack/latest/meta_data.json", drive))
    assert (meta_data["uuid"], meta_data["hostname"]) == (guest.id, "web")
    assert meta_data["public_keys"] == {"k": "ssh-ed25519 A"}
    assert len(meta_data["random_seed"]) > 500
    assert iso("-J", "-x", "/openstack/latest/user_data", drive) == b"#cloud-config\n"


def iso(*options: str) -> bytes:
    *flags, path = options
    return subprocess.run(("isoinfo", *flags, "-i", path), check=True, capture_output=True).stdout


@needs_root
@needs_programs
async def test_every_placement_has_a_user_of_its_own_and_shares_its_files_with_nobody(
    disks: LocalDisks, state: Path
) -> None:
    await bring(disks)
    guests = [replace(GUEST, id=an_id(f"guest {number}")) for number in range(4)]
    made = [await disks.ensure_guest(guest, 1) for guest in guests]

    owners = [Path(each.disks[0].path).stat().st_uid for each in made]
    assert len(set(owners)) == 4
    assert all(owner > 1_900_000_000 for owner in owners)
    for each in made:
        for disk in each.disks:
            assert stat.S_IMODE(Path(disk.path).stat().st_mode) & 0o077 == 0
    base = made[0].disks[0].backing
    assert base is not None
    assert (Path(base.path).stat().st_uid, stat.S_IMODE(Path(base.path).stat().st_mode)) == (0, 0o444)

    await disks.remove(guests[1].id, 1)
    again = await LocalDisks(DiskSettings(state=state), SystemClock()).ensure_guest(guests[1], 2)
    assert Path(again.disks[0].path).stat().st_uid == owners[1]


@needs_root
@needs_programs
async def test_the_user_of_a_volumes_last_guest_is_nobody_elses(state: Path) -> None:
    """Else a guest that has broken out of its hypervisor could open the volume of another, which is attached to nobody just now."""
    disks = LocalDisks(DiskSettings(state=state, volumes=state / "volumes"), SystemClock())
    await bring(disks)
    first, second = (replace(GUEST, id=an_id(f"guest {number}")) for number in range(2))
    await disks.ensure_guest(first, 1)
    owner = await disks.owner(first.id, 1)
    await FileVolumes(state / "volumes").ensure(GuestVolume(id=an_id("volume"), size_gib=1), owner)
    await disks.remove(first.id, 1)

    await disks.ensure_guest(second, 1)

    assert await disks.owner(second.id, 1) != owner


@needs_root
@needs_programs
async def test_a_state_folder_that_guests_cannot_reach_is_said_before_they_fail(
    disks: LocalDisks, state: Path
) -> None:
    await bring(disks)
    state.chmod(0o700)

    with pytest.raises(DiskError, match="closed to other users"):
        await disks.ensure_guest(GUEST, 1)


@needs_root
@needs_programs
async def test_the_daemons_umask_locks_no_guest_out(disks: LocalDisks) -> None:
    before = os.umask(0o077)
    try:
        await bring(disks)
        made = await disks.ensure_guest(GUEST, 1)
    finally:
        os.umask(before)

    root = made.disks[0]
    assert root.backing is not None
    owner = Path(root.path).stat().st_uid
    for path in (root.path, root.backing.path):
        command = (
            "setpriv",
            f"--reuid={owner}",
            f"--regid={owner}",
            "--clear-groups",
            "--",
            "head",
            "-c1",
            path,
        )
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0, path


@needs_programs
async def test_a_crash_while_making_leaves_nothing_half_done(disks: LocalDisks, state: Path) -> None:
    """What a killed daemon leaves are .part files: they are made anew, and never taken for the whole."""
    await bring(disks)
    folder = state / "instances" / f"{GUEST.id}.1"
    folder.mkdir(parents=True)
    for name in ("root.qcow2.part", "config.iso.part"):
        (folder / name).write_bytes(b"half")

    made = await disks.ensure_guest(GUEST, 1)

    assert info(made.disks[0].path)["virtual-size"] == 1 << 30
    assert not list(folder.glob("*.part"))


@needs_programs
async def test_what_a_crash_while_removing_has_left_is_held_until_it_is_removed(
    disks: LocalDisks, state: Path
) -> None:
    """A folder is renamed first, then emptied. Between the two a killed daemon left a guest's disk under a name that nobody looked for: the
    next one told that the placement was gone, and the disk stayed for ever. Where the same placement was made again after a rebuild that
    was given up, what was left even stood in the way of its end, at each try.
    """
    await bring(disks)
    await disks.ensure_guest(GUEST, 1)
    folder = state / "instances" / f"{GUEST.id}.1"
    folder.rename(folder.with_name(f"{folder.name}.removed"))

    assert await disks.held() == {Held(GUEST.id, 1)}
    await disks.ensure_guest(GUEST, 1)
    assert await disks.held() == {Held(GUEST.id, 1)}
    await disks.remove(GUEST.id, 1)
    assert await disks.held() == frozenset()
    assert list((state / "instances").iterdir()) == []


@needs_programs
async def test_what_is_half_removed_of_another_placement_stays_until_that_is_removed(
    disks: LocalDisks, state: Path
) -> None:
    await bring(disks)
    await disks.ensure_guest(GUEST, 2)
    newer = state / "instances" / f"{GUEST.id}.2"
    newer.rename(newer.with_name(f"{newer.name}.removed"))
    await disks.ensure_guest(GUEST, 1)

    await disks.remove(GUEST.id, 1)

    assert await disks.held() == {Held(GUEST.id, 2)}


@needs_programs
async def test_the_console_is_read_over_a_rotation(disks: LocalDisks, state: Path) -> None:
    await bring(disks)
    await disks.ensure_guest(GUEST, 1)
    folder = state / "instances" / f"{GUEST.id}.1"
    (folder / "console.log.0").write_bytes(b"older ")
    (folder / "console.log").write_bytes(b"newer")

    assert await disks.console_log(GUEST.id, 1, 100) == b"older newer"
    assert await disks.console_log(GUEST.id, 1, 7) == b"r newer"
    assert await disks.console_log(GUEST.id, 1, 3) == b"wer"


@needs_root
@needs_programs
async def test_a_full_disk_is_said(state: Path) -> None:
    small = state / "small"
    small.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "none", str(small)), check=True)
    try:
        disks = LocalDisks(DiskSettings(state=small), SystemClock())
        with pytest.raises(DiskError) as refused:
            await bring(disks)
        assert refused.value.code == FaultCode.DISK_FULL
        assert list((small / "images").iterdir()) == []
        # A record that says less than comes is caught while it comes.
        with pytest.raises(DiskError):
            await bring(disks, image=replace(IMAGE, size_bytes=1000))
    finally:
        subprocess.run(("umount", str(small)), check=True)


@needs_programs
async def test_a_copy_holds_what_the_guest_and_its_image_have_written(
    disks: LocalDisks, tmp_path: Path
) -> None:
    await bring(disks)
    root = (await disks.ensure_guest(GUEST, 1)).disks[0].path
    written = ("qemu-io", "-f", "qcow2", "-c", "write -P 7 4M 64k", root)
    subprocess.run(written, check=True, capture_output=True)

    _, data = await copied(disks)

    made = tmp_path / "made.qcow2"
    made.write_bytes(data)
    compare = ("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", root, str(made))
    assert subprocess.run(compare, check=False, capture_output=True).returncode == 0
    assert "backing-filename" not in info(str(made))


@needs_root
@needs_programs
async def test_a_copy_that_might_not_fit_is_not_begun(state: Path) -> None:
    small = state / "small"
    small.mkdir()
    # Room for the image, twice, and for a guest; not for a copy and what guests may write meanwhile.
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=32m,mode=755", "none", str(small)), check=True)
    try:
        disks = LocalDisks(DiskSettings(state=small), SystemClock())
        await bring(disks)
        await disks.ensure_guest(GUEST, 1)
        with pytest.raises(DiskError) as refused:
            await disks.begin_copy(GUEST.id, 1, 1)
        assert refused.value.code == FaultCode.DISK_FULL
        assert list(small.glob("instances/*/copy.*")) == []
    finally:
        subprocess.run(("umount", str(small)), check=True)


@needs_programs
async def test_a_copy_that_a_crash_has_left_is_removed_after_a_while(disks: LocalDisks, state: Path) -> None:
    await bring(disks)
    await disks.ensure_guest(GUEST, 1)
    await disks.begin_copy(GUEST.id, 1, 1)
    (left,) = state.glob("instances/*/copy.*")
    await disks.prune(frozenset())
    assert left.exists()
    long_ago_s = left.stat().st_mtime - ABANDONED_S - 60

    os.utime(left, (long_ago_s, long_ago_s))
    await disks.prune(frozenset())

    assert not left.exists()


@needs_programs
async def test_a_root_disk_with_a_header_of_its_guests_own_copies_no_file_of_the_host(
    disks: LocalDisks, tmp_path: Path
) -> None:
    """A guest that got out of its hypervisor may write any header: what is beneath the disk is not read from there."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"the host's own " * 1000)
    await bring(disks)
    root = Path((await disks.ensure_guest(GUEST, 1)).disks[0].path)
    owner = root.stat()
    rebase = ("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(root))
    subprocess.run(rebase, check=True)
    os.chown(root, owner.st_uid, owner.st_gid)

    _, data = await copied(disks)

    assert b"the host's own" not in data


class HeldBack(ImageCache):
    """A cache whose first image is put in place only when it may be: its disk is slow to sync."""

    is_asked = threading.Event()
    may_go_on = threading.Event()

    @classmethod
    def _publish(cls, part: Path, target: Path) -> None:
        is_first = not cls.is_asked.is_set()
        cls.is_asked.set()
        if is_first:
            cls.may_go_on.wait(10)
        super()._publish(part, target)


async def test_an_image_given_up_at_its_end_puts_nobody_else_s_download_in_its_place(state: Path) -> None:
    """A file under an image's own name is whole, whoever was cancelled: nobody looks into it again."""
    kernel = replace(IMAGE, format=ImageFormat.KERNEL)
    cache = HeldBack(state / "images", user=None, clock=SystemClock(), max_age_s=0)
    first = asyncio.create_task(cache.ensure(kernel, Source().fetch, ignore))
    await asyncio.to_thread(HeldBack.is_asked.wait, 10)
    first.cancel()

    async def halfway(image: ImageRef) -> AsyncIterator[bytes]:
        yield Source().content[: image.size_bytes // 2]
        HeldBack.may_go_on.set()
        await asyncio.sleep(0.1)
        raise Unavailable("the conductor went away")

    second = asyncio.create_task(cache.ensure(kernel, halfway, ignore))
    await asyncio.sleep(0.1)
    HeldBack.may_go_on.set()
    with contextlib.suppress(Unavailable):
        await second

    assert cache.path(kernel).read_bytes() == Source().content


class SlowDisk:
    """A file that whoever is at it waits for, as on a disk that does not answer, until it is let go: then so much is written to it."""

    def __init__(self, path: Path, written_bytes: int = 0) -> None:
        os.mkfifo(path)
        # Both ends, so that it can be opened, and neither comes to an end.
        self._ends = os.open(path, os.O_RDWR)
        self._left_bytes = written_bytes
        # Bounded, so that a test that fails ends.
        self._timer = threading.Timer(5, self._go_on)
        self._timer.start()

    async def let_go(self) -> None:
        self._timer.cancel()
        if self._ends >= 0:
            await asyncio.to_thread(self._go_on)

    def _go_on(self) -> None:
        while self._left_bytes > 0:
            self._left_bytes -= len(os.read(self._ends, self._left_bytes))
        ends, self._ends = self._ends, -1
        os.close(ends)


async def hung_up_on(doing: asyncio.Task[Any], disk: SlowDisk) -> float:
    """How long the event loop stands still when what waits for the disk is cancelled."""
    await asyncio.sleep(0.1)
    assert not doing.done()
    began_s = time.monotonic()
    doing.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    stood_s = time.monotonic() - began_s
    await disk.let_go()
    await asyncio.wait({doing})
    assert doing.cancelled()
    return stood_s


async def test_a_snapshot_that_is_given_up_does_not_stop_the_daemon(tmp_path: Path) -> None:
    """The file was closed on the event loop, which waits for whoever is reading: beats and all stood still with the disk."""

    def no_root(_: Path) -> DiskFile:
        raise AssertionError("what is read is a copy, and needs no root disk")

    disk = SlowDisk(tmp_path / "copy.1.qcow2")
    copies = Copies(no_root, is_root=False)

    async def first() -> bytes:
        return await anext(copies.read(tmp_path, 1))

    assert await hung_up_on(asyncio.create_task(first()), disk) < 2


async def test_a_download_that_is_given_up_does_not_stop_the_daemon(state: Path) -> None:
    """The same, of an image that is being written."""
    kernel = replace(IMAGE, format=ImageFormat.KERNEL, size_bytes=1 << 30)
    (state / "images").mkdir(exist_ok=True)
    disk = SlowDisk(state / "images" / f"{kernel.sha256}.download.part", 1 << 20)
    cache = ImageCache(state / "images", user=None, clock=SystemClock(), max_age_s=0)

    async def endless(_: ImageRef) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * (1 << 20)

    assert await hung_up_on(asyncio.create_task(cache.ensure(kernel, endless, ignore)), disk) < 2
