"""A private libvirtd for one simulated host: `python -m hostd.driver.libvirt.daemon --state DIR --netns NAME --hostname H`.

Production hosts run their distribution's libvirtd and have no use for this. It is how several hosts live on one machine, and
how tests get a libvirtd that nobody else uses: own network, mount and host-name namespaces, own configuration, own state, all
below `--state`. It stays in the foreground, restarts what dies, and adopts and reaps every QEMU (without a reaper, stopping a
guest takes as long as the machine's init needs to notice).

SIGTERM stops libvirtd and, where no guest runs, virtlogd. Guests run on, and so does the virtlogd that holds their consoles:
the next daemon on the same state finds both. `--destroy-guests` ends all of them, with nothing left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostd.driver.libvirt.mount_points import FOLDERS, cover, remove_all, uncover
from hostd.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MNT_DETACH,
    MS_BIND,
    MS_REC,
    MS_SLAVE,
    become_subreaper,
    mount,
    sethostname,
    setns,
    umount,
    unshare,
)

_HOST_ID_NAMESPACE: Final = uuid.UUID("5c0e3f0e-58f1-5f0c-9f0d-1f6f0a2f9d11")
_DEFAULT_USER: Final = "libvirt-qemu"
_DEFAULT_ID: Final = 64055
_MAX_SOCKET_PATH: Final = 107
"""What fits in sockaddr_un (unix(7))."""

_RESTART_PAUSE_S: Final = 0.5
_STOP_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    """Where a private libvirtd lives, and as which host."""

    state: Path
    hostname: str
    netns: str = ""
    destroy_guests: bool = False

    @property
    def socket(self) -> Path:
        """The socket of libvirtd, outside of its mount namespace. Keep `state` short: see `_MAX_SOCKET_PATH`."""
        return self.state / "run" / "libvirt-sock"

    @property
    def uri(self) -> str:
        """What to connect to."""
        return f"qemu+unix:///system?socket={self.socket}"


def qemu_conf() -> str:
    """QEMU's part of the configuration.

    The default user is root only for libvirt's own probing of QEMU: it must be able to open whatever /dev/kvm there is, or
    every start probes again for eight seconds. Guests do not run as it: each domain names a uid of its own. No security
    driver: the machine's AppArmor or SELinux policy knows nothing of our folders, and DAC is always there.
    """
    return """\
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 1
remember_owner = 0
cgroup_controllers = []
seccomp_sandbox = 1
stdio_handler = "logd"
max_processes = 0
"""


def libvirtd_conf(hostname: str) -> str:
    """The daemon's part: a local socket for root, nothing on the network, and a host id of its own."""
    return f"""\
host_uuid = "{uuid.uuid5(_HOST_ID_NAMESPACE, hostname)}"
listen_tls = 0
listen_tcp = 0
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
"""


def virtlogd_conf() -> str:
    """Console logs are capped: a guest that writes for ever fills two files of 2 MiB, not the disk."""
    return "max_size = 2097152\nmax_backups = 1\n"


class Daemon:
    """virtlogd and libvirtd of one simulated host, from inside its namespaces. One per process."""

    def __init__(self, settings: DaemonSettings) -> None:
        self._settings = settings
        self._children: dict[int, str] = {}
        self._stopping = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises OSError where a namespace or a mount is refused."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        become_subreaper()
        self._write_configuration()
        # A libvirtd whose keeper was killed still holds the socket, and nobody reaps its guests. They run on without it.
        _end(set(_daemon_pids(self._settings.state, "libvirtd")))
        self._enter_namespaces()
        try:
            self._serve()
        finally:
            self._stop()

    def _on_signal(self, number: int, frame: object) -> None:
        self._stopping = True

    def _write_configuration(self) -> None:
        state = self._settings.state
        state.mkdir(parents=True, exist_ok=True)
        for name, _ in FOLDERS:
            (state / name).mkdir(exist_ok=True)
        for name, text in (
            ("qemu.conf", qemu_conf()),
            ("libvirtd.conf", libvirtd_conf(self._settings.hostname)),
            ("virtlogd.conf", virtlogd_conf()),
        ):
            (state / "etc" / name).write_text(text, encoding="ascii")

    def _enter_namespaces(self) -> None:
        if self._settings.netns:
            with open(f"/run/netns/{self._settings.netns}", "rb") as namespace:  # noqa: PTH123 - a namespace, not a path
                setns(namespace.fileno(), CLONE_NEWNET)
        unshare(CLONE_NEWNS | CLONE_NEWUTS)
        sethostname(self._settings.hostname)
        # Slave, not private: network namespaces that are named later must become visible here.
        mount("none", "/", flags=MS_REC | MS_SLAVE)
        if self._settings.netns:
            self._mount_sysfs()
        for name, target in FOLDERS:
            cover(self._settings.state / name, Path(target))
        self._name_the_default_user()

    def _mount_sysfs(self) -> None:
        """Show the devices of our network namespace in /sys: sysfs shows those of the namespace it was mounted in."""
        folder = self._settings.state / "sys"
        folder.mkdir(exist_ok=True)
        mount("sysfs", str(folder), "sysfs")
        cgroup = folder / "fs" / "cgroup"
        if cgroup.is_dir():
            mount("/sys/fs/cgroup", str(cgroup), flags=MS_BIND | MS_REC)
        mount(str(folder), "/sys", flags=MS_BIND | MS_REC)
        umount(str(folder), MNT_DETACH)

    def _name_the_default_user(self) -> None:
        """Have the user that libvirt was compiled to run guests as, in our view of /etc alone.

        Its QEMU driver does not load without, whatever the configuration says; only the distribution's whole
        `libvirt-daemon-system` package makes the user, and we want no second libvirtd on this machine.
        """
        with contextlib.suppress(KeyError):
            pwd.getpwnam(_DEFAULT_USER)
            return
        for name, line in (
            ("passwd", f"{_DEFAULT_USER}:x:{_DEFAULT_ID}:{_DEFAULT_ID}::/nonexistent:/usr/sbin/nologin\n"),
            ("group", f"{_DEFAULT_USER}:x:{_DEFAULT_ID}:\n"),
        ):
            copy = self._settings.state / "etc" / name
            copy.write_text(Path("/etc", name).read_text(encoding="utf-8") + line, encoding="utf-8")
            mount(str(copy), f"/etc/{name}", flags=MS_BIND)

    def _serve(self) -> None:
        announced = False
        while not self._stopping:
            for name in ("virtlogd", "libvirtd"):
                if name not in self._children.values() and not self._is_adopted(name):
                    self._spawn(name)
            if not announced and _answers(self._settings.socket):
                announced = True
                # Whoever started us waits for this line.
                print(f"ready {self._settings.uri}", flush=True)  # noqa: T201 - who started us reads it
            if "libvirtd" in self._reap() and not announced:
                raise SystemExit(f"libvirtd does not start: see {self._settings.state}/log/libvirtd.out")
            time.sleep(0.05 if not announced else _RESTART_PAUSE_S)

    def _is_adopted(self, name: str) -> bool:
        """Whether a virtlogd of an earlier daemon still holds the consoles of guests that outlived it."""
        return name == "virtlogd" and _answers(self._settings.state / "run" / "virtlogd-sock")

    def _spawn(self, name: str) -> None:
        with (self._settings.state / "log" / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                (name, "--pid-file", f"/run/libvirt/{name}.pid"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._children[process.pid] = name
        # This process waits for all children itself; Popen must not look for this one again.
        process.returncode = 0

    def _reap(self) -> set[str]:
        """Collect every child that ended, adopted ones too; say which of our own were among them."""
        ended: set[str] = set()
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                name = self._children.pop(pid, "")
                if name and not self._stopping:
                    print(f"{name} ended", file=sys.stderr, flush=True)  # noqa: T201 - for whoever reads our log
                    ended.add(name)
        return ended

    def _stop(self) -> None:
        self._stopping = True
        state = self._settings.state
        _end(set(_daemon_pids(state, "libvirtd")), self._reap)
        if self._settings.destroy_guests:
            _end(set(_guest_pids(state)), self._reap)
        if not any(_guest_pids(state)):
            _end(set(_daemon_pids(state, "virtlogd")), self._reap)
            for _, target in FOLDERS:
                uncover(Path(target))


def sweep(state: Path) -> None:
    """End whatever an earlier daemon left running on `state`: libvirtd, guests, virtlogd. For after a crash."""
    for pids in (_daemon_pids(state, "libvirtd"), _guest_pids(state), _daemon_pids(state, "virtlogd")):
        _end(set(pids))
    remove_all()


def _end(pids: set[int], reap: Callable[[], object] = lambda: None) -> None:
    """Ask the processes to end, then make them; returns when none is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + _STOP_TIMEOUT_S
        while pids and time.monotonic() < until:
            reap()
            pids = {pid for pid in pids if _is_alive(pid)}
            time.sleep(0.02)


def _daemon_pids(state: Path, name: str) -> Iterator[int]:
    yield from _pids((state / "run" / f"{name}.pid",), name)


def _guest_pids(state: Path) -> Iterator[int]:
    yield from _pids((state / "run" / "qemu").glob("*.pid"), "qemu-system")


def _pids(files: Iterable[Path], program: str) -> Iterator[int]:
    """The processes that pid files name, where they still are that program: numbers are used again."""
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text(encoding="ascii"))
            if _is_alive(pid) and program.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                yield pid


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and is not yet reaped does not (proc(5), field 3 of stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _answers(path: Path) -> bool:
    """Whether somebody listens on the socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def main() -> None:
    """The entry point of this module, as a command."""
    parser = argparse.ArgumentParser(prog="python -m hostd.driver.libvirt.daemon", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder of everything this daemon writes")
    parser.add_argument("--hostname", required=True, help="the simulated host's name")
    parser.add_argument("--netns", default="", help="network namespace to live in (default: this one)")
    parser.add_argument("--destroy-guests", action="store_true", help="end all guests when stopping")
    parser.add_argument("--sweep", action="store_true", help="end what an earlier daemon left, and exit")
    arguments = parser.parse_args()
    state = arguments.state.resolve()
    if arguments.sweep:
        sweep(state)
        return
    settings = DaemonSettings(
        state=state,
        hostname=arguments.hostname,
        netns=arguments.netns,
        destroy_guests=arguments.destroy_guests,
    )
    if len(os.fsencode(settings.socket)) > _MAX_SOCKET_PATH:
        parser.error(
            f"--state: {settings.socket} is longer than the {_MAX_SOCKET_PATH} bytes of a socket's path"
        )
    Daemon(settings).run()


if __name__ == "__main__":
    main()
