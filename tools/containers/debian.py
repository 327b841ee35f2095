"""Root file systems of Debian, as archives that `docker import` takes: no image registry is asked for a base.

They are made by mmdebstrap from the mirror that this machine's apt uses, with apt's own checking of signatures.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

SUITE: Final = "bookworm"
PYTHON: Final = "3.11"
"""The suite's Python: what wheels must be for."""
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

DPKG_OPTIONS: Final = (
    # Nobody reads manuals there, and the archive is written once: an fsync for each file is for machines that may lose power.
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "force-unsafe-io",
)


class BuildError(Exception):
    """An image cannot be built; the message says why."""


@dataclass(frozen=True, slots=True)
class RootFs:
    """One root file system: the packages that it has besides Debian's smallest set."""

    name: str
    packages: tuple[str, ...]

    @property
    def digest(self) -> str:
        """What it is made of, shortly."""
        words = "\0".join((SUITE, *self.packages, "", *DPKG_OPTIONS))
        return hashlib.sha256(words.encode()).hexdigest()[:12]


SERVER: Final = RootFs("server", ("python3",))
HOST: Final = RootFs(
    "host",
    (
        "python3",
        "python3-libvirt",  # hostd's binding: Debian's is compiled against the very libvirt beside it
        "qemu-system-x86",
        "qemu-utils",
        "libvirt-daemon",  # libvirtd and virtlogd, without the units of -system: nothing here runs units
        "libvirt-daemon-driver-qemu",
        "dnsmasq-base",
        "nftables",
        "iproute2",
        "conntrack",
        "genisoimage",
        "procps",
        "openssh-client",  # to look into a guest from its host
    ),
)


_IN_MEMORY: Final = 'mount -t tmpfs -o mode=0755 tmpfs "$TMPDIR" && exec mmdebstrap "$@"'
"""Its file system is this process's alone, and gone with it, however that ends. No disk is waited for either."""


@contextlib.contextmanager
def archive(wanted: RootFs) -> Iterator[IO[bytes]]:
    """A root file system as a tar stream, while it is made. Raises BuildError, at the end of the block, if what was read is not all."""
    command = (
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", _IN_MEMORY, "mmdebstrap"),
        *("--quiet", "--mode=root", "--variant=minbase", "--format=tar"),
        *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
        # minbase is everything that is required, and apt; recommendations would double it.
        *("--aptopt=Apt::Install-Recommends false", f"--include={','.join(wanted.packages)}"),
        *(SUITE, "-", *sources()),
    )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as words:
        making = subprocess.Popen(
            command,
            env={**_environment(), "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
        )
        assert making.stdout is not None
        try:
            with making.stdout:
                yield making.stdout
        finally:
            # Whoever has stopped reading ends it by that.
            status = making.wait()
        if status != 0:
            words.seek(0)
            said = words.read()[-3000:].decode(errors="replace")
            raise BuildError(f"mmdebstrap (which `tools/setup test` installs) ended with {status}:\n{said}")


def sources() -> list[str]:
    """Lines for apt: the mirrors that this machine gets Debian and its security updates from. Raises BuildError."""
    # The first of each label is the machine's choice.
    found = dict(reversed(list(_targets())))
    if "Debian" not in found:
        raise BuildError("this machine's apt has no Debian source to build images from")
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    lines = [f"deb {signed}{found['Debian']} {suite} main" for suite in (SUITE, f"{SUITE}-updates")]
    if "Debian-Security" in found:
        lines.append(f"deb {signed}{found['Debian-Security']} {SUITE}-security main")
    return lines


def _targets() -> Iterator[tuple[str, str]]:
    said = _output(
        "apt-get",
        "indextargets",
        "--format",
        "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(SITE)",
        "Created-By: Packages",
    )
    for line in said.splitlines():
        origin, label, component, site = line.split("|")
        if (origin, component) == ("Debian", "main"):
            yield label, site


def _environment() -> dict[str, str]:
    """This one's, and the proxy that apt is told to use: mmdebstrap's apt has a configuration of its own."""
    said = dict(os.environ)
    for scheme in ("http", "https"):
        line = _output("apt-config", "shell", "proxy", f"Acquire::{scheme}::Proxy").strip()
        if line:
            said.setdefault(f"{scheme}_proxy", line.partition("=")[2].strip("'"))
    return said


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError) as failed:
        raise BuildError(
            f"{command[0]} failed: images are built on Debian and its relatives: {failed}"
        ) from None
