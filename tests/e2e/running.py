"""A fabric of a test's own: started, spoken to, broken and ended by the commands that people use."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from fabric.client import Client
from fabric.client.retry import RetrySettings

ROOT = Path(__file__).resolve().parents[2]
FABRIC = Path(sysconfig.get_path("scripts")) / "fabric"
GUEST_IMAGE = ROOT / ".cache" / "guest-image"
CLOUD_IMAGE = ROOT / ".cache" / "cloud-image"

UP_TIMEOUT_S = 150
"""For a whole start beside whatever else the machine does; the start itself gives up earlier."""
CREATE_TIMEOUT_S = 120.0

IMPATIENT = RetrySettings(attempts=1)
"""For tests that are about an answer that says no: nobody asks again behind their back."""

T = TypeVar("T")
_NUMBERS = count()


class Said(AssertionError):
    """A command ended otherwise than expected; with its words."""


@dataclass(kw_only=True)
class Running:
    """One fabric, in a state folder of its own."""

    state: Path
    up_words: tuple[str, ...] = ()
    _clients: list[Client] = field(default_factory=list)

    # ---------------------------------------------------------------- commands

    def run(
        self, *words: str, cloud: str = "admin", timeout_s: float = CREATE_TIMEOUT_S, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Any `fabric` command."""
        return subprocess.run(
            (str(FABRIC), *words),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")},
                "FABRIC_CLOUDS_FILE": str(self.clouds_file),
                "FABRIC_CLOUD": cloud,
                "FABRIC_DEV_STATE": str(self.state),
                "XDG_CACHE_HOME": str(self.state / "client" / "cache"),
            },
            start_new_session=True,
        )

    def cli(self, *words: str, cloud: str = "admin", timeout_s: float = CREATE_TIMEOUT_S) -> str:
        """A `fabric` command that must succeed: what it prints."""
        done = self.run(*words, cloud=cloud, timeout_s=timeout_s)
        if done.returncode != 0:
            raise Said(f"fabric {' '.join(words)} ended with {done.returncode}:\n{done.stderr}{done.stdout}")
        return done.stdout

    def shown(self, *words: str, cloud: str = "admin") -> Any:
        """What a `show`, `list` or `create` gives a program."""
        return json.loads(self.cli(*words, "-f", "json", cloud=cloud))

    def dev(self, verb: str, *words: str, timeout_s: float = UP_TIMEOUT_S) -> str:
        return self.cli("dev", verb, *words, timeout_s=timeout_s)

    def processes(self) -> dict[str, dict[str, Any]]:
        """Every process by name, as `dev status` has it."""
        return {row["name"]: row for row in json.loads(self.dev("status", "-f", "json"))}

    def until_ready(self, *names: str, timeout_s: float = 120.0) -> None:
        """Until these processes (or all) are ready."""

        def missing() -> list[str]:
            found = self.processes()
            return [each for each in names or found if found[each]["state"] != "ready"]

        until(lambda: not missing(), f"ready: {names or 'everything'}", timeout_s=timeout_s)

    # ---------------------------------------------------------------- the API

    @property
    def clouds_file(self) -> Path:
        return self.state / "client" / "clouds.toml"

    @property
    def topology(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "topology.json").read_text())
        return found

    def client(
        self,
        cloud: str = "admin",
        *,
        project: str = "",
        retry: RetrySettings | None = None,
        timeout_s: float = 30.0,
    ) -> Client:
        """A client that is logged in as a profile says, or in another project. Closed with the fabric."""
        said = tomllib.loads(self.clouds_file.read_text())["clouds"][cloud]
        near = self.clouds_file.parent
        password = (near / said["password_file"]).read_text().strip()

        def log_in() -> str:
            with Client(said["endpoint"], near / said["ca_file"]) as nobody:
                return nobody.tokens.issue(
                    user=said["username"], password=password, project=project or said["project"]
                ).token

        made = Client(
            said["endpoint"], near / said["ca_file"], log_in(), renew=log_in, timeout_s=timeout_s, retry=retry
        )
        self._clients.append(made)
        return made

    # ---------------------------------------------------------------- beginning and end

    def up(self) -> None:
        self.dev("up", *self.up_words)

    def down(self) -> None:
        for client in self._clients:
            client.close()
        self.dev("down")

    def logs(self) -> Iterator[tuple[str, str]]:
        """The end of every log, for whoever reads why a test failed."""
        for path in sorted((self.state / "log").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()
            # etcd says much about itself while it starts.
            yield path.stem, "\n".join(line for line in lines[-40:] if "/health" not in line)


LIVE: list[Running] = []
"""The fabrics that run now: a failing test shows their logs."""


@contextlib.contextmanager
def a_fabric(*up_words: str) -> Iterator[Running]:
    """A fabric for as long as the block lasts; at its end nothing of it may be left."""
    # Sockets below it have short names only: pytest's own folders are too deep.
    made = Running(
        state=Path(tempfile.gettempdir()) / f"cf-{os.getpid()}-{next(_NUMBERS)}", up_words=up_words
    )
    LIVE.append(made)
    try:
        made.up()
        yield made
    finally:
        made.down()
        LIVE.remove(made)
    assert leftovers(made.state) == []


def leftovers(state: Path) -> list[str]:
    """Whatever names the fabric's folder, looked for without its own means."""
    found = [f"{state}"] if state.exists() else []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                seen = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
                # Somebody's shell may have the folder's name in a longer word.
                if any(word.split(b"=")[-1].startswith(f"{state}/".encode()) for word in seen.split(b"\0")):
                    found.append(f"{entry.name}: {seen[:200]!r}")
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"{state}/" in line]
    return found


def until(condition: Callable[[], T], what: str, *, timeout_s: float = 120.0, every_s: float = 0.2) -> T:
    """Wait for something to become true; what it then gives."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(every_s)
    return value


def guest_images() -> Path:
    """The folder of the guest image, built if it is not there."""
    return _built("tools.guest_image", GUEST_IMAGE)


def cloud_image() -> Path:
    """The disk of the Debian image with cloud-init, built if it is not there: minutes."""
    return _built("tools.cloud_image", CLOUD_IMAGE) / "debian-cloud-init.qcow2"


def _built(module: str, out: Path) -> Path:
    done = subprocess.run(
        (sys.executable, "-m", module, "--out", str(out), "--cache", str(ROOT / ".cache/packages")),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def guest_processes(instance_id: str) -> set[int]:
    """The QEMU processes of a server."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if b"qemu-system" in line.split(b"\0")[0] and instance_id.encode() in line:
                    found.add(int(entry.name))
    return found


def a_small_disk(folder: Path) -> Path:
    """An image that no guest could boot: enough where hosts have no hardware."""
    path = folder / "disk.raw"
    path.write_bytes(bytes(64 * 1024))
    return path
