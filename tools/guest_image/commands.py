"""Running the programs the build needs, with errors that say which one is missing or what it said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from tools.guest_image.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Programs of the host, and the Debian package each comes from. Everything else is unpacked into the cache.
HOST_PROGRAMS = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "qemu-img": "qemu-utils",
}
# debugfs and mke2fs live in /sbin, which an ordinary user's PATH may lack.
_PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def missing_programs() -> dict[str, str]:
    """Host programs that are not there, each with the Debian package that brings it."""
    return {
        program: package
        for program, package in HOST_PROGRAMS.items()
        if shutil.which(program, path=_PATH) is None
    }


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    path_first: Path | None = None,
    complaint: str | None = None,
) -> str:
    """Run a program to its end and return what it printed.

    `path_first` is searched before the host's PATH: programs that call others of the same package find them there.
    `complaint` is a pattern for lines of the error output which mean failure in a program whose status is 0 all the same.

    Raises:
        BuildError: the program is missing, or failed; the message carries the end of what it said.
    """
    path = f"{path_first}:{_PATH}" if path_first else _PATH
    name = str(command[0])
    program = shutil.which(name, path=path)
    if program is None:
        package = HOST_PROGRAMS.get(name)
        remedy = f": install it with 'apt-get install {package}'" if package else ""
        raise BuildError(f"the program {name} is missing{remedy}")
    done = subprocess.run(
        [program, *map(str, command[1:])],
        cwd=cwd,
        # One language for messages that are matched, one umask's worth of surprises less.
        env={**os.environ, "LC_ALL": "C", "PATH": path, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if complaint and (found := re.search(complaint, done.stderr, flags=re.MULTILINE)):
        raise BuildError(f"{name} failed: {found[0]}")
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-6:]
        raise BuildError(f"{name} failed with status {done.returncode}: " + "\n  ".join(said))
    return done.stdout
