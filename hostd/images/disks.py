"""`Disks` on a filesystem.

    STATE/images/                 the cache (cache.py)
    STATE/instances/ID.EPOCH/     root.qcow2, config.iso, console.log, and a hard link to each image beneath them;
                                  while it is rescued, rescue.qcow2, rescue.iso and a note of what they are made of, too;
                                  copies of its disk (copies.py);
                                  where a volume is the root disk, the empty root.volume instead of root.qcow2

Each placement's disks belong to a user id of their own, from a range that no account is in: the hypervisor runs each guest as
the owner of its root disk, and the files are readable to nobody else. So every folder above must be searchable by others; the
folders themselves tell which ids are taken. Needs root for that; without, everything belongs to whoever runs this.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from fabric.clock import Clock
from fabric.model.instance import Guest, ImageRef, Rescue
from hostd.core.faults import FaultCode
from hostd.core.metadata import CONFIG_DRIVE_LABEL, documents
from hostd.driver.base import DiskFile
from hostd.images.base import DiskCopy, Fetch, GuestDisks, Held
from hostd.images.cache import ImageCache
from hostd.images.copies import ROOT, Copies
from hostd.images.qemu_img import QemuImg
from hostd.images.storage import disk_error, disk_faults, publish
from hostd.processes import run
from hostd.resources.tracker import GIB, measure_free_gib

_log = structlog.get_logger(__name__)

_FOLDER: Final = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(\d{1,18})")
_REMOVED: Final = ".removed"
"""What ends the name of a placement's folder whose removal has begun."""

_BENEATH: Final = "root.on."
"""What begins the name of an empty file, which ends with the cached image's; with nothing, where the root disk stands by itself."""
_VOLUME: Final = "root.volume"
"""Stands for the root disk of a guest that boots from a volume: its owner is the guest's user, and it tells that the disks were made."""
_CONFIG: Final = "config.iso"
_RESCUE: Final = "rescue.qcow2"
_RESCUED: Final = "rescue.as."
"""What begins the name of an empty file, which ends with a digest of what the rescue's files are made of."""
_RESCUE_CONFIG: Final = "rescue.iso"
_CONSOLE: Final = "console.log"
_SEED_BYTES: Final = 512
_MAX_TAIL_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSettings:
    """Where guests' files live, and whose they are.

    `first_user` is the start of a range of `users` ids that are ours on this machine: the first is for programs that read
    foreign images, the others for guests. The default lies in a part that systemd's table of ids calls unused. The owners of files in
    `volumes` are guests' too.
    """

    state: Path
    first_user: int = 1_900_000_000
    users: int = 65_536
    cache_max_age_s: float = 24 * 3600.0
    volumes: Path | None = None


class LocalDisks:
    """`Disks` below one folder. One process at a time."""

    def __init__(self, settings: DiskSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._instances = settings.state / "instances"
        self._is_root = os.geteuid() == 0
        reader = settings.first_user if self._is_root else None
        self._cache = ImageCache(
            settings.state / "images", user=reader, clock=clock, max_age_s=settings.cache_max_age_s
        )
        self._qemu_img = QemuImg(None)
        self._copies = Copies(self._root_in, is_root=self._is_root)
        self._allocating = asyncio.Lock()
        self._folders: dict[str, asyncio.Lock] = {}

    async def ensure_image(self, image: ImageRef, fetch: Fetch, progress: Callable[[int], None]) -> None:
        await self._cache.ensure(image, fetch, progress)

    def image_file(self, image: ImageRef) -> DiskFile:
        return self._cache.base(image)

    async def ensure_guest(self, guest: Guest, placement_epoch: int, *, made: bool = False) -> GuestDisks:
        async with self._folders.setdefault(guest.id, asyncio.Lock()):
            with disk_faults("guest"):
                folder = self._folder(guest.id, placement_epoch)
                if made and not (folder / (_VOLUME if guest.image is None else ROOT)).exists():
                    raise disk_error(FaultCode.DISK_LOST)
                return await self._make(guest, folder)

    async def find_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> DiskCopy | None:
        with disk_faults("copy", FaultCode.SNAPSHOT_FAILED):
            return await self._copies.find(self._folder(instance_id, placement_epoch), action_seq)

    async def begin_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> DiskFile:
        with disk_faults("copy", FaultCode.SNAPSHOT_FAILED):
            return await self._copies.begin(self._folder(instance_id, placement_epoch), action_seq)

    async def copy_root(self, instance_id: str, placement_epoch: int, action_seq: int) -> None:
        with disk_faults("copy", FaultCode.SNAPSHOT_FAILED):
            await self._copies.copy(self._folder(instance_id, placement_epoch), action_seq)

    async def seal_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> DiskCopy:
        with disk_faults("copy", FaultCode.SNAPSHOT_FAILED):
            return await self._copies.seal(self._folder(instance_id, placement_epoch), action_seq)

    def read_copy(self, instance_id: str, placement_epoch: int, action_seq: int) -> AsyncIterator[bytes]:
        return self._copies.read(self._folder(instance_id, placement_epoch), action_seq)

    async def drop_copies(self, instance_id: str, placement_epoch: int) -> None:
        with disk_faults("copy", FaultCode.SNAPSHOT_FAILED):
            await asyncio.to_thread(self._copies.drop, self._folder(instance_id, placement_epoch))

    async def owner(self, instance_id: str, placement_epoch: int) -> int | None:
        folder = self._folder(instance_id, placement_epoch)
        with disk_faults("owner"):
            if not (folder / ROOT).exists() and not (folder / _VOLUME).exists():
                raise disk_error(FaultCode.DISK_LOST)
            return self._owner_of(folder)

    async def remove(self, instance_id: str, placement_epoch: int) -> None:
        async with self._folders.setdefault(instance_id, asyncio.Lock()):
            with disk_faults("remove"):
                await asyncio.to_thread(self._remove, instance_id, placement_epoch)
        self._folders.pop(instance_id, None)

    async def held(self) -> frozenset[Held]:
        with disk_faults("held"):
            return frozenset(held for held, _ in self._held())

    async def console_log(self, instance_id: str, placement_epoch: int, tail_bytes: int) -> bytes:
        path = self._folder(instance_id, placement_epoch) / _CONSOLE
        with disk_faults("console", FaultCode.CONSOLE_UNAVAILABLE):
            return await asyncio.to_thread(_tail, path, min(tail_bytes, _MAX_TAIL_BYTES))

    async def free_gib(self) -> int:
        with disk_faults("free"):
            self._settings.state.mkdir(parents=True, exist_ok=True)
            return measure_free_gib(self._settings.state)

    async def prune(self, in_use: frozenset[str]) -> None:
        with disk_faults("prune"):
            await asyncio.to_thread(self._cache.prune, in_use)
            now_s = self._clock.now_ms() / 1000
            for _, folder in self._held():
                await asyncio.to_thread(self._copies.prune, folder, now_s=now_s)

    # ------------------------------------------------------------------ making

    async def _make(self, guest: Guest, folder: Path) -> GuestDisks:
        is_own = guest.standalone and (folder / ROOT).exists()
        images = [image for image in guest.images() if not (is_own and image is guest.image)]
        if any(not self._cache.has(image) for image in images):
            raise disk_error(FaultCode.IMAGE_UNAVAILABLE, "it is not in the cache")
        self._make_folder(folder)
        for image in images:
            if not (guest.standalone and image is guest.image):
                self._cache.pin(image, folder)
        booted = guest.booted()
        disks: list[DiskFile] = []
        if guest.image is None:
            await self._ensure_mark(folder)
        else:
            disks.append(await self._ensure_root(guest, guest.image, folder))
        if guest.rescue is not None:
            disks.insert(0, await self._ensure_rescue(guest.rescue, folder))
        else:
            _drop_rescue(folder)
        if guest.config_drive:
            name = _CONFIG if guest.rescue is None else _RESCUE_CONFIG
            disks.append(await self._ensure_config_drive(booted, folder, name))
        console = folder / _CONSOLE
        console.touch(mode=0o600, exist_ok=True)
        return GuestDisks(
            disks=tuple(disks),
            kernel_path=str(self._cache.path(booted.kernel)) if booted.kernel else "",
            ramdisk_path=str(self._cache.path(booted.ramdisk)) if booted.ramdisk else "",
            console_log_path=str(console),
        )

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Whatever umask this daemon was started with; the folders above are the operator's, and only looked at.
        folder.parent.chmod(0o711)
        folder.chmod(0o711)
        if not self._is_root:
            return
        for parent in folder.parents:
            if not parent.stat().st_mode & stat.S_IXOTH:
                _log.error("disk.unreachable", folder=str(parent))
                raise disk_error(
                    FaultCode.DISK_FAILED, "a folder above hostd's state is closed to other users (chmod o+x)"
                )

    async def _ensure_mark(self, folder: Path) -> None:
        """What stands for the root disk of a guest that boots from a volume."""
        if not (folder / _VOLUME).exists():
            part = folder / f"{_VOLUME}.part"
            await self._claim_user(part)
            await asyncio.to_thread(publish, part, folder / _VOLUME)

    async def _ensure_root(self, guest: Guest, image: ImageRef, folder: Path) -> DiskFile:
        path = folder / ROOT
        size_bytes = guest.disk_gib * GIB or image.virtual_size_bytes
        if not path.exists():
            if size_bytes < image.virtual_size_bytes:
                raise disk_error(FaultCode.IMAGE_TOO_LARGE)
            await self._make_root(guest, image, folder, size_bytes)
            return self._root_in(folder, image)
        owner = self._owner(path)
        if (await self._qemu_img.info(path, "qcow2", owner=owner)).virtual_size_bytes < size_bytes:
            await self._qemu_img.grow(path, "qcow2", size_bytes, owner=owner)
        return self._root_in(folder, image)

    async def _make_root(self, guest: Guest, image: ImageRef, folder: Path, size_bytes: int) -> None:
        """An overlay on the image, or a whole copy of it. What is beneath it is noted before it is there."""
        part = folder / f"{ROOT}.part"
        base = self._cache.base(image)
        _note(folder, "" if guest.standalone else Path(base.path).name)
        owner = await self._claim_user(part)
        if guest.standalone:
            await self._qemu_img.make_whole(Path(base.path), base.format, part, owner=owner)
            await self._qemu_img.grow(part, "qcow2", size_bytes, owner=owner)
        else:
            await self._qemu_img.create_overlay(
                part, base=Path(base.path), base_format=base.format, size_bytes=size_bytes, owner=owner
            )
        await asyncio.to_thread(publish, part, folder / ROOT)

    def _root_in(self, folder: Path, image: ImageRef | None = None) -> DiskFile:
        """The root disk that is there, on what it was made: by our own note, because its header is its guest's to write.

        One without a note was made, before there were notes, on the guest's image.
        """
        note = next((each.name for each in folder.glob(f"{_BENEATH}*")), None)
        if note is not None:
            name = note.removeprefix(_BENEATH)
            base = self._cache.named(name) if name else None
        elif image is not None:
            base = self._cache.base(image)
        else:
            raise disk_error(FaultCode.SNAPSHOT_FAILED, "what its root disk was made on is not known")
        return DiskFile(path=str(folder / ROOT), format="qcow2", serial="root", backing=base)

    async def _ensure_rescue(self, rescue: Rescue, folder: Path) -> DiskFile:
        """The disk that a rescued guest boots from: as large as its image, and the same user's as the guest's own.

        A rescue that failed may be followed by another one, with another image or password: of the one before nothing is used.
        """
        path, note = folder / _RESCUE, folder / f"{_RESCUED}{_digest(rescue)}"
        if not note.exists():
            _drop_rescue(folder)
            note.touch()
        base = self._cache.base(rescue.image)
        if not path.exists():
            part = folder / f"{_RESCUE}.part"
            part.unlink(missing_ok=True)
            part.touch(mode=0o600)
            owner = self._owner_of(folder)
            if owner is not None:
                os.chown(part, owner, owner)
            await self._qemu_img.create_overlay(
                part,
                base=Path(base.path),
                base_format=base.format,
                size_bytes=rescue.image.virtual_size_bytes,
                owner=owner,
            )
            await asyncio.to_thread(publish, part, path)
        return DiskFile(path=str(path), format="qcow2", serial="rescue", backing=base)

    async def _claim_user(self, part: Path) -> int | None:
        """Make `part` anew, empty, owned by a user id that no other placement has."""
        async with self._allocating:
            return self._give_to_nobody_else(part)

    def _give_to_nobody_else(self, part: Path) -> int | None:
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)
        if not self._is_root:
            return None
        taken = set(self._owners())
        guests = range(self._settings.first_user + 1, self._settings.first_user + self._settings.users)
        user = next((each for each in guests if each not in taken), None)
        if user is None:
            raise disk_error(FaultCode.DISK_FAILED, "no user id is left for another server")
        os.chown(part, user, user)
        return user

    def _owners(self) -> Iterator[int]:
        for _, folder in self._held():
            for name in (ROOT, f"{ROOT}.part", _VOLUME, f"{_VOLUME}.part"):
                with contextlib.suppress(FileNotFoundError):
                    yield (folder / name).stat().st_uid
        if self._settings.volumes is not None and self._settings.volumes.is_dir():
            # One that nobody has keeps the user id of its last guest, which is then no other's.
            for path in self._settings.volumes.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    yield path.stat().st_uid

    def _owner_of(self, folder: Path) -> int | None:
        """Whose the disks in a placement's folder are."""
        root = folder / ROOT
        return self._owner(root if root.exists() else folder / _VOLUME)

    def _owner(self, path: Path) -> int | None:
        return path.stat().st_uid if self._is_root else None

    async def _ensure_config_drive(self, guest: Guest, folder: Path, name: str) -> DiskFile:
        path = folder / name
        if not path.exists():
            tree = folder / "config.part"
            part = folder / f"{name}.part"
            await asyncio.to_thread(_write_tree, tree, documents(guest, random_seed=os.urandom(_SEED_BYTES)))
            try:
                await run(
                    "genisoimage",
                    *("-quiet", "-no-pad", "-ldots", "-allow-lowercase", "-allow-multidot", "-l", "-J", "-r"),
                    *("-V", CONFIG_DRIVE_LABEL, "-o", str(part), str(tree)),
                )
                part.chmod(0o400)
                owner = self._owner_of(folder)
                if owner is not None:
                    os.chown(part, owner, owner)
                await asyncio.to_thread(publish, part, path)
            finally:
                await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)
                part.unlink(missing_ok=True)
        return DiskFile(path=str(path), format="raw", serial=CONFIG_DRIVE_LABEL, readonly=True)

    # ---------------------------------------------------------------- removing

    def _folder(self, instance_id: str, placement_epoch: int) -> Path:
        name = f"{instance_id}.{placement_epoch}"
        if _FOLDER.fullmatch(name) is None:
            raise disk_error(FaultCode.DISK_FAILED, "the server's id is not a UUID")
        return self._instances / name

    def _held(self) -> Iterator[tuple[Held, Path]]:
        """What is half removed is held too: or nobody would remove the rest."""
        if self._instances.is_dir():
            for path in sorted(self._instances.iterdir()):
                match = _FOLDER.fullmatch(path.name.removesuffix(_REMOVED))
                if match is not None:
                    yield Held(match[1], int(match[2])), path

    def _remove(self, instance_id: str, placement_epoch: int) -> None:
        """Rename first: a folder under its own name is never half removed."""
        paths = [
            path
            for held, path in self._held()
            if held.instance_id == instance_id and held.placement_epoch <= placement_epoch
        ]
        # What an earlier removal has left goes before what is to have its name.
        for path in sorted(paths, key=lambda path: path.suffix != _REMOVED):
            removed = path.with_name(f"{path.name.removesuffix(_REMOVED)}{_REMOVED}")
            path.rename(removed)
            shutil.rmtree(removed)


def _note(folder: Path, beneath: str) -> None:
    """Note what a root disk that is about to be made is made on."""
    for note in folder.glob(f"{_BENEATH}*"):
        note.unlink()
    (folder / f"{_BENEATH}{beneath}").touch()


def _digest(rescue: Rescue) -> str:
    """What tells a rescue from every other. Of user data, which holds a password's hash, nobody learns anything by it."""
    parts = (rescue.image.sha256, rescue.user_data.hex())
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _drop_rescue(folder: Path) -> None:
    """Remove what a guest was rescued with. Its own disk is not among that."""
    for path in folder.glob("rescue.*"):
        path.unlink(missing_ok=True)


def _write_tree(root: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder made anew; they may hold secrets, so nobody else may look."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o700)
    written: dict[bytes, Path] = {}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content in written:
            # Most versions say the same: on the drive, too, it is there once.
            path.hardlink_to(written[content])
        else:
            path.write_bytes(content)
            written[content] = path


def _tail(path: Path, tail_bytes: int) -> bytes:
    """The end of a log that virtlogd may have rotated a moment ago, into the same name with `.0`."""
    written = b""
    for each in (path, path.with_name(f"{path.name}.0")):
        missing = tail_bytes - len(written)
        if missing <= 0:
            break
        with contextlib.suppress(FileNotFoundError), each.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - missing))
            written = file.read(missing) + written
    return written
