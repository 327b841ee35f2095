"""A libvirtd that only one test module uses, in namespaces of its own, and the proof that it left nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("libvirtd", "virtlogd", "qemu-system-x86_64", "qemu-img")


def missing_programs(*also: str) -> list[str]:
    """What would have to be installed."""
    return [name for name in (*NEEDED, *also) if shutil.which(name) is None]


@dataclass(frozen=True)
class Machine:
    """One simulated host: its folder (searchable by guests' users, unlike pytest's own), namespace and libvirt."""

    folder: Path
    netns: str
    process: subprocess.Popen[str]
    hostname: str = "host-under-test"

    @property
    def libvirt_state(self) -> Path:
        return self.folder / "lv"

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.libvirt_state}/run/libvirt-sock"

    def pid_of(self, name: str) -> int:
        """A daemon's or a domain's process."""
        folder = self.libvirt_state / "run"
        file = folder / f"{name}.pid" if name.endswith("d") else folder / "qemu" / f"{name}.pid"
        return int(file.read_text())

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid_of(name), number)


def processes_mentioning(word: str) -> list[str]:
    """Command lines with the word in them: whatever a test started carries its folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if word in line:
                    found.append(f"{entry.name}: {line}")
    return found


@contextlib.contextmanager
def a_machine(name: str) -> Iterator[Machine]:
    """A network namespace with a libvirtd in it. Fails at the end when a process or the namespace is left."""
    folder = Path(tempfile.mkdtemp(prefix=f"cf-{name}-"))
    folder.chmod(0o755)
    netns = folder.name
    subprocess.run(("ip", "netns", "add", netns), check=True)
    try:
        subprocess.run(("ip", "-n", netns, "link", "set", "lo", "up"), check=True)
        command = (sys.executable, "-m", "hostd.driver.libvirt.daemon", "--destroy-guests")
        process = subprocess.Popen(
            (*command, "--state", str(folder / "lv"), "--netns", netns, "--hostname", "host-under-test"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready ")
            yield Machine(folder, netns, process)
        finally:
            process.terminate()
            process.communicate(timeout=60)
        assert process.returncode == 0
        assert processes_mentioning(str(folder)) == []
        assert subprocess.run(("ip", "netns", "pids", netns), capture_output=True, check=True).stdout == b""
    finally:
        subprocess.run(("ip", "netns", "del", netns), check=True)
        shutil.rmtree(folder)
