"""The private libvirtd: what it leaves running, what it finds again, and that it can leave nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from hostd.driver.libvirt.mount_points import FOLDERS
from tests.conformance.namespaces import a_namespace
from tests.conformance.private_libvirt import ROOT, missing_programs, processes_mentioning

pytestmark = [
    pytest.mark.owns_machine,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}"),
]

GUEST = """<domain type='qemu'><name>guest</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64'>hvm</type></os>
<devices><serial type='pty'><log file='{log}' append='on'/></serial></devices></domain>"""


@pytest.fixture
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cf-daemon-"))
    folder.chmod(0o755)
    yield folder
    left = processes_mentioning(str(folder))
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture
def netns() -> Iterator[str]:
    with a_namespace("daemon") as name:
        yield name


@contextlib.contextmanager
def a_daemon(state: Path, netns: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = (sys.executable, "-m", "hostd.driver.libvirt.daemon", "--state", str(state), "--netns", netns)
    process = subprocess.Popen(
        (*command, "--hostname", "some-host", *options), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready {uri(state)}\n"
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def uri(state: Path) -> str:
    return f"qemu+unix:///system?socket={state}/run/libvirt-sock"


@contextlib.contextmanager
def connected(state: Path) -> Iterator[libvirt.virConnect]:
    connect = libvirt.open(uri(state))
    try:
        yield connect
    finally:
        connect.close()


def pid(state: Path, name: str) -> int:
    return int((state / "run" / name).read_text())


def is_running(number: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_it_is_another_host_with_a_network_of_its_own(state: Path, netns: str) -> None:
    with a_daemon(state, netns) as process, connected(state) as connect:
        assert connect.getHostname() == "some-host"
        for name in ("libvirtd", "virtlogd"):
            theirs = Path(f"/proc/{pid(state, f'{name}.pid')}/ns")
            assert theirs.joinpath("net").stat().st_ino == Path(f"/run/netns/{netns}").stat().st_ino
            assert theirs.joinpath("mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
        assert Path("/proc/self/ns/uts").readlink() != Path(f"/proc/{process.pid}/ns/uts").readlink()
    assert process.returncode == 0


def test_guests_and_their_consoles_outlive_it_and_are_found_again(state: Path, netns: str) -> None:
    with a_daemon(state, netns), connected(state) as connect:
        connect.defineXML(GUEST.format(log=state / "console.log")).create()
    guest, keeper = pid(state, "qemu/guest.pid"), pid(state, "virtlogd.pid")
    assert is_running(guest)
    assert is_running(keeper)
    assert not (state / "run" / "libvirtd.pid").exists()

    with a_daemon(state, netns, "--destroy-guests"), connected(state) as connect:
        assert connect.lookupByName("guest").isActive()
        assert (pid(state, "qemu/guest.pid"), pid(state, "virtlogd.pid")) == (guest, keeper)
    assert not is_running(guest)
    assert not is_running(keeper)


def test_a_sweep_ends_what_a_crash_left(state: Path, netns: str) -> None:
    with a_daemon(state, netns) as process, connected(state) as connect:
        connect.defineXML(GUEST.format(log=state / "console.log")).create()
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    left = [pid(state, name) for name in ("qemu/guest.pid", "libvirtd.pid", "virtlogd.pid")]
    assert all(map(is_running, left))

    command = (sys.executable, "-m", "hostd.driver.libvirt.daemon", "--state", str(state))
    subprocess.run((*command, "--hostname", "some-host", "--sweep"), cwd=ROOT, check=True)

    assert not any(map(is_running, left))


BARE = """
set -eu
mount --make-rprivate /
for folder in /etc /var /run; do
    scratch=$STATE/scratch$folder
    mkdir -p $scratch
    mount -t tmpfs none $scratch
    mkdir $scratch/upper $scratch/work
    mount -t overlay -o lowerdir=$folder,upperdir=$scratch/upper,workdir=$scratch/work none $folder
done
rm -rf $FOLDERS
mkdir $THEIRS
exec "$@"
"""
"""A machine on which libvirt was never installed, but for one empty folder that somebody made."""

TWO_LIVES = """
import os, signal, subprocess, sys
from pathlib import Path

folders = [Path(word) for word in os.environ["FOLDERS"].split()]
command = (sys.executable, "-m", "hostd.driver.libvirt.daemon", "--hostname", "h", "--state")

def there():
    return sorted(str(folder) for folder in folders if folder.exists())

lives = []
for name in ("one", "two"):
    process = subprocess.Popen((*command, f"{os.environ['STATE']}/{name}"), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("ready ")
    lives.append(process)
for process, end in zip(lives, sys.argv[1:]):
    print(len(there()))
    process.send_signal(getattr(signal, end))
    process.wait()
subprocess.run((*command, f"{os.environ['STATE']}/two", "--sweep"), check=True)
print(*there())
"""


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_the_last_leaves_a_machine_as_the_first_found_it(state: Path, end: str) -> None:
    theirs = "/var/cache/libvirt"
    command = ("unshare", "--mount", "--net", "sh", "-c", BARE, "sh", sys.executable, "-c", TWO_LIVES)
    environment = {
        "PATH": os.environ["PATH"],
        "STATE": str(state),
        "FOLDERS": " ".join(target for _, target in FOLDERS),
        "THEIRS": theirs,
    }

    ended = subprocess.run(
        (*command, "SIGTERM", end), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )

    assert ended.stdout.splitlines() == ["5", "5", theirs], ended.stderr


@pytest.mark.parametrize("name", ["libvirtd", "virtlogd"])
def test_what_dies_is_started_again(state: Path, netns: str, name: str) -> None:
    with a_daemon(state, netns):
        first = pid(state, f"{name}.pid")
        subprocess.run(("kill", "-9", str(first)), check=True)
        for _ in range(1200):
            with contextlib.suppress(OSError, ValueError):
                if pid(state, f"{name}.pid") != first:
                    break
            subprocess.run(("sleep", "0.05"), check=True)
        assert is_running(pid(state, f"{name}.pid"))


def test_a_libvirtd_that_cannot_start_is_said_and_not_tried_for_ever(state: Path, netns: str) -> None:
    (state / "run").mkdir()
    (state / "run" / "libvirtd.pid").mkdir()
    command = (sys.executable, "-m", "hostd.driver.libvirt.daemon", "--state", str(state), "--netns", netns)

    ended = subprocess.run(
        (*command, "--hostname", "some-host"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == 1
    assert "libvirtd does not start" in ended.stderr


def test_a_state_folder_too_deep_for_a_socket_is_said(state: Path) -> None:
    deep = state / ("x" * 100)
    command = (sys.executable, "-m", "hostd.driver.libvirt.daemon", "--state", str(deep), "--hostname", "h")

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert "107 bytes" in ended.stderr
    assert not deep.exists()
