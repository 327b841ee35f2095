"""A fabric-conductor as a process, on a real etcd that wants certificates too, and hosts that say what a test makes them say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any

import grpc
import grpc.aio

from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.instance import Instance, Request
from fabric.model.session import FromConductor, FromHost, Granted, Hello, Inventory
from fabric.model.states import TaskState, VmState
from fabric.network.addresses import port_at
from fabric.rpc.session_codec import pack_from_host, unpack_from_conductor
from fabric.rpc.tls import TlsFiles, client_credentials
from fabric.server.pki import Authority, create_authority, save
from fabric.store.base import Txn
from fabric.store.codec import decode, encode
from fabric.store.etcd import EtcdStore
from fabric.store.keys import ASSIGNMENT, HOST, INSTANCE, SESSION, USE
from tests.chaos.etcd_process import Cluster, free_ports
from tests.unit.conductor.worlds import assignment_of, guest, instance_id

ROOT = Path(__file__).resolve().parents[3]
SESSION_PATH = "/fabric.host.v1.HostSessionService/Session"
FETCH_PATH = "/fabric.host.v1.HostSessionService/FetchImage"
CELL = "east"
PATIENCE_S = 60.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class ConductorProcess:
    """The process, its authority, and what an administrator and a scheduler would write for it."""

    def __init__(self, folder: Path, cluster: Cluster, store: EtcdStore) -> None:
        self.authority = create_authority("cell east", now_ms=now_ms())
        self.folder = folder
        self.store = store
        (port,) = free_ports(1)
        self.endpoint = f"127.0.0.1:{port}"
        issued = self.authority.issue_service(
            "conductor", now_ms=now_ms(), cell=CELL, addresses=("127.0.0.1",)
        )
        tls = save(issued, self.authority, folder, "conductor")
        known = cluster.certificates
        assert known is not None
        config = folder / "conductor.toml"
        config.write_text(
            f"""
            cell = "{CELL}"
            listen = "{self.endpoint}"
            [log]
            level = "debug"
            [store]
            endpoints = [{", ".join(f'"{each}"' for each in cluster.endpoints)}]
            tls = {{ ca = "{known.ca}", cert = "{known.client_cert}", key = "{known.client_key}" }}
            [tls]
            ca = "{tls.ca_path}"
            cert = "{tls.cert_path}"
            key = "{tls.key_path}"
            """
        )
        self._log_path = folder / "conductor.log"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "cmd/fabric-conductor", "--config", str(config)],
                cwd=ROOT,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def resident_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def certificate(
        self, name: str, *, cell: str = CELL, authority: Authority | None = None
    ) -> tuple[TlsFiles, str]:
        """A host's certificate, and its serial number."""
        issued = (authority or self.authority).issue_host(cell, name, now_ms=now_ms())
        return save(issued, self.authority, self.folder / "hosts", f"{cell}-{name}"), issued.serial

    async def approve(self, name: str) -> TlsFiles:
        """A new certificate for a host, and the administrator's approval of it."""
        files, serial = self.certificate(name)
        await self.put({HOST.at(name): self.inventory(name, serial)})
        return files

    def inventory(self, name: str, serial: str) -> Host:
        return Host(
            name=name,
            cell=CELL,
            zone="z1",
            capacity=Resources(vcpus=8, ram_mib=8192, disk_gib=100),
            cert_serial=serial,
            guest_cidr="10.1.0.0/24",
            slots=100,
            update_time_ms=now_ms(),
        )

    async def place(self, number: int, host: str) -> Instance:
        """What a scheduler's claim writes; there is no other host left to try."""
        request = Request(guest=guest(number), network_id="net", network_name="default")
        ports = (port_at(self.inventory(host, ""), 1, instance_id=instance_id(number), request=request),)
        placed = Instance(
            id=instance_id(number),
            request=request,
            vm_state=VmState.BUILDING,
            task=TaskState.SPAWNING,
            host=host,
            placement_epoch=2,
            generation=3,
            slot=1,
            ports=ports,
            attempt=3,
            task_start_ms=now_ms(),
            task_deadline_ms=now_ms() + 600_000,
            create_time_ms=now_ms(),
            op_id=f"claim-{number}",
        )
        resources = Resources(vcpus=1, ram_mib=512, disk_gib=1)
        await self.put(
            {
                INSTANCE.at(placed.id): placed,
                ASSIGNMENT.at(host, placed.id): assignment_of(placed),
                USE.at(host): Use(host=host).plus(resources, 1, op_id=f"claim-{number}"),
            }
        )
        return placed

    async def put(self, values: dict[str, Any]) -> None:
        await self.store.commit(Txn(put={key: encode(value) for key, value in values.items()}))

    async def until_up(self, host: str) -> None:
        """Return when the conductor has written that a host is up."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                value = (await self.store.get(SESSION.at(host))).value(SESSION.at(host))
                if value is not None and decode(Session, value).state is SessionState.UP:
                    return
                await asyncio.sleep(0.05)

    async def everything(self) -> dict[str, bytes]:
        """Every key there is."""
        return {key: entry.value for key, entry in (await self.store.list("")).entries.items()}

    async def settled(self) -> dict[str, bytes]:
        """Every key, once nothing but what goes on for ever has been written for a while."""
        async with asyncio.timeout(PATIENCE_S * 4):
            before = await self.everything()
            while True:
                await asyncio.sleep(1.5)
                after = await self.everything()
                if after == before:
                    return after
                before = after


class HostEnd:
    """A host's end of a real stream. What it hears is kept, so that it never is a slow reader."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        self.call = call
        self.epoch = 0
        self.heard: asyncio.Queue[FromConductor | None] = asyncio.Queue()
        self._hearing = asyncio.create_task(self._hear())

    async def _hear(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            while isinstance(data := await self.call.read(), bytes):
                self.heard.put_nowait(unpack_from_conductor(data))
        self.heard.put_nowait(None)

    async def say(self, message: FromHost | bytes) -> None:
        await self.call.write(message if isinstance(message, bytes) else pack_from_host(message))

    async def next_of(self, kind: type[FromConductor] | UnionType) -> FromConductor | None:
        """The next message of a kind; None when the stream is over before one comes."""
        async with asyncio.timeout(PATIENCE_S):
            while (message := await self.heard.get()) is not None:
                if isinstance(message, kind):
                    return message
        return None

    async def join(self) -> Granted:
        await self.say(Hello(boot_id="boot", agent_version="1", highest_epoch=0))
        granted = await self.next_of(Granted)
        assert isinstance(granted, Granted), "no session was granted"
        self.epoch = granted.epoch
        return granted

    async def come_up(self) -> None:
        await self.join()
        await self.say(Inventory(epoch=self.epoch))

    async def close(self) -> None:
        self._hearing.cancel()
        self.call.cancel()
        await asyncio.gather(self._hearing, return_exceptions=True)


def unlimited(conductor: ConductorProcess, files: TlsFiles) -> grpc.aio.Channel:
    """A connection of somebody who does not keep to our limits."""
    return grpc.aio.secure_channel(
        conductor.endpoint, client_credentials(files), options=[("grpc.max_send_message_length", -1)]
    )


@contextlib.asynccontextmanager
async def dialled(conductor: ConductorProcess, files: TlsFiles) -> AsyncIterator[HostEnd]:
    """A stream with this certificate."""
    async with unlimited(conductor, files) as wire:
        session: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = wire.stream_stream(SESSION_PATH)
        host = HostEnd(session(wait_for_ready=True, timeout=300))
        try:
            yield host
        finally:
            await host.close()


async def fetched(conductor: ConductorProcess, files: TlsFiles, request: bytes) -> grpc.aio.AioRpcError:
    """What asking for an image ends with; there are no API servers here that could give one."""
    async with unlimited(conductor, files) as wire:
        fetch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = wire.unary_stream(FETCH_PATH)
        try:
            pieces: Sequence[bytes] = [piece async for piece in fetch(request, timeout=20)]
        except grpc.aio.AioRpcError as refused:
            return refused
        raise AssertionError(f"{len(pieces)} pieces came")


def different(before: Instance, after: Instance) -> frozenset[str]:
    """The names of the fields that differ."""
    return frozenset(
        name
        for name in before.__dataclass_fields__
        if replace(before, **{name: getattr(after, name)}) != before
    )
