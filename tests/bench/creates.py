"""Creates through real gRPC and real etcd, one cell, a hundred hosts without hardware: how many, how soon, at what cost.

A create counts from the moment its RPC is sent to the moment its record reads ACTIVE in the cell's store, which this process watches:
asking the API again and again would be a load of its own. The load comes from this process, on the same two cores as everything else.
"""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc
import grpc.aio

from fabric.client import Client
from fabric.client.calls import CHANNEL_OPTIONS
from fabric.ids import RandomIds
from fabric.model.instance import Instance
from fabric.model.states import VmState
from fabric.pb.compute.v1 import instance_service_pb2 as pb
from fabric.pb.compute.v1.instance_service_pb2_grpc import InstanceServiceStub
from fabric.store import codec, keys
from fabric.store.base import Store
from tests.bench.control_plane import CELL, ControlPlane, control_plane
from tests.bench.measure import Memory, Row, cpu_s, median, percentile

BENCH: Final = "creates"
HOSTS: Final = 100
ALONE: Final = 60
CROWD: Final = 1000
IN_FLIGHT: Final = 64
QUIET_S: Final = 6.0
"""How long the idle control plane is watched, to know what it writes anyway."""
REPORTED_S: Final = 12.0
"""After which nothing of earlier creates is still to be written: hosts' measurements come last."""
PATIENCE_S: Final = 120.0

BY_THE_CLOCK: Final = frozenset({"report", "capacity"})
"""Kinds of key that are written every ten seconds at most, however many creates there are: hosts' measurements, cells' capacity."""

_PROPOSALS: Final = "etcd_server_proposals_committed_total"


@dataclass(kw_only=True)
class Load:
    """How one stretch of creates went."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    accepted_s: list[float] = field(default_factory=list)
    claimed_s: list[float] = field(default_factory=list)
    spawned_s: list[float] = field(default_factory=list)
    failed: int = 0
    proposals: float = 0.0
    revisions: int = 0
    paced: int = 0
    """Of the revisions, those that are written by the clock."""
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    shapes: Counter[str] = field(default_factory=Counter)

    @property
    def creates(self) -> int:
        return len(self.latencies_s)


class Bench:
    """A client, and ears in the cell's store."""

    def __init__(self, plane: ControlPlane, channel: grpc.aio.Channel, token: str) -> None:
        self._plane = plane
        # The generated stub's types know the synchronous channel only.
        self._call: Any = InstanceServiceStub(channel).CreateInstance
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._ids = RandomIds()
        self._claimed: dict[str, float] = {}
        self._ended: dict[str, tuple[float, VmState]] = {}
        self._waiting: dict[str, asyncio.Event] = {}

    async def listen(self, store: Store, revision: int) -> None:
        """Hear how every create ends."""
        async for batch in store.watch(keys.INSTANCE.under(), after=revision):
            now_s = time.perf_counter()
            for event in batch.events:
                if event.value is None:
                    continue
                record = codec.decode(Instance, event.value)
                self._claimed.setdefault(record.id, now_s)
                if record.vm_state in {VmState.ACTIVE, VmState.ERROR} and record.id not in self._ended:
                    self._ended[record.id] = now_s, record.vm_state
                    self._waiting.setdefault(record.id, asyncio.Event()).set()

    async def create(self, load: Load) -> None:
        """One, from the RPC to its end."""
        request = pb.CreateInstanceRequest(
            request_id=self._ids.new_id(),
            name="bench",
            flavor="bench",
            image="bench",
            network="default",
            no_config_drive=True,
        )
        sent_s = time.perf_counter()
        answer = await self._call(request, metadata=self._metadata, timeout=30)
        accepted_s = time.perf_counter()
        instance_id = answer.instance.id
        await self._waiting.setdefault(instance_id, asyncio.Event()).wait()
        ended_s, state = self._ended[instance_id]
        if state is VmState.ACTIVE:
            claimed_s = self._claimed[instance_id]
            load.latencies_s.append(ended_s - sent_s)
            load.accepted_s.append(accepted_s - sent_s)
            load.claimed_s.append(claimed_s - sent_s)
            load.spawned_s.append(ended_s - claimed_s)
        else:
            load.failed += 1

    async def stretch(self, count: int, in_flight: int) -> Load:
        """So many creates, so many at a time, with what they cost."""
        load = Load()
        left = iter(range(count))

        async def worker() -> None:
            for _ in left:
                await self.create(load)

        before, revisions, began_cpu = self._proposals(), await self._revisions(), self._cpu()
        began_s = time.perf_counter()
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            for _ in range(in_flight):
                tasks.create_task(worker())
        load.seconds = time.perf_counter() - began_s
        load.cpu_s = {name: spent - began_cpu[name] for name, spent in self._cpu().items()}
        await asyncio.sleep(
            REPORTED_S
        )  # what follows a create, such as its build request's end, is its cost too
        load.proposals = self._proposals() - before
        after = await self._revisions()
        load.revisions = sum(after[name] - revisions[name] for name in after)
        for name, store in self._plane.stores.items():
            load.shapes += await _shapes(store, name, revisions[name], after[name])
        load.paced = sum(
            count
            for shape, count in load.shapes.items()
            if set(shape.partition(": ")[2].split()) <= BY_THE_CLOCK
        )
        return load

    async def quiet(self, seconds: float) -> Load:
        """Nothing, for comparison."""
        before, revisions, began_cpu = self._proposals(), await self._revisions(), self._cpu()
        await asyncio.sleep(seconds)
        after = await self._revisions()
        return Load(
            seconds=seconds,
            proposals=self._proposals() - before,
            revisions=sum(after[name] - revisions[name] for name in after),
            cpu_s={name: spent - began_cpu[name] for name, spent in self._cpu().items()},
        )

    async def _revisions(self) -> dict[str, int]:
        return {name: (await store.get()).revision for name, store in self._plane.stores.items()}

    def _proposals(self) -> float:
        """Everything etcd has put to its members: refused transactions and leases too, reads not."""
        members = [member for store in self._plane.topology.stores for member in store.members]
        return sum(_metric(member.metrics_port, _PROPOSALS) for member in members)

    def _cpu(self) -> dict[str, float]:
        return {"load": cpu_s(os.getpid()), **{name: cpu_s(pid) for name, pid in self._plane.pids.items()}}


def _metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise KeyError(name)


async def _shapes(store: Store, name: str, first: int, last: int) -> Counter[str]:
    """What was written together, by kinds of key: each revision is one transaction."""
    kinds: dict[int, set[str]] = {}
    revision = first
    if last > first:
        async for batch in store.watch("", after=first):
            for event in batch.events:
                if event.mod_revision <= last:
                    sign = "-" if event.value is None else ""
                    kinds.setdefault(event.mod_revision, set()).add(sign + event.key.partition("/")[0])
            revision = batch.revision
            if revision >= last:
                break
    return Counter(f"{name}: {' '.join(sorted(each))}" for each in kinds.values())


def run() -> list[Row]:
    """The whole benchmark, about a minute and a half."""
    return asyncio.run(_run())


async def _run() -> list[Row]:
    async with control_plane(hosts=HOSTS) as plane:
        token = plane.log_in()
        with Client(plane.endpoint, plane.ca, token) as client, TemporaryDirectory() as folder:
            disk = Path(folder) / "disk.raw"
            disk.write_bytes(bytes(64 * 1024))
            client.flavors.create(name="bench", vcpus=1, ram_mib=512, disk_gib=1)
            client.images.create(name="bench", file=disk, disk_format="raw", public=True)
        credentials = grpc.ssl_channel_credentials(plane.ca.read_bytes())
        async with grpc.aio.secure_channel(plane.endpoint, credentials, options=CHANNEL_OPTIONS) as channel:
            bench = Bench(plane, channel, token)
            store = plane.stores[CELL]
            listening = asyncio.create_task(bench.listen(store, (await store.get()).revision))
            try:
                idle = plane.core_memory()
                await bench.stretch(2 * HOSTS, 16)  # every host has the image after that
                await asyncio.sleep(REPORTED_S)
                quiet = await bench.quiet(QUIET_S)
                alone = await bench.stretch(ALONE, 1)
                crowd = await bench.stretch(CROWD, IN_FLIGHT)
                busy = plane.core_memory()
            finally:
                listening.cancel()
    return [
        *_load_rows("1 in flight", alone, quiet, goal="<= 4"),
        *_load_rows(f"{IN_FLIGHT} in flight", crowd, quiet, goal="< 2.5"),
        *_cost_rows(crowd),
        *_memory_rows("idle", idle),
        *_memory_rows(f"after {2 * HOSTS + ALONE + CROWD} creates", busy),
    ]


def _load_rows(which: str, load: Load, quiet: Load, *, goal: str) -> list[Row]:
    background = quiet.proposals / quiet.seconds * (load.seconds + REPORTED_S)
    shapes = "; ".join(f"{count / load.creates:.2f} {shape}" for shape, count in load.shapes.most_common(8))
    return [
        Row(
            bench=BENCH,
            what=f"{which}: rate",
            value=load.creates / load.seconds,
            unit="creates/s",
            n=load.creates,
            note=f"{load.failed} ended in ERROR" if load.failed else "",
        ),
        median(BENCH, f"{which}: RPC to ACTIVE p50", [each * 1000 for each in load.latencies_s], "ms"),
        Row(
            bench=BENCH,
            what=f"{which}: RPC to ACTIVE p99",
            value=percentile(load.latencies_s, 0.99) * 1000,
            unit="ms",
            n=load.creates,
        ),
        *(
            median(BENCH, f"{which}: of which {part}", [each * 1000 for each in samples], "ms")
            for part, samples in (
                ("the RPC", load.accepted_s),
                ("RPC and claim", load.claimed_s),
                ("claim to ACTIVE", load.spawned_s),
            )
        ),
        Row(
            bench=BENCH,
            what=f"{which}: etcd transactions per create",
            value=(load.revisions - load.paced) / load.creates,
            unit="txn",
            n=load.creates,
            goal=goal,
            note=shapes,
        ),
        Row(
            bench=BENCH,
            what=f"{which}: raft proposals per create",
            value=(load.proposals - background) / load.creates,
            unit="txn",
            n=load.creates,
            note=f"refused ones, leases and {load.paced} writes by the clock too, less {background:.0f} of an idle cell",
        ),
    ]


def _cost_rows(load: Load) -> list[Row]:
    busy_s = sum(load.cpu_s.values())
    return [
        Row(
            bench=BENCH,
            what=f"{IN_FLIGHT} in flight: CPU of {name}",
            value=spent / load.creates * 1000,
            unit="ms/create",
            n=load.creates,
            note=f"{spent / load.seconds * 100:.0f} % of a core, {spent / busy_s * 100:.0f} % of all of it",
        )
        for name, spent in sorted(load.cpu_s.items(), key=lambda each: -each[1])
    ]


def _memory_rows(when: str, held: Mapping[str, Memory]) -> list[Row]:
    total = sum(held.values(), Memory(0, 0))
    parts = ", ".join(f"{name} {each.rss:.0f}" for name, each in held.items())
    shares = ", ".join(f"{name} {each.pss:.0f}" for name, each in held.items())
    return [
        Row(
            bench="memory",
            what=f"api + scheduler + conductor + hostd, RSS, {when}",
            value=total.rss,
            unit="MiB",
            goal="<= 300",
            note=parts,
        ),
        Row(
            bench="memory",
            what=f"the same, PSS, {when}",
            value=total.pss,
            unit="MiB",
            note=shares,
        ),
    ]
