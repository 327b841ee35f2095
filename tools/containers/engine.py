"""A Docker engine of this tree's own, in namespaces of its own.

Whatever the machine runs beside it, even another Docker, is neither seen nor touched: bridges, packet filters and addresses are in the
engine's network namespace, its mounts and its /run in its mount namespace, and every container in its process namespace. They end with
its first process, however that ends, and nothing of them can be left. What stays is the folder with the images, so that the next time
is quick.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final, Self

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / ".cache" / "containers"
"""Everything that the containers of this tree keep."""
UNPACKED: Final = ROOT / ".cache" / "docker"
"""Where tools/setup unpacks the engine."""

START_S: Final = 60.0
STOP_S: Final = 30.0
WAIT_FOR_OTHERS_S: Final = 600.0

_INSIDE: Final = """\
set -e
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
exec tini-static -- dockerd "$@"
"""
"""From inside the namespaces: /run is the engine's alone, sockets of containerd and names of network namespaces included."""


class NoEngineError(Exception):
    """There can be no engine on this machine; the message says why."""


class DockerError(Exception):
    """A command of Docker failed; the message has its words."""


class Engine:
    """The engine, from `start` to `stop`; or a `with` block. One at a time for each folder: a second one waits for the first."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._lock = -1
        self._process: subprocess.Popen[bytes] | None = None
        self.host = ""
        """What DOCKER_HOST has to be."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers. What an engine that was killed has left in the folder, images aside, is removed.

        Raises:
            NoEngineError: it is not installed, or this machine does not let it run.
        """
        assert self._process is None, "it has been started"
        self._require()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._only_one()
        try:
            self._run()
            self._await_answer()
            self.clear()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it with every container, and remove everything but images. Needs no answer from it."""
        if self._process is not None:
            with contextlib.suppress(DockerError, subprocess.TimeoutExpired):
                self.clear()
            # unshare passes on no signals; what it started is its only child, and that one tells the engine.
            for child in _children(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        remove_groups(group_of(self.folder))
        (self.folder / "engine.pid").unlink(missing_ok=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def wait(self) -> None:
        """Wait until it ends, which it does not do by itself."""
        assert self._process is not None
        self._process.wait()

    def docker(self, *words: str, timeout_s: float = 120.0) -> str:
        """What a `docker` command prints. Raises DockerError."""
        return docker(*words, environment=self.environment, timeout_s=timeout_s)

    def clear(self) -> None:
        """Remove containers, networks and volumes."""
        if found := self.docker("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", "--volumes", *found)
        self.docker("network", "prune", "--force")
        if volumes := self.docker("volume", "ls", "--quiet").split():
            self.docker("volume", "rm", "--force", *volumes)

    @property
    def environment(self) -> dict[str, str]:
        """What a `docker` needs in its environment to speak to this engine."""
        return environment(self.host, self.folder)

    def _require(self) -> None:
        if os.geteuid() != 0:
            raise NoEngineError("a Docker engine takes root")
        missing = [name for name in _PROGRAMS if shutil.which(name, path=_search_path()) is None]
        if missing:
            raise NoEngineError(
                f"{', '.join(missing)} not found: `tools/setup test` unpacks the engine into {UNPACKED}"
            )

    def _only_one(self) -> None:
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until_s = time.monotonic() + WAIT_FOR_OTHERS_S
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() > until_s:
                os.close(self._lock)
                self._lock = -1
                raise NoEngineError(f"another engine works on {self.folder}")
            time.sleep(0.5)

    def _run(self) -> None:
        with (self.folder / "engine.log").open("wb") as log:
            self._process = subprocess.Popen(
                (
                    # Both ends of the chain die with the one above: nobody has to remember this engine.
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("sh", "-c", _INSIDE, "engine"),
                    *("--host", "unix:///run/docker.sock", "--data-root", str(self.folder / "engine")),
                    *("--cgroup-parent", f"/{group_of(self.folder)}", "--init-path", _program("tini-static")),
                    *("--log-level", "warn"),
                ),
                env={**os.environ, "PATH": _search_path()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # Its /run is in its own mount namespace, which the kernel shows here.
        self.host = f"unix:///proc/{self._process.pid}/root/run/docker.sock"
        (self.folder / "engine.pid").write_text(f"{self._process.pid}\n", encoding="ascii")

    def _await_answer(self) -> None:
        assert self._process is not None
        until_s = time.monotonic() + START_S
        while True:
            try:
                self.docker("info", "--format", "{{.ServerVersion}}", timeout_s=10)
            except (DockerError, subprocess.TimeoutExpired) as silent:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > until_s:
                    what = "the Docker engine ended at once" if ended else "the Docker engine does not answer"
                    raise NoEngineError(f"{what}:\n{self.last_words()}") from silent
            else:
                return
            time.sleep(0.1)

    def last_words(self) -> str:
        """The end of the engine's log."""
        lines = (self.folder / "engine.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-15:])


def environment(host: str, folder: Path) -> dict[str, str]:
    """What a `docker` needs in its environment to speak to an engine, with the client's own files in `folder`."""
    plugin = UNPACKED / "usr/libexec/docker/cli-plugins/docker-compose"
    if plugin.exists():
        plugins = folder / "client" / "cli-plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        link = plugins / plugin.name
        if not link.is_symlink() or link.readlink() != plugin:
            link.unlink(missing_ok=True)
            link.symlink_to(plugin)
    return {
        "DOCKER_HOST": host,
        "DOCKER_CONFIG": str(folder / "client"),
        # The builder that is in every engine; the newer one is a plugin of its own.
        "DOCKER_BUILDKIT": "0",
        "PATH": _search_path(),
    }


def docker(
    *words: str,
    environment: Mapping[str, str],
    timeout_s: float = 120.0,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
) -> str:
    """What a `docker` command prints.

    Raises:
        DockerError: it failed; with its words.
        subprocess.TimeoutExpired: it did not end in time.
    """
    done = subprocess.run(
        (_program("docker"), *words),
        env={**os.environ, **environment},
        stdin=stdin,
        capture_output=True,
        check=False,
        timeout=timeout_s,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode != 0:
        raise DockerError(
            f"docker {' '.join(words[:3])} ended with {done.returncode}:\n{done.stderr}{done.stdout}"[-4000:]
        )
    return done.stdout


def running(folder: Path = FOLDER) -> str:
    """DOCKER_HOST of the engine that somebody else has started on `folder`. Raises NoEngineError."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / "engine.pid").read_text(encoding="ascii"))
        if Path(f"/proc/{pid}/root/run/docker.sock").is_socket():
            return f"unix:///proc/{pid}/root/run/docker.sock"
    raise NoEngineError(f"no engine runs on {folder}")


def sweep(folder: Path = FOLDER) -> None:
    """End the engine on `folder`, whoever started it, and remove what one that was killed has left. None there is fine."""
    if not folder.is_dir():
        return
    with contextlib.suppress(NoEngineError, ProcessLookupError):
        os.kill(int(running(folder).split("/")[4]), signal.SIGKILL)
    # A process that is killed holds its group until the kernel is done with it.
    until_s = time.monotonic() + STOP_S
    while not remove_groups(group_of(folder)) and time.monotonic() < until_s:
        time.sleep(0.1)
    (folder / "engine.pid").unlink(missing_ok=True)


def group_of(folder: Path) -> str:
    """The control group above all containers of an engine. Named after the inode of its folder: others' engines have others."""
    return f"cellfabric-{folder.stat().st_ino:x}"


def remove_groups(name: str) -> bool:
    """Remove the control groups that containers were in, those without a process, in every hierarchy there is; whether none is left."""
    tops = [hierarchy / name for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*"))]
    for top in tops:
        for folder in (*sorted(top.glob("**/"), reverse=True), top):
            with contextlib.suppress(OSError):
                folder.rmdir()
    return not any(top.exists() for top in tops)


def _children(pid: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The second field is the command in parentheses, which may have spaces; the parent is the second after it.
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    yield int(entry.name)


_PROGRAMS: Final = (
    "dockerd",
    "containerd",
    "runc",
    "tini-static",
    "docker",
    "iptables",
    "setpriv",
    "unshare",
    "ip",
)
_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"


def _search_path() -> str:
    """Ours first, then the machine's with the folders that sudo may leave out."""
    return f"{UNPACKED}/usr/sbin:{UNPACKED}/usr/bin:{os.environ.get('PATH', os.defpath)}:{_SBIN}"


def _program(name: str) -> str:
    found = shutil.which(name, path=_search_path())
    if found is None:
        raise NoEngineError(f"{name} is not there: `tools/setup test` unpacks it into {UNPACKED}")
    return found
