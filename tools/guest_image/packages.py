"""Debian packages, fetched with apt and unpacked into a cache: never installed, no root needed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tools.guest_image.commands import run
from tools.guest_image.errors import BuildError
from tools.guest_image.locking import locked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$")
_UNKNOWN = re.compile(
    r"E: (?:Unable to locate package|Can't find a source to download).*|E: No packages found"
)
_STALE_REMEDY = "run 'apt-get update' and try again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One Debian package at the version apt would install, unpacked at `root`."""

    name: str
    version: str
    sha256: str
    root: Path

    def find(self, pattern: str) -> Path | None:
        """The first file (in name order) that matches the glob pattern, below the package's root."""
        return next(iter(sorted(self.root.glob(pattern))), None)

    def file(self, path: str) -> Path:
        """A file the package is known to carry.

        Raises:
            BuildError: it is not there: a newer Debian has moved it, and this build has to follow.
        """
        found = self.root / path
        if not found.is_file():
            raise BuildError(f"the package {self.name} {self.version} has no /{path}")
        return found


class PackageCache:
    """Packages already fetched. Any number of builds may share one; a package appears in it whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._debs = folder / "packages"
        self._unpacked = folder / "unpacked"
        self._seen: dict[str, Package] = {}
        for each in (self._debs, self._unpacked):
            each.mkdir(parents=True, exist_ok=True)

    @property
    def used(self) -> tuple[Package, ...]:
        """Every package asked for so far, by name."""
        return tuple(self._seen[name] for name in sorted(self._seen))

    def fetch(self, names: Sequence[str]) -> list[Package]:
        """These packages, unpacked. Downloads what the cache lacks.

        Raises:
            BuildError: apt does not know a package, or its lists are older than the mirror.
        """
        wanted = [name for name in names if name not in self._seen]
        if wanted:
            files = _candidates(wanted)
            with locked(self._debs):
                missing = [name for name, (file, sha256) in files.items() if not self._has(file, sha256)]
                if missing:
                    self._download(missing)
                for name, (file, sha256) in files.items():
                    self._seen[name] = self._unpack(name, file, sha256)
        return [self._seen[name] for name in names]

    def _has(self, file: str, sha256: str) -> bool:
        deb = self._debs / file
        return (self._unpacked / sha256).is_dir() or (deb.is_file() and _sha256(deb) == sha256)

    def _download(self, names: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory(dir=self._debs, prefix=".fetch-") as folder:
            try:
                run(["apt-get", "download", "-qq", *_apt_options(), *names], cwd=Path(folder))
            except BuildError as error:
                raise BuildError(f"cannot download {' '.join(names)}: {_STALE_REMEDY}; {error}") from error
            for deb in Path(folder).glob("*.deb"):
                deb.replace(self._debs / deb.name)

    def _unpack(self, name: str, file: str, sha256: str) -> Package:
        root = self._unpacked / sha256
        if not root.is_dir():
            deb = self._debs / file
            if not deb.is_file() or _sha256(deb) != sha256:
                raise BuildError(f"{file} is not what apt's lists promise: {_STALE_REMEDY}")
            partial = Path(tempfile.mkdtemp(dir=self._unpacked, prefix=".unpack-"))
            try:
                run(["dpkg-deb", "--extract", deb, partial])
                partial.chmod(0o755)
                partial.rename(root)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            deb.unlink()  # unpacked and named by its hash: the archive has nothing to add
        return Package(name=name, version=unquote(file.split("_")[1]), sha256=sha256, root=root)


def dependencies(names: Sequence[str]) -> Iterator[str]:
    """What these packages depend on directly, in their order, the first of each choice, without duplicates."""
    if not names:
        return
    seen = set(names)
    for line in run(["apt-cache", "show", "--no-all-versions", *names]).splitlines():
        field, _, value = line.partition(": ")
        if field not in {"Depends", "Pre-Depends"}:
            continue
        for choice in value.split(","):
            name = choice.split("|")[0].split("(")[0].strip().split(":")[0]
            if name and name not in seen:
                seen.add(name)
                yield name


def known(names: Iterable[str]) -> list[str]:
    """Those of the names that apt can download; the others are virtual (`debconf-2.0`) or of another suite."""
    policies = run(["apt-cache", "policy", *names])
    return re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (?!\(none\))", policies, flags=re.MULTILINE)


def _candidates(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The file name and hash of each package's archive. Reads apt's lists only; no network."""
    try:
        printed = run(["apt-get", "download", "--print-uris", *_apt_options(), *names])
    except BuildError as error:
        if _UNKNOWN.search(str(error)):
            raise BuildError(
                f"apt does not know all of {' '.join(names)}: {_STALE_REMEDY}; {error}"
            ) from error
        raise
    found = {}
    for line in printed.splitlines():
        if match := _URI_LINE.match(line):
            found[match["file"].split("_")[0]] = (match["file"], match["sha256"])
    if lacking := [name for name in names if name not in found]:
        raise BuildError(f"apt offers no SHA-256-checked archive of {' '.join(lacking)}: {_STALE_REMEDY}")
    return found


def _apt_options() -> list[str]:
    # apt run by root downloads as the user _apt, which cannot write to a private cache folder and says so at length.
    return ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
