"""The README on a machine that has nothing: a fresh Debian in a folder, a fresh clone, `make demo`, `make demo`, `make down`.

The machine is a root file system from debootstrap, with mount and process namespaces of its own; network and kernel are this machine's.
So what is installed, started and left behind can be counted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
FIRST_S = 300
"""What the first `make demo` may take, from packages to a line printed by the guest."""
SECOND_S = 60
TREE = "/root/cellfabric"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.owns_machine,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("debootstrap") is None, reason="needs debootstrap"),
]

ALONE = ("unshare", "--mount", "--propagation", "private")
"""What is mounted under this is mounted nowhere else, and gone with it: the folder can always be removed."""

INSIDE = r"""
set -euo pipefail
root=$1
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
# Not chroot: libvirt gives each guest a mount namespace, which takes a root that is a mount.
mkdir -p old
pivot_root . old
umount --lazy old
rmdir old
exec env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${@:2}"
"""


class BareMachine:
    """A root file system and what is run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, script: str, *, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """A shell script in namespaces that end with it."""
        return subprocess.run(
            (
                *(*ALONE, "--pid", "--fork", "--kill-child"),
                *(
                    "bash",
                    "-c",
                    INSIDE,
                    "bash",
                    str(self.folder),
                    *way_out(),
                    "bash",
                    "-euo",
                    "pipefail",
                    "-c",
                    script,
                ),
            ),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def out(self, script: str, *, timeout_s: float = 900) -> str:
        done = self.run(script, timeout_s=timeout_s)
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout


def way_out() -> list[str]:
    """How this machine's programs find their way to package servers, where that is set in the environment."""
    known = (
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "pip_index_url",
        "pip_cert",
        "ssl_cert_file",
        "pip_proxy",
    )
    return [f"{name}={value}" for name, value in os.environ.items() if name.lower() in known]


def mirror() -> str:
    """Where this machine gets Debian from."""
    targets = subprocess.run(
        ("apt-get", "indextargets", "--format", "$(ORIGIN)|$(COMPONENT)|$(SITE)", "Created-By: Packages"),
        capture_output=True,
        text=True,
        check=True,
    )
    sites = [line.split("|")[2] for line in targets.stdout.splitlines() if line.startswith("Debian|main|")]
    assert sites, "this machine's apt has no Debian source to build a bare machine from"
    return sites[0]


@pytest.fixture(scope="module")
def bare() -> Iterator[BareMachine]:
    folder = Path(tempfile.mkdtemp(prefix="bare-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        subprocess.run(
            (*ALONE, "debootstrap", "--variant=minbase", SUITE, folder, mirror()),
            check=True,
            capture_output=True,
        )
        for path in (
            *sorted(Path("/etc/apt/apt.conf.d").glob("*")),
            *(Path("/etc/resolv.conf"), Path("/etc/ssl/certs/ca-certificates.crt")),
            *Path("/usr/local/share/ca-certificates").glob("*.crt"),
        ):
            is_apts = path.parent.name == "apt.conf.d"
            if path.is_file() and (not is_apts or b"Acquire::http" in path.read_bytes()):
                target = folder / path.relative_to("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                shutil.copy(path, target)
        subprocess.run(("git", "clone", "-q", ROOT, f"{folder}{TREE}"), check=True)
        machine = BareMachine(folder)
        machine.out("apt-get -q update && apt-get -q install -y --no-install-recommends make git >/dev/null")
        yield machine
    finally:
        shutil.rmtree(folder)


SWEEP = f"""
leftovers() {{
    ps -eo pid=,args= | grep -v -e 'bash -euo' -e ' ps -eo' -e ' grep ' || true
    grep -e netns -e cellfabric -e libvirt /proc/self/mounts || true
    ls -d /var/lib/cellfabric /run/netns/* /run/libvirt 2>/dev/null || true
    ip -br link | grep '^cf-' || true
    nft list tables | grep -i fabric || true
}}
cd {TREE}
"""


def test_the_readme_takes_a_bare_machine_to_a_guest_and_back(bare: BareMachine) -> None:
    """One script, because the processes end with the namespaces that it runs in."""
    said = bare.out(
        SWEEP
        + """
        begun=$SECONDS; make demo 2>&1 | tee /root/first.log; echo "FIRST $((SECONDS - begun))"
        begun=$SECONDS; make demo 2>&1 | tee /root/second.log; echo "SECOND $((SECONDS - begun))"
        make down
        echo LEFT; leftovers
        """,
        timeout_s=1500,
    )

    took_s = {
        line.split()[0]: int(line.split()[1])
        for line in said.splitlines()
        if line.startswith(("FIRST ", "SECOND "))
    }
    assert said.count("Cellfabric guest") == 2
    assert "$ fabric server create" in said
    assert said.partition("LEFT\n")[2] == ""
    assert took_s["SECOND"] < SECOND_S
    assert took_s["FIRST"] < FIRST_S


def test_down_on_a_machine_without_a_fabric_is_no_error(bare: BareMachine) -> None:
    assert "no fabric" in bare.out(f"cd {TREE} && make down 2>&1")
