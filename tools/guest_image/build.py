"""The build as a whole: what goes in, what comes out, and when there is nothing to do."""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tools.guest_image import disk, kernel, rootfs
from tools.guest_image.commands import missing_programs
from tools.guest_image.errors import BuildError
from tools.guest_image.locking import locked
from tools.guest_image.packages import PackageCache

if TYPE_CHECKING:
    from collections.abc import Callable

DISK_IMAGE = "cellfabric-guest.qcow2"
"""Boots by itself from a BIOS."""
ROOT_IMAGE = "cellfabric-guest-root.ext4"
"""The root file system alone: the disk of an image that is given with a kernel and a RAM disk."""
KERNEL = "vmlinuz"
INITRD = "initrd.img"
MANIFEST = "manifest.json"
OUTPUTS = (DISK_IMAGE, ROOT_IMAGE, KERNEL, INITRD)

_SOURCES = Path(__file__).parent
_INIT = _SOURCES / "overlay" / "initramfs" / "init"


def build(out: Path, cache: Path, *, refresh: bool, say: Callable[[str], None]) -> Path:
    """Build what `out` lacks, and return the path of the manifest.

    The outputs appear together or not at all, the manifest last. Nothing is done, and apt is not asked, when they were
    built from these very sources, unless `refresh` asks for newer packages.

    Raises:
        BuildError: a program or package is missing, or failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if not refresh and not stale(out):
            say(f"guest image is up to date: {out / DISK_IMAGE}")
            return out / MANIFEST
        _require_host()
        started = time.monotonic()
        for leftover in out.glob(".build-*"):  # of a build that was killed: nobody else works here now
            shutil.rmtree(leftover)
        work = Path(tempfile.mkdtemp(dir=out, prefix=".build-"))
        try:
            manifest = _build_in(work, PackageCache(cache), say)
            (out / MANIFEST).unlink(missing_ok=True)  # from here until the new one: no claim about the others
            for name in OUTPUTS:
                (work / name).replace(out / name)
            (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            (work / MANIFEST).replace(out / MANIFEST)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        say(f"guest image built in {time.monotonic() - started:.1f} s: {out / DISK_IMAGE}")
    return out / MANIFEST


def stale(out: Path) -> str | None:
    """Why the outputs in `out` cannot be used as they are; None when they can. Looks at sizes, not at contents."""
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        recorded = manifest["files"]
        if manifest["sources"] != _sources_digest():
            return "it was built from other sources"
        for name in OUTPUTS:
            if (out / name).stat().st_size != recorded[name]["bytes"]:
                return f"{name} is not as it was built"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    return None


def check(out: Path) -> str | None:
    """Like `stale`, and compares contents by their hashes too: reads every byte."""
    if reason := stale(out):
        return reason
    recorded = json.loads((out / MANIFEST).read_text())["files"]
    changed = [name for name in OUTPUTS if _sha256(out / name) != recorded[name]["sha256"]]
    return f"{', '.join(changed)} changed since it was built" if changed else None


def _build_in(work: Path, cache: PackageCache, say: Callable[[str], None]) -> dict[str, object]:
    say("fetching the kernel, busybox, the SSH server and their libraries")
    linux = kernel.fetch(cache)
    (static,) = cache.fetch(["busybox-static"])
    say(f"making the initial RAM disk for Linux {linux.release}")
    shutil.copyfile(linux.image, work / KERNEL)
    archive = kernel.initrd(linux, _INIT, static.file("bin/busybox"))
    (work / INITRD).write_bytes(gzip.compress(archive, mtime=0))
    say("laying out the root file system")
    root = work / "root"
    root.mkdir()
    rootfs.assemble(root, linux, cache)
    disk.ext4(root, work / ROOT_IMAGE, owners=rootfs.OWNERS)
    say("joining the disk")
    raw = work / "disk.raw"
    disk.bootable(raw, kernel=work / KERNEL, initrd=work / INITRD, root=work / ROOT_IMAGE, cache=cache)
    disk.qcow2(raw, work / DISK_IMAGE)
    return {
        "sources": _sources_digest(),
        "kernel_release": linux.release,
        "kernel_command_line": disk.KERNEL_COMMAND_LINE,
        "disk_bytes": raw.stat().st_size,
        "files": {
            name: {"bytes": (work / name).stat().st_size, "sha256": _sha256(work / name)} for name in OUTPUTS
        },
        "packages": {
            package.name: {"version": package.version, "sha256": package.sha256} for package in cache.used
        },
    }


def _require_host() -> None:
    if platform.machine() != "x86_64":
        raise BuildError(f"the guest image is built on x86_64 only: this machine is {platform.machine()}")
    if missing := missing_programs():
        raise BuildError(
            f"missing {', '.join(missing)}: run 'apt-get install {' '.join(dict.fromkeys(missing.values()))}'"
        )


def _sources_digest() -> str:
    """A hash over every file that shapes the image: names, executable bits and contents."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            executable = bool(path.stat().st_mode & 0o100)
            digest.update(f"{path.relative_to(_SOURCES)}\0{executable}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
