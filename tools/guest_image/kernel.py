"""The kernel, the modules the guest needs, and the initial RAM disk that finds and mounts its root."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.guest_image.errors import BuildError
from tools.guest_image.packages import dependencies

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tools.guest_image.packages import PackageCache

META_PACKAGE = "linux-image-cloud-amd64"

# What it takes to see a root disk. The second row is tried only when the first shows none: each costs boot time.
VIRTIO_DISK = ("virtio_pci", "virtio_blk")
SCSI_DISK = ("virtio_scsi", "sd_mod")
# What the running guest loads from its root file system: devices, then media and file systems of config drives.
GUEST_MODULES = (
    *VIRTIO_DISK,
    *SCSI_DISK,
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "virtio_console",
    "button",
    "evdev",
    "ata_piix",
    "sr_mod",
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "nls_iso8859_1",
    "nls_utf8",
)
# What the initial RAM disk's init calls, besides its shell's own words.
_INIT_APPLETS = (
    *(
        "basename",
        "blockdev",
        "cat",
        "dd",
        "insmod",
        "ls",
        "mount",
        "readlink",
        "sh",
        "sleep",
        "switch_root",
        "sync",
    ),
    *("tr", "usleep"),
)
_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """An unpacked kernel package."""

    release: str
    image: Path
    """The compressed kernel (`vmlinuz`), as boot loaders and `qemu -kernel` take it."""
    modules: dict[str, Path]
    """Every module of the package, by name as the kernel knows it (underscores, no suffix)."""

    def load_order(self, names: Sequence[str]) -> list[Path]:
        """Files of these modules and all they depend on, each after what it needs.

        The order is read from the modules themselves; `modules.dep` is made only when a kernel is installed.

        Raises:
            BuildError: the kernel has no such module.
        """
        order: dict[str, Path] = {}

        def visit(name: str) -> None:
            if name in order:
                return
            for needed in self.direct_dependencies(name):
                visit(needed)
            order[name] = self.modules[name]

        for name in names:
            visit(name)
        return list(order.values())

    def direct_dependencies(self, name: str) -> list[str]:
        """Modules that a module says it needs."""
        try:
            found = _DEPENDS.search(self.modules[name].read_bytes())
        except KeyError:
            raise BuildError(f"the kernel {self.release} has no module {name}") from None
        return [each.replace("-", "_") for each in found[1].decode().split(",") if each] if found else []


def fetch(cache: PackageCache) -> Kernel:
    """The kernel that the distribution's meta package stands for today.

    Raises:
        BuildError: the meta package names no kernel, or the kernel package is not laid out as Debian's are.
    """
    cache.fetch([META_PACKAGE])
    names = [name for name in dependencies([META_PACKAGE]) if name.startswith("linux-image-")]
    if len(names) != 1:
        raise BuildError(f"{META_PACKAGE} should depend on one kernel, not on {names or 'none'}")
    (package,) = cache.fetch(names)
    release = names[0].removeprefix("linux-image-")
    files = sorted((package.root / "lib/modules" / release).rglob("*.ko"))
    return Kernel(
        release=release,
        image=package.file(f"boot/vmlinuz-{release}"),
        modules={file.stem.replace("-", "_"): file for file in files},
    )


def modules_dep(kernel: Kernel, files: Sequence[Path], base: Path) -> str:
    """The text of `modules.dep` for these modules, with paths below `base`: what modprobe reads."""
    at = {file.stem.replace("-", "_"): file.relative_to(base) for file in files}

    def all_needed(name: str) -> Iterator[str]:
        for needed in kernel.direct_dependencies(name):
            yield needed
            yield from all_needed(needed)

    return "".join(
        f"{path}: {' '.join(str(at[needed]) for needed in dict.fromkeys(all_needed(name)))}".rstrip() + "\n"
        for name, path in at.items()
    )


def initrd(kernel: Kernel, init: Path, busybox: Path) -> bytes:
    """The initial RAM disk: `init`, a static busybox and the disk drivers, as an uncompressed cpio archive."""
    virtio, scsi = kernel.load_order(VIRTIO_DISK), kernel.load_order(SCSI_DISK)
    scsi = [file for file in scsi if file not in virtio]
    archive = _Cpio()
    for folder in ("bin", "dev", "modules", "newroot", "proc", "sys"):
        archive.folder(folder)
    archive.file("init", init.read_bytes(), 0o755)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in _INIT_APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    for name, files in (("virtio", virtio), ("scsi", scsi)):
        archive.file(f"modules/{name}", "".join(f"{file.name}\n" for file in files).encode(), 0o644)
        for file in files:
            archive.file(f"modules/{file.name}", file.read_bytes(), 0o644)
    return archive.finish()


class _Cpio:
    """A cpio archive of the kind the kernel unpacks ("newc"), owned by root and dated 1970.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def folder(self, name: str) -> None:
        self._entry(name, b"", 0o040755, links=2)

    def file(self, name: str, content: bytes, mode: int) -> None:
        self._entry(name, content, 0o100000 | mode, links=1)

    def link(self, name: str, target: str) -> None:
        self._entry(name, target.encode(), 0o120777, links=1)

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", b"", 0, links=1)
        self._data += bytes(-len(self._data) % 512)
        return bytes(self._data)

    def _entry(self, name: str, content: bytes, mode: int, *, links: int) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._data += bytes(-len(self._data) % 4) + content
        self._data += bytes(-len(self._data) % 4)
