"""A guest in plain QEMU under software emulation, with user-mode networking: nothing of it needs root or outlives it."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

PATIENCE_S = 240
"""How long anything may take before the test gives up. Emulation on a busy machine is slow; no test asserts speed."""


class GuestFailed(AssertionError):
    """The guest did not do in time what was waited for; carries the end of its console."""


class Machine:
    """One guest, from power-on to power-off. Use as a context manager; leaving it ends the process."""

    def __init__(self, *arguments: str, key: Path, machine: str = "pc") -> None:
        """Describe the guest.

        `arguments` go to QEMU as they are: disks and the network card, which must use the network called `lan`.
        `key` is the private SSH key to log in with.
        """
        self._arguments = arguments
        self._key = key
        self._machine = machine
        # restrict: nothing but the ports given here passes; the guest cannot reach the machine or beyond.
        self._net = "user,id=lan,restrict=on"
        self._exit = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0

    def with_network(self, options: str) -> Self:
        """Use these further options of QEMU's user-mode network."""
        self._net += f",{options}"
        return self

    def __enter__(self) -> Self:
        # Not pytest's folder: the path of a Unix socket must stay under 108 characters.
        self._folder = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="guest-")))
        self._port = _free_port()
        self._console.touch()
        self._process = self._exit.enter_context(
            subprocess.Popen(
                [
                    *("qemu-system-x86_64", "-accel", "tcg", "-machine", self._machine, "-m", "256"),
                    *("-nodefaults", "-display", "none", "-serial", f"file:{self._console}"),
                    *("-qmp", f"unix:{self._folder}/qmp,server=on,wait=off"),
                    *("-netdev", f"{self._net},hostfwd=tcp:127.0.0.1:{self._port}-:22"),
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
            )
        )
        self._exit.callback(self._process.kill)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def console(self) -> str:
        """Everything the guest has printed on its serial console so far."""
        return self._console.read_bytes().decode(errors="replace").replace("\r", "")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until a line of the console, after the last one waited for, matches; return the match.

        Raises:
            GuestFailed: it does not come, or QEMU ended.
        """
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            ended = self._running.poll() is not None
            if match := re.compile(pattern, re.MULTILINE).search(self.console, self._read):
                self._read = match.end()
                return match
            if ended:
                break
            time.sleep(0.1)
        raise GuestFailed(f"no {pattern!r} on the console, which ends:\n{self.console[-3000:]}")

    def ready(self) -> str:
        """Wait until the boot is over; return the host name the guest gives itself."""
        return self.wait_for(r"^GUEST-READY (\S+) up=[\d.]+$")[1]

    def host_key(self) -> str:
        """The SSH host key that the console showed last, as `ssh-ed25519 AAAA...`."""
        block = r"-----BEGIN SSH HOST KEY KEYS-----\n(ssh-ed25519 \S+) \S+\n-----END SSH HOST KEY KEYS-----"
        shown: list[str] = re.findall(block, self.console)
        return shown[-1]

    def ssh(
        self, command: str, *, user: str = "root", key: Path | None = None, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest. The server must prove that it has the key which the console showed."""
        known_hosts = self._folder / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{self._port} {self.host_key()}\n")
        return subprocess.run(
            [
                *("ssh", "-F", "none", "-p", str(self._port), "-i", str(key or self._key)),
                *("-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"),
                *("-o", f"UserKnownHostsFile={known_hosts}", "-o", "StrictHostKeyChecking=yes"),
                *("-o", "LogLevel=ERROR", *options, f"{user}@127.0.0.1", command),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def run(self, command: str, *, user: str = "root") -> str:
        """Run a command in the guest that must succeed; return what it printed.

        Raises:
            GuestFailed: login or command failed.
        """
        done = self.ssh(command, user=user)
        if done.returncode != 0:
            raise GuestFailed(f"{command!r} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def press_power_button(self) -> None:
        """Do what a hypervisor does to shut a guest down politely."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(f"{self._folder}/qmp")
            with connection.makefile("rw") as stream:
                stream.readline()
                for name in ("qmp_capabilities", "system_powerdown"):
                    stream.write(json.dumps({"execute": name}) + "\n")
                    stream.flush()
                    _answer(stream)

    def wait_off(self) -> int:
        """Wait until the guest has powered itself off; return QEMU's exit status."""
        return self._running.wait(PATIENCE_S)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def _console(self) -> Path:
        return self._folder / "console.log"


def disk(path: Path, *, form: str = "qcow2", read_only: bool = False) -> tuple[str, ...]:
    """QEMU arguments for a virtio disk."""
    return ("-drive", f"file={path},format={form},if=virtio,readonly={'on' if read_only else 'off'}")


CARD = ("-device", "virtio-net-pci,netdev=lan,romfile=", "-device", "virtio-rng-pci")
"""QEMU arguments for the network card, and the random numbers that an SSH server needs early."""


def overlay(base: Path, path: Path, *, size: str, form: str = "qcow2") -> Path:
    """A new disk of `size` on top of an image, which stays as it is."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", form, "-b", str(base), str(path), size]
    subprocess.run(command, check=True)
    return path


def config_drive(folder: Path, metadata: dict[str, Any], user_data: str | None) -> Path:
    """A config drive as Nova makes it: ISO 9660, labelled config-2."""
    return _iso(write_metadata(folder / "drive", metadata, user_data), folder)


def as_drive(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The same of files by their paths."""
    for name, content in files.items():
        path = folder / "drive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return _iso(folder / "drive", folder)


def _iso(content: Path, folder: Path) -> Path:
    image = folder / "config-drive.iso"
    command = f"genisoimage -quiet -no-pad -ldots -allow-lowercase -allow-multidot -l -J -r -V config-2 -o {image} {content}"
    subprocess.run(shlex.split(command), check=True, stderr=subprocess.DEVNULL)
    return image


def write_metadata(folder: Path, metadata: dict[str, Any], user_data: str | None) -> Path:
    """The files of `/openstack/latest`, below `folder`, as the config drive and the metadata service show them."""
    latest = folder / "openstack" / "latest"
    latest.mkdir(parents=True)
    (latest / "meta_data.json").write_text(json.dumps(metadata))
    if user_data is not None:
        (latest / "user_data").write_text(user_data)
    return folder


def new_key(path: Path) -> Path:
    """A new SSH key pair; returns the private half's path."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)], check=True
    )
    return path


def public(key: Path) -> str:
    """The public half, as OpenStack gives it: with the line's end."""
    return key.with_suffix(".pub").read_text()


def _answer(stream: Any) -> None:
    while "return" not in (message := json.loads(stream.readline())):
        assert "error" not in message, message


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
