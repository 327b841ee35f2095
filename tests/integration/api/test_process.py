"""fabric-api as a process of its own, on real etcd, asked by our own client: made, killed, stopped, and without its stores."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fabric.client.client import Client
from fabric.client.retry import RetrySettings
from fabric.errors import Unavailable
from fabric.model.host import Cell
from fabric.observability.audit import verify
from fabric.server.pki import create_authority, save
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.etcd import EtcdStore
from fabric.store.keys import CELL
from tests.chaos.etcd_process import Cluster, find_binaries, free_ports
from tests.unit.images.evil_images import disk

BINARIES = find_binaries()
ROOT = Path(__file__).resolve().parents[3]
PASSWORD = "correct-horse-battery"
PATIENCE_S = 60.0


@dataclass
class Api:
    """The process, how to start it, and its stores."""

    folder: Path
    port: int
    stores: dict[str, Cluster]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "api.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "cmd" / "fabric-api"), "--config", str(self.folder / "api.toml")],
                stderr=log,
                cwd=ROOT,
            )

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def client(self, token: str = "", *, patience_s: float = PATIENCE_S) -> Client:
        return Client(
            f"localhost:{self.port}",
            self.folder / "pki" / "ca.pem",
            token,
            timeout_s=patience_s,
            # As patient as a test of restarts must be: a start takes seconds where others keep the cores busy.
            retry=RetrySettings(attempts=1000, longest_wait_s=0.5, attempt_timeout_s=2.0, budget=1000.0),
        )


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    if not BINARIES:
        pytest.skip("NO ETCD HERE: run tools/setup first")
    now_ms = time.time_ns() // 1_000_000
    authority = create_authority("test", now_ms=now_ms)
    issued = authority.issue_service("api", now_ms=now_ms, addresses=("localhost", "127.0.0.1"))
    files = save(issued, authority, tmp_path / "pki", "api")
    port, internal = free_ports(2)
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    with contextlib.ExitStack() as stack:
        binary = next(iter(BINARIES.values()))
        stores = {
            name: stack.enter_context(Cluster(tmp_path / f"etcd-{name}", binary=binary))
            for name in ("global", "c1")
        }
        opened = EtcdStore(stores["global"].patient(), name="global")
        await opened.commit(Txn(put={CELL.at("c1"): encode(Cell(name="c1"))}))
        await opened.close()
        tls = f'ca = "{files.ca_path}"\ncert = "{files.cert_path}"\nkey = "{files.key_path}"\n'
        (tmp_path / "api.toml").write_text(
            f'blob_path = "{tmp_path / "blobs"}"\n'
            f'audit_path = "{tmp_path / "audit.log"}"\n'
            f'listen = "127.0.0.1:{port}"\ninternal_listen = "127.0.0.1:{internal}"\ndrain_s = 1.0\n'
            f'[global_store]\nendpoints = ["{stores["global"].endpoints[0]}"]\n'
            f'[cells.c1]\nendpoints = ["{stores["c1"].endpoints[0]}"]\n'
            f'[bootstrap]\npassword_path = "{tmp_path / "password"}"\n'
            f"[tls]\n{tls}[internal_tls]\n{tls}"
        )
        made = Api(tmp_path, port, stores)
        made.start()
        yield made
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()


def _token(api: Api) -> str:
    with api.client() as client:
        return client.tokens.issue(user="admin", password=PASSWORD).token


async def test_what_was_accepted_outlives_the_process(api: Api, tmp_path: Path) -> None:
    picture = tmp_path / "picture.raw"
    picture.write_bytes(disk())
    with api.client(_token(api)) as client:
        client.flavors.create(name="m1.nebula_micro", vcpus=1, ram_mib=512, disk_gib=1)
        image = client.images.create(name="linux", file=picture, disk_format="raw")
        made = client.instances.create(name="web", flavor="m1.nebula_micro", image="linux")
        assert image.sha256 == hashlib.sha256(disk()).hexdigest()
        assert made.status.state == "BUILD"

    assert api.process is not None
    api.process.kill()
    api.process.wait()
    api.start()
    with api.client(_token(api)) as client:
        assert client.instances.get("web").id == made.id
        client.images.save("linux", tmp_path / "again.raw")
        client.instances.delete("web")
        assert client.instances.get(made.id).status.task_state == "deleting"

    assert (tmp_path / "again.raw").read_bytes() == disk()
    assert api.stop() == 0
    verify((tmp_path / "audit.log").read_bytes().splitlines(keepends=True))


async def test_without_a_store_it_says_so_soon_and_comes_back_by_itself(api: Api) -> None:
    with api.client(_token(api)) as client:
        client.flavors.create(name="f", vcpus=1, ram_mib=512, disk_gib=1)
        (member,) = api.stores["global"].members
        member.pause()
        begin_s = time.monotonic()
        with pytest.raises(Unavailable), api.client(_token_of(client), patience_s=2.5) as hasty:
            hasty.flavors.get("f")
        took_s = time.monotonic() - begin_s
        member.resume()

        assert client.flavors.get("f").name == "f"
        assert took_s < PATIENCE_S / 4


def _token_of(client: Client) -> str:
    return client._calls._token


def test_settings_that_are_wrong_end_with_2_and_name_the_setting(tmp_path: Path) -> None:
    (tmp_path / "api.toml").write_text("[logg]\nlevel = 1\n")

    ended = subprocess.run(
        [sys.executable, str(ROOT / "cmd" / "fabric-api"), "--config", str(tmp_path / "api.toml")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )

    assert ended.returncode == 2
    assert "logg" in ended.stderr
    assert "did you mean log" in ended.stderr


@pytest.mark.parametrize("place", ["api.create.decided", "api.create.accepted"])
async def test_a_create_during_which_the_process_dies_is_accepted_once_when_it_is_sent_again(
    api: Api, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "picture.raw"
    picture.write_bytes(disk())
    with api.client(_token(api)) as client:
        client.flavors.create(name="m1", vcpus=1, ram_mib=512, disk_gib=1)
        client.images.create(name="linux", file=picture, disk_format="raw")
    api.stop()
    # Inherited by the process that is started next, and by that one only.
    monkeypatch.setenv("FABRIC_FAIL", f"{place}:kill@1")
    api.start()
    with api.client(_token(api)) as client, ThreadPoolExecutor() as pool:
        asked = pool.submit(client.instances.create, name="web", flavor="m1", image="linux")
        assert api.process is not None
        assert api.process.wait(PATIENCE_S) == -signal.SIGKILL
        monkeypatch.delenv("FABRIC_FAIL")
        api.start()

        made = asked.result(PATIENCE_S)
        assert [each.id for each in client.instances.list().instances] == [made.id]
        assert client.projects.get("admin").quota_used.instances == 1
