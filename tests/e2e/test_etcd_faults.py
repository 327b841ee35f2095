"""A member of a store is lost under a stream of creates: it costs seconds, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest

from fabric.client import Client
from fabric.deadlines import within
from fabric.errors import Unavailable
from fabric.store import keys
from fabric.store.base import Store
from fabric.store.etcd import EtcdSettings, EtcdStore
from tests.e2e.running import (
    CREATE_TIMEOUT_S,
    Running,
    a_small_disk,
    until,
)
from tests.history.events import Called, Event, Returned, Wrote
from tests.history.invariants import Checker, is_at_rest

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(600)]

RESUME_S = 5.0
"""A store that has lost a member takes writes again within this."""
PROJECT = "stream"


@pytest.fixture(scope="module")
def fabric(
    fake_fabric: Callable[..., AbstractContextManager[Running]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Three members for each store, two hosts, and a project with room for a stream of servers."""
    with fake_fabric(hosts=2, etcd_members=3) as running:
        client = running.client()
        client.flavors.create(name="tiny", vcpus=1, ram_mib=64, disk_gib=1)
        disk = a_small_disk(tmp_path_factory.mktemp("image"))
        client.images.create(name="disk", file=disk, disk_format="raw", public=True)
        running.cli("project", "create", "--instances", "500", "--cores", "500", "--ram", "64000", PROJECT)
        running.cli("role", "add", "--user", "admin", "--project", PROJECT, "admin")
        yield running


@dataclass
class Stream:
    """Creates, one after the other, by a client of its own; and what it was told."""

    client: Client
    prefix: str
    accepted: dict[str, float] = field(default_factory=dict)
    """When each server was acknowledged, by id."""
    begun: list[float] = field(default_factory=list)
    notes: list[Event] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _calls = itertools.count()

    def run(self) -> None:
        for number in itertools.count():
            if self._stopping.wait(0.2):
                return
            call = next(self._calls)
            name = f"{self.prefix}-{number}"
            self.notes.append(Called(call, "create", PROJECT, name))
            self.begun.append(time.monotonic())
            # An answer that never came is no event: the server may be there, or not (I16).
            with contextlib.suppress(Unavailable):
                made = self.client.instances.create(name=name, flavor="tiny", image="disk")
                self.notes.append(Returned(call, made.id))
                self.accepted[made.id] = time.monotonic()

    @contextlib.contextmanager
    def flowing(self) -> Iterator[Stream]:
        thread = threading.Thread(target=self.run, name=self.prefix)
        thread.start()
        try:
            until(lambda: len(self.accepted) >= 3, "the stream flows")
            yield self
        finally:
            self._stopping.set()
            thread.join()

    def resumed_after(self, moment_s: float) -> float:
        """How long it took from a moment to the first answer to a create that began after it."""

        def answered() -> float | None:
            later = [each for each in self.begun if each > moment_s]
            return next((each for each in self.accepted.values() if later and each > later[0]), None)

        at_s = until(answered, "a create that began after the fault is answered", timeout_s=60, every_s=0.05)
        assert at_s is not None
        return at_s - moment_s


def leader(store: dict[str, Any]) -> str:
    """The member that leads, by its own metrics."""

    def found() -> str | None:
        for member in store["members"]:
            connection = http.client.HTTPConnection("127.0.0.1", member["metrics_port"], timeout=2)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/metrics")
                if b"\netcd_server_is_leader 1\n" in connection.getresponse().read():
                    name: str = member["name"]
                    return name
        return None

    name = until(found, f"{store['name']} has a leader")
    assert name is not None
    return name


@pytest.mark.parametrize("which", ["global", "cell1"])
@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_a_lost_leader_loses_and_doubles_nothing(fabric: Running, which: str, fault: str) -> None:
    stores = {"global": fabric.topology["global_store"], "cell1": fabric.topology["cells"][0]["store"]}
    stream = Stream(fabric.client(project=PROJECT), f"{which}-{fault}")
    watcher = fabric.client(project=PROJECT)

    with stream.flowing():
        member = leader(stores[which])
        fabric.dev("kill", "--signal", "KILL" if fault == "killed" else "STOP", member)
        moment_s = time.monotonic()
        gap_s = stream.resumed_after(moment_s)
        assert leader(stores[which]) != member or fault == "killed"
        # What the stream asked for is not only taken but done, while the member is still lost.
        first = next(iter(each for each, at_s in stream.accepted.items() if at_s > moment_s))
        until(
            lambda: watcher.instances.get(first).status.state == "ACTIVE",
            "a server of after the fault runs",
            timeout_s=CREATE_TIMEOUT_S,
        )
        if fault == "paused":
            fabric.dev("kill", "--signal", "CONT", member)
    assert gap_s < RESUME_S

    until(
        lambda: not [each for each in watcher.instances.list().instances if each.status.state == "BUILD"],
        "everything asked for has come to rest",
        timeout_s=CREATE_TIMEOUT_S,
    )
    found = {each.id: each.status.state for each in watcher.instances.list().instances}
    assert {found.get(each) for each in stream.accepted} == {"ACTIVE"}
    names = [each.name for each in watcher.instances.list().instances]
    assert len(set(names)) == len(names)
    asyncio.run(check_history(fabric, stream.notes))
    fabric.until_ready()
    end_all(watcher)


def end_all(client: Client) -> None:
    """Make room for the next stream."""
    going = client.instances.list().instances
    for each in going:
        client.instances.delete(each.id)
    for each in going:
        assert client.instances.wait_until_gone(each, timeout_s=CREATE_TIMEOUT_S) is None


PASSING = (keys.BUILD.under(), keys.REFUND.under(), keys.TOMBSTONE.under())
"""What is there only while something is under way."""


async def check_history(fabric: Running, notes: list[Event]) -> None:
    """Everything ever written to every store keeps the invariants, and nothing stays under way.

    A build outlives its claim until the scheduler has removed it, and a removal that a change of leaders has cut off is asked for again:
    so what is under way has a while to pass, though every server runs by now.
    """
    checker = Checker()
    for topology in (fabric.topology["global_store"], fabric.topology["cells"][0]["store"]):
        store = open_store(fabric, topology)
        try:
            await nothing_passes(store)
            async for event in history(store):
                checker.take(event)
        finally:
            await store.close()
    for note in notes:
        checker.take(note)
    checker.end_of_revision()
    records = checker.cells["cell1"].instances
    assert checker.accepted <= records.keys()
    assert [each for each, record in records.items() if not is_at_rest(record)] == []
    assert records.keys() == checker.locations.keys()


async def nothing_passes(store: Store) -> None:
    """Return when nothing is under way in the store; fail when something stays so."""
    passing: list[str] = []
    with contextlib.suppress(TimeoutError):
        async with within(CREATE_TIMEOUT_S):
            while passing := [key for key in (await store.list("")).entries if key.startswith(PASSING)]:
                await asyncio.sleep(0.1)
    assert passing == []


async def history(store: Store) -> AsyncGenerator[Wrote]:
    """Every change of a store since its first revision."""
    end = (await store.list("")).revision
    known: dict[str, bytes] = {}
    watch = store.watch("", after=0)
    assert isinstance(watch, AsyncGenerator)
    async with contextlib.aclosing(watch) as batches:
        async for batch in batches:
            for event in batch.events:
                yield Wrote(store.name, event.mod_revision, event.key, known.get(event.key), event.value)
                if event.value is None:
                    known.pop(event.key, None)
                else:
                    known[event.key] = event.value
            if batch.revision >= end:
                return


def open_store(fabric: Running, topology: dict[str, Any]) -> EtcdStore:
    pki = fabric.state / "pki" / f"store-{topology['name']}"
    return EtcdStore(
        EtcdSettings(
            endpoints=tuple(f"127.0.0.1:{member['client_port']}" for member in topology["members"]),
            ca_path=pki / "ca.pem",
            cert_path=pki / "operator.pem",
            key_path=pki / "operator.key",
        ),
        name=topology["name"],
    )
