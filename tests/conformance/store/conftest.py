"""The stores that are held to the laws: the one in memory, and real etcd of every version at hand."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.store.etcd import EtcdStore
from fabric.store.memory import MemoryStore
from tests.chaos.etcd_process import Cluster, find_binaries

BINARIES = find_binaries()
STORES = ["memory", *(f"etcd-{version}" for version in BINARIES)]


class CompactableMemory(MemoryStore):
    """Compaction under the name the laws use."""

    async def compact_history(self, revision: int) -> None:
        self.compact(revision)


class CompactableEtcd(EtcdStore):
    """Compaction under the name the laws use."""

    async def compact_history(self, revision: int) -> None:
        await self.compact(revision)


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Cluster]]:
    """One running member of each version."""
    with contextlib.ExitStack() as stack:
        yield {
            f"etcd-{version}": stack.enter_context(
                Cluster(tmp_path_factory.mktemp("etcd"), binary=binary, progress_s=0.2)
            )
            for version, binary in BINARIES.items()
        }


@pytest.fixture
async def store(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[CompactableMemory | CompactableEtcd]:
    """An empty store of the kind named by the test's parameter."""
    kind: str = request.param
    if kind == "memory":
        made: CompactableMemory | CompactableEtcd = CompactableMemory(progress_s=0.2)
    else:
        cluster: Cluster = request.getfixturevalue("clusters")[kind]
        settings = replace(cluster.patient(prefix=f"{tmp_path}/"), probe_s=0.3)
        made = CompactableEtcd(settings, name=kind)
    yield made
    await made.close()
