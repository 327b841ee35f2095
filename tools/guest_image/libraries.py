"""The shared libraries a program needs: read from its ELF headers, found in the packages it depends on."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tools.guest_image.errors import BuildError
from tools.guest_image.packages import dependencies, known

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tools.guest_image.packages import Package, PackageCache

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def needed(program: Path) -> set[str]:
    """Names (sonames) of the libraries a 64-bit little-endian ELF file asks for, its interpreter's among them.

    Source: System V ABI, chapter 5 (program header and dynamic section). A static program needs none.

    Raises:
        BuildError: the file is not such an ELF file.
    """
    data = program.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise BuildError(f"{program.name} is not a 64-bit x86 program: packages of another architecture?")
    (table,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]

    def file_offset(address: int) -> int:
        for kind, _flags, offset, start, _physical, length in segments:
            if kind == _PT_LOAD and start <= address < start + length:
                return int(offset + address - start)
        raise BuildError(f"{program.name} has a broken dynamic section")

    def text(offset: int) -> str:
        return data[offset : data.index(b"\0", offset)].decode()

    names: set[str] = set()
    for kind, _flags, offset, _start, _physical, length in segments:
        if kind == _PT_INTERP:
            names.add(text(offset).rsplit("/", 1)[-1])
        if kind == _PT_DYNAMIC:
            entries = list(struct.iter_unpack("<qQ", data[offset : offset + length]))
            entries = entries[: [tag for tag, _ in entries].index(_DT_NULL)]
            strings = file_offset(next(value for tag, value in entries if tag == _DT_STRTAB))
            names |= {text(strings + value) for tag, value in entries if tag == _DT_NEEDED}
    return names


def closure(programs: Iterable[Path], owners: list[Package], cache: PackageCache) -> dict[str, Path]:
    """Every library the programs need, directly or not: soname to file.

    Walks the packages' dependencies level by level and fetches only until the last library is found, so that
    maintainer-script dependencies (debconf and its like) are not downloaded for nothing.

    Raises:
        BuildError: no dependency of the packages carries a needed library.
    """
    found: dict[str, Path] = {}
    searched: list[Package] = []
    wanted = set().union(*(needed(program) for program in programs))
    level = list(owners)
    while True:
        searched += level
        while lacking := sorted(wanted - found.keys()):
            new = {name: file for name in lacking if (file := _carried(name, searched))}
            if not new:
                break
            found |= new
            wanted |= set().union(*(needed(file) for file in new.values()))
        if not lacking:
            return found
        names = {package.name for package in searched}
        level = cache.fetch([n for n in known(dependencies([p.name for p in level])) if n not in names])
        if not level:
            raise BuildError(f"no package carries the libraries {', '.join(lacking)}")


def _carried(soname: str, packages: list[Package]) -> Path | None:
    for package in packages:
        for folder in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"):
            if (file := package.root / folder / soname).is_file():
                return file.resolve()
    return None
