"""The wheels that images are made with: fetched on this machine, by its own settings, and checked by hash.

So an image is built without a network, and where this machine gets packages from is written nowhere in it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tools.containers.debian import PYTHON, SUITE, BuildError

LOCKS: Final = ("runtime.txt", "build.txt")
GLIBC: Final = 36
"""The suite's libc is 2.36: wheels for it and for those before it run."""
_OLDEST_GLIBC: Final = 17


def wheels(requirements: Path, folder: Path) -> Path:
    """A folder with every wheel that the locks in `requirements` name; fetched if it is not there. Raises BuildError."""
    locked = b"\0".join((requirements / name).read_bytes() for name in LOCKS)
    made = folder / hashlib.sha256(locked + SUITE.encode()).hexdigest()[:12]
    if made.is_dir():
        return made
    shutil.rmtree(folder, ignore_errors=True)
    new = folder / "new"
    new.mkdir(parents=True)
    done = subprocess.run(
        (
            *(
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-input",
                "--disable-pip-version-check",
            ),
            *("--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(new)),
            *_target(),
            *(word for name in LOCKS for word in ("--requirement", str(requirements / name))),
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"pip could not fetch the wheels of {', '.join(LOCKS)}:\n{done.stderr[-3000:]}")
    new.rename(made)
    return made


def _target() -> list[str]:
    """The image's Python, said to a pip that may run on another."""
    words = ["--implementation", "cp", "--python-version", PYTHON]
    for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none"):
        words += ["--abi", abi]
    # pip takes a platform at its word, and knows of no compatibility with older ones.
    for minor in range(GLIBC, _OLDEST_GLIBC - 1, -1):
        words += ["--platform", f"manylinux_2_{minor}_x86_64"]
    return [*words, "--platform", "manylinux2014_x86_64"]
