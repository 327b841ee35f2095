"""A second, independent client reads what ours writes and the other way round: `etcd3`, the client people know.

It cannot live in our process (it does not load beside a current protobuf), so it has an environment of its own under
.cache/, made by the first run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.store.base import Committed, Event, Refused, Txn
from fabric.store.etcd import EtcdStore
from tests.chaos.etcd_process import CHECKOUT, Cluster
from tests.chaos.recorder import Recorder

ENVIRONMENT = CHECKOUT / ".cache/etcd3-venv"
SCRIPT = Path(__file__).with_name("etcd3_script.py")

Ask = Callable[..., Any]


@pytest.fixture(scope="session")
def python_with_etcd3() -> Path:
    python = ENVIRONMENT / "bin/python"
    check = [str(python), "-c", "import importlib.metadata as m; m.version('etcd3')"]
    if not python.exists() or subprocess.run(check, capture_output=True, check=False).returncode:
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
            [str(python), "-m", "pip", "install", "--quiet", "etcd3==0.12.0", "grpcio", "protobuf"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"INTEROPERABILITY NOT TESTED: no environment for etcd3: {done.stderr[-500:]}")
    return python


@pytest.fixture
def etcd3(single: Cluster, python_with_etcd3: Path) -> Iterator[Ask]:
    """Asks the other client to do something."""
    port = single.endpoints[0].rpartition(":")[2]
    with subprocess.Popen(
        [python_with_etcd3, "-W", "ignore", SCRIPT, port],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(*words: object) -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


async def test_two_clients_of_different_origin_agree(
    single: Cluster, etcd3: Ask, connect: Callable[..., EtcdStore]
) -> None:
    store = connect(single.settings())
    lease = await store.grant(60)
    value = bytes(range(256))

    async with Recorder(store, "", after=(await store.get()).revision) as seen:
        ours = await store.commit(Txn(put={"a/é": value, "a/2": b""}, leases={"a/é": lease.id}))
        assert isinstance(ours, Committed)
        assert etcd3("get", "a/é") == [value.hex(), ours.revision, ours.revision, lease.id]
        assert etcd3("get", "none") is None
        assert sorted(etcd3("list", "a/")) == [["a/2", ""], ["a/é", value.hex()]]
        assert 0 < etcd3("ttl", lease.id) <= 60

        assert etcd3("put", "a/2", b"theirs".hex())
        snapshot = await store.list("a/")
        assert snapshot.value("a/2") == b"theirs"
        assert (snapshot.seen("a/2"), snapshot.entries["a/2"].create_revision) == (
            ours.revision + 1,
            ours.revision,
        )

        # A race decided by the same comparison, whoever makes it.
        assert etcd3("swap", "a/2", snapshot.seen("a/2"), b"first".hex()) is True
        late = await store.commit(Txn(unchanged={"a/2": snapshot.seen("a/2")}, put={"a/2": b"second"}))
        assert isinstance(late, Refused)
        assert late.current.value("a/2") == b"first"
        assert etcd3("swap", "a/2", snapshot.seen("a/2"), b"third".hex()) is False

        assert etcd3("delete", "a/2") is True
        assert await seen.until(ours.revision + 3) == [
            Event("a/é", value, ours.revision),
            Event("a/2", b"", ours.revision),
            Event("a/2", b"theirs", ours.revision + 1),
            Event("a/2", b"first", ours.revision + 2),
            Event("a/2", None, ours.revision + 3),
        ]
