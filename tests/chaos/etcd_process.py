"""Real etcd members as child processes on loopback: started, paused, killed, and gone when the test is."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trustme

from fabric.store.etcd import EtcdSettings
from fabric.store.etcd.wire import version_of
from tests.chaos import pausing

CHECKOUT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 30.0


def find_binaries() -> dict[str, Path]:
    """The etcd binaries there are, newest first, by version: the checkout's own and the one on PATH."""
    candidates = [
        CHECKOUT / ".cache/etcd/usr/bin/etcd",
        CHECKOUT / ".cache/etcd-3.4/usr/bin/etcd",
        *(Path(found) for found in [shutil.which("etcd")] if found),
    ]
    found: dict[str, Path] = {}
    for path in candidates:
        if path.exists():
            found.setdefault(version_text(path), path)
    return dict(sorted(found.items(), key=lambda item: version_of(item[0]), reverse=True))


@functools.cache
def version_text(binary: Path) -> str:
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    return answer.stdout.splitlines()[0].removeprefix("etcd Version:").strip()


@dataclass(frozen=True, slots=True)
class Certificates:
    """One authority, a server and a client certificate of it, and a client's of another authority."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    foreign_cert: Path
    foreign_key: Path

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(
            *(folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")),
            *(folder / name for name in ("foreign.pem", "foreign.key")),
        )
        ours, theirs = trustme.CA(), trustme.CA()
        ours.cert_pem.write_to_path(made.ca)
        for authority, cert, key, name in (
            (ours, made.server_cert, made.server_key, "127.0.0.1"),
            (ours, made.client_cert, made.client_key, "fabric-api"),
            (theirs, made.foreign_cert, made.foreign_key, "fabric-api"),
        ):
            leaf = authority.issue_cert(name, common_name=name)
            leaf.cert_chain_pems[0].write_to_path(cert)
            leaf.private_key_pem.write_to_path(key)
        return made


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Member:
    """One etcd process and its data, which outlives the process."""

    def __init__(
        self, name: str, argv: Sequence[str], client_port: int, metrics_port: int, log_path: Path
    ) -> None:
        self.name = name
        self.endpoint = f"127.0.0.1:{client_port}"
        self._argv = list(argv)
        self._metrics_port = metrics_port
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def start(self) -> None:
        assert self._process is None, f"{self.name} is running"
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                # A test run that dies takes its members with it. By a program of its own, not by Python in the forked child: with
                # gRPC's threads about, that child has crashed before it came to its first line.
                ["setpriv", "--pdeathsig", "KILL", "--", *self._argv],
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the test run's affair
            )

    def wait_healthy(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._process is None or self._process.poll() is not None:
                break
            if self.is_healthy():
                return
            time.sleep(0.05)
        raise AssertionError(f"{self.name} did not come up:\n{self._log_path.read_text()[-3000:]}")

    def is_healthy(self) -> bool:
        answer = self._ask("/health")
        return bool(answer) and json.loads(answer)["health"] == "true"

    def is_leader(self) -> bool:
        """Whether this member leads, by its own metrics. A member that does not answer does not lead."""
        return b"\netcd_server_is_leader 1\n" in self._ask("/metrics")

    def _ask(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._metrics_port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return b""
        finally:
            connection.close()

    def kill(self) -> None:
        """The process is gone, at once and without a word."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait(10)
        self._process = None

    def pause(self) -> None:
        pausing.pause(self.pid)

    def resume(self) -> None:
        pausing.resume(self.pid)


class Cluster:
    """One to five members that know each other. A context manager: leaving it leaves no process."""

    def __init__(
        self,
        folder: Path,
        *,
        binary: Path,
        members: int = 1,
        certificates: Certificates | None = None,
        progress_s: float | None = 1.0,
    ) -> None:
        self.certificates = certificates
        ports = free_ports(3 * members)
        scheme = "http" if certificates is None else "https"
        peers = [f"http://127.0.0.1:{ports[3 * i + 1]}" for i in range(members)]
        together = ",".join(f"m{i}={peer}" for i, peer in enumerate(peers))
        self.members = []
        for i in range(members):
            client_port, metrics_port = ports[3 * i], ports[3 * i + 2]
            client_url = f"{scheme}://127.0.0.1:{client_port}"
            argv = [
                *(str(binary), "--name", f"m{i}", "--data-dir", str(folder / f"m{i}")),
                *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
                *("--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i]),
                *("--initial-cluster", together, "--listen-metrics-urls", f"http://127.0.0.1:{metrics_port}"),
                # Nothing here survives the machine, so nothing need survive its power supply.
                *("--unsafe-no-fsync", "--logger", "zap", "--log-level", "warn"),
            ]
            if progress_s is not None:
                is_stable = version_of(version_text(binary)) >= (3, 6, 0)
                option = "watch-progress-notify-interval"
                argv += [f"--{option}" if is_stable else f"--experimental-{option}", f"{progress_s}s"]
            if certificates is not None:
                argv += ["--client-cert-auth", "--trusted-ca-file", str(certificates.ca)]
                argv += [
                    "--cert-file",
                    str(certificates.server_cert),
                    "--key-file",
                    str(certificates.server_key),
                ]
            self.members.append(Member(f"m{i}", argv, client_port, metrics_port, folder / f"m{i}.log"))
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Cluster:
        try:
            for member in self.members:
                member.start()
            for member in self.members:
                member.wait_healthy()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.kill()

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    def leader(self) -> Member:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for member in self.members:
                if member.is_leader():
                    return member
            time.sleep(0.05)
        raise AssertionError("the cluster has no leader")

    def patient(self, *, prefix: str = "") -> EtcdSettings:
        """For tests that are not about how soon an answer comes: a call has as long as the busiest machine needs for it."""
        return replace(
            self.settings(prefix=prefix), connect_wait_s=30.0, try_timeout_s=30.0, call_timeout_s=45.0
        )

    def settings(self, *endpoints: str, prefix: str = "") -> EtcdSettings:
        """How a client of ours reaches it, by its own endpoints or others (a proxy's)."""
        known = self.certificates
        return EtcdSettings(
            endpoints=endpoints or self.endpoints,
            prefix=prefix,
            ca_path=None if known is None else known.ca,
            cert_path=None if known is None else known.client_cert,
            key_path=None if known is None else known.client_key,
        )
