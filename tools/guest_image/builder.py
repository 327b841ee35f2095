"""A build as a whole: what comes out of it, when there is nothing to do, and the command that people run."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.guest_image.commands import missing_programs
from tools.guest_image.errors import BuildError
from tools.guest_image.locking import locked
from tools.guest_image.packages import PackageCache

MANIFEST = "manifest.json"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """An image that is built from Debian's packages.

    `make` fills the empty folder that it is given with all of `outputs` (the first is the disk to boot) and returns what the manifest is to
    say besides; `sources` are the files and folders that shape the image, below `root`.
    """

    what: str
    module: str
    folder: str
    outputs: tuple[str, ...]
    root: Path
    sources: tuple[str, ...]
    make: Callable[[Path, PackageCache, Say], Mapping[str, object]]

    def build(self, out: Path, cache: Path, *, refresh: bool, say: Say) -> Path:
        """Build what `out` lacks, and return the path of the manifest.

        The outputs appear together or not at all, the manifest last. Nothing is done, and apt is not asked, when they were
        built from these very sources, unless `refresh` asks for newer packages.

        Raises:
            BuildError: a program or package is missing, or failed.
        """
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            if not refresh and not self.stale(out):
                say(f"{self.what} is up to date: {out / self.outputs[0]}")
                return out / MANIFEST
            self._require_host()
            started = time.monotonic()
            for leftover in out.glob(".build-*"):  # of a build that was killed: nobody else works here now
                shutil.rmtree(leftover)
            work = Path(tempfile.mkdtemp(dir=out, prefix=".build-"))
            try:
                manifest = self._build_in(work, PackageCache(cache), say)
                (out / MANIFEST).unlink(
                    missing_ok=True
                )  # from here until the new one: no claim about the others
                for name in self.outputs:
                    (work / name).replace(out / name)
                (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
                (work / MANIFEST).replace(out / MANIFEST)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            say(f"{self.what} built in {time.monotonic() - started:.1f} s: {out / self.outputs[0]}")
        return out / MANIFEST

    def stale(self, out: Path) -> str | None:
        """Why the outputs in `out` cannot be used as they are; None when they can. Looks at sizes, not at contents."""
        try:
            manifest = json.loads((out / MANIFEST).read_text())
            recorded = manifest["files"]
            if manifest["sources"] != self._sources_digest():
                return "it was built from other sources"
            for name in self.outputs:
                if (out / name).stat().st_size != recorded[name]["bytes"]:
                    return f"{name} is not as it was built"
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (ValueError, KeyError, TypeError):
            return f"{MANIFEST} cannot be read"
        return None

    def check(self, out: Path) -> str | None:
        """Like `stale`, and compares contents by their hashes too: reads every byte."""
        if reason := self.stale(out):
            return reason
        recorded = json.loads((out / MANIFEST).read_text())["files"]
        changed = [name for name in self.outputs if _sha256(out / name) != recorded[name]["sha256"]]
        return f"{', '.join(changed)} changed since it was built" if changed else None

    def main(self, description: str | None) -> int:
        """Run the command; returns its exit status."""
        arguments = self._arguments(description)
        # Ending by exception, not at once, takes the half-made files along.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        out, cache = arguments.out.resolve(), arguments.cache.resolve()
        if arguments.check:
            reason = self.check(out)
            print(
                f"{self.what}: {reason}: build it again"
                if reason
                else f"{self.what} is whole: {out / self.outputs[0]}"
            )
            return 1 if reason else 0
        try:
            self.build(out, cache, refresh=arguments.refresh, say=lambda text: print(text, flush=True))
        except BuildError as error:
            print(f"{self.what}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        return 0

    def _arguments(self, description: str | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(prog=f"python3 -m {self.module}", description=description)
        parser.add_argument(
            "--out", type=Path, default=Path(self.folder), help="folder of the results (default: %(default)s)"
        )
        parser.add_argument(
            "--cache",
            type=Path,
            default=Path(".cache/packages"),
            help="folder of unpacked packages (default: %(default)s)",
        )
        parser.add_argument(
            "--refresh", action="store_true", help="build again from the newest packages that apt knows"
        )
        parser.add_argument(
            "--check", action="store_true", help="only tell whether the results are there, whole and current"
        )
        return parser.parse_args()

    def _build_in(self, work: Path, cache: PackageCache, say: Say) -> dict[str, object]:
        said = self.make(work, cache, say)
        return {
            "sources": self._sources_digest(),
            **said,
            "files": {
                name: {"bytes": (work / name).stat().st_size, "sha256": _sha256(work / name)}
                for name in self.outputs
            },
            "packages": {
                package.name: {"version": package.version, "sha256": package.sha256} for package in cache.used
            },
        }

    def _require_host(self) -> None:
        if platform.machine() != "x86_64":
            raise BuildError(f"the {self.what} is built on x86_64 only: this machine is {platform.machine()}")
        if missing := missing_programs():
            raise BuildError(
                f"missing {', '.join(missing)}: run 'apt-get install {' '.join(dict.fromkeys(missing.values()))}'"
            )

    def _sources_digest(self) -> str:
        """A hash over every file that shapes the image: names, executable bits and contents."""
        digest = hashlib.sha256()
        for path in self._source_files():
            executable = bool(path.stat().st_mode & 0o100)
            digest.update(f"{path.relative_to(self.root)}\0{executable}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _source_files(self) -> Iterator[Path]:
        for source in self.sources:
            path = self.root / source
            for each in [path] if path.is_file() else sorted(path.rglob("*")):
                if each.is_file() and each.suffix != ".pyc":
                    yield each


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
