"""fabric-api as processes beside each other, on real etcd that wants certificates, with logging at its most talkative."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fabric.client.client import Client
from fabric.client.retry import RetrySettings
from fabric.model.host import Cell
from fabric.rpc.channel import CLIENT_OPTIONS
from fabric.server.pki import create_authority, save
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.etcd import EtcdStore
from fabric.store.keys import CELL
from tests.chaos.etcd_process import Certificates, Cluster, find_binaries, free_ports

ROOT = Path(__file__).resolve().parents[3]
PASSWORD = "canary-admin-password-7f3a"
PATIENCE_S = 60.0
_OVERALL = health_pb2.HealthCheckRequest(service="")


class ApiProcess:
    """One of them."""

    def __init__(self, folder: Path, name: str, config: str, port: int, internal_port: int) -> None:
        self.port, self.internal_port = port, internal_port
        self._folder = folder
        self.log_path = folder / f"{name}.log"
        path = folder / f"{name}.toml"
        path.write_text(config)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "cmd" / "fabric-api"), "--config", str(path)],
                stderr=log,
                cwd=ROOT,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def resident_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2

    def until_serving(self) -> None:
        """Return when it welcomes calls: its port is open before, and there need not be an administrator yet."""
        credentials = grpc.ssl_channel_credentials((self._folder / "pki" / "ca.pem").read_bytes())
        end_s = time.monotonic() + PATIENCE_S
        with grpc.secure_channel(f"localhost:{self.port}", credentials) as wire:
            health = health_pb2_grpc.HealthStub(wire)
            while time.monotonic() < end_s:
                with contextlib.suppress(grpc.RpcError):
                    if health.Check(_OVERALL, timeout=5).status == health_pb2.HealthCheckResponse.SERVING:
                        return
                time.sleep(0.1)
        raise AssertionError(f"not serving after {PATIENCE_S:g} s:\n{self.log[-3000:]}")

    def client(self, token: str = "") -> Client:
        return Client(
            f"localhost:{self.port}",
            self._folder / "pki" / "ca.pem",
            token,
            timeout_s=PATIENCE_S,
            retry=RetrySettings(attempts=1000, longest_wait_s=0.5, attempt_timeout_s=5.0, budget=1000.0),
        )

    def channel(self) -> grpc.aio.Channel:
        """A connection of somebody who does not keep to our limits."""
        credentials = grpc.ssl_channel_credentials((self._folder / "pki" / "ca.pem").read_bytes())
        options = [
            *(each for each in CLIENT_OPTIONS if each[0] != "grpc.max_send_message_length"),
            ("grpc.max_send_message_length", -1),
        ]
        return grpc.aio.secure_channel(f"localhost:{self.port}", credentials, options=options)


class Apis:
    """The processes, and what they share."""

    def __init__(self, folder: Path, stores: dict[str, Cluster]) -> None:
        self.folder = folder
        self.stores = stores
        self.processes: list[ApiProcess] = []

    def start(self) -> ApiProcess:
        port, internal = free_ports(2)
        pki = self.folder / "pki"
        tls = f'ca = "{pki}/ca.pem"\ncert = "{pki}/api.pem"\nkey = "{pki}/api.key"\n'
        name = f"api-{len(self.processes)}"
        config = (
            f'blob_path = "{self.folder}/blobs"\naudit_path = "{self.folder}/{name}.audit"\n'
            f'listen = "127.0.0.1:{port}"\ninternal_listen = "127.0.0.1:{internal}"\ndrain_s = 1.0\n'
            f'[log]\nlevel = "debug"\n'
            f"[limits]\nrate_per_s = 100000\nburst = 100000\nin_flight = 1000\n"
            f"{self._store('global_store', 'global')}{self._store('cells.c1', 'c1')}"
            f'[bootstrap]\npassword_path = "{self.folder}/password"\n'
            f"[tls]\n{tls}[internal_tls]\n{tls}"
        )
        made = ApiProcess(self.folder, name, config, port, internal)
        self.processes.append(made)
        return made

    def _store(self, table: str, name: str) -> str:
        cluster = self.stores[name]
        known = cluster.certificates
        assert known is not None
        return (
            f'[{table}]\nendpoints = ["{cluster.endpoints[0]}"]\n'
            f'[{table}.tls]\nca = "{known.ca}"\ncert = "{known.client_cert}"\nkey = "{known.client_key}"\n'
        )

    def end(self) -> None:
        for each in self.processes:
            if each.process.poll() is None:
                each.process.kill()
            each.process.wait()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Apis]:
    """The stores; API servers are started as wanted."""
    now_ms = time.time_ns() // 1_000_000
    authority = create_authority("test", now_ms=now_ms)
    save(
        authority.issue_service("api", now_ms=now_ms, addresses=("localhost", "127.0.0.1")),
        authority,
        folder / "pki",
        "api",
    )
    (folder / "password").write_text(f"{PASSWORD}\n")
    with contextlib.ExitStack() as stack:
        binary = next(iter(find_binaries().values()))
        certificates = Certificates.make(folder / "store-tls")
        stores = {
            name: stack.enter_context(
                Cluster(folder / f"etcd-{name}", binary=binary, certificates=certificates)
            )
            for name in ("global", "c1")
        }
        made = Apis(folder, stores)
        stack.callback(made.end)
        yield made


async def register_cell(apis: Apis) -> None:
    """What an operator writes before the first API server starts."""
    store = EtcdStore(apis.stores["global"].patient(), name="global")
    await store.commit(Txn(put={CELL.at("c1"): encode(Cell(name="c1"))}))
    await store.close()
