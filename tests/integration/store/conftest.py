"""Real etcd, alone or three together, and clients of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from fabric.clock import Clock
from fabric.store.etcd import EtcdSettings, EtcdStore
from tests.chaos.etcd_process import Cluster, find_binaries

BINARIES = find_binaries()


@pytest.fixture(params=list(BINARIES) or ["none"])
def single(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """One member, of each version at hand."""
    if not BINARIES:
        pytest.skip("NO ETCD HERE: run tools/setup first")
    with Cluster(tmp_path, binary=BINARIES[request.param]) as cluster:
        yield cluster


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    """Three members of the newest version at hand."""
    if not BINARIES:
        pytest.skip("NO ETCD HERE: run tools/setup first")
    with Cluster(tmp_path, binary=next(iter(BINARIES.values())), members=3) as cluster:
        yield cluster


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., EtcdStore]]:
    """Makes clients, and closes them when the test is over."""
    async with contextlib.AsyncExitStack() as stack:

        def made(settings: EtcdSettings, name: str = "test", clock: Clock | None = None) -> EtcdStore:
            store = EtcdStore(settings, name=name, clock=clock)
            stack.push_async_callback(store.close)
            return store

        yield made
