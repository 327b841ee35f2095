"""Is it ready? One question for each kind of process, asked as those who need it would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fabric.deadlines import within
from fabric.errors import FabricError
from fabric.model.host import Session, SessionState
from fabric.rpc.channel import channel
from fabric.server.dev.files import service_files
from fabric.server.dev.plan import Kind, Process
from fabric.server.dev.topology import Topology
from fabric.store import codec, keys
from fabric.store.base import Store

_PATIENCE_S = 1.0


class Probes:
    """Asks. Belongs to one event loop; `close` it."""

    def __init__(self, topology: Topology, stores: Mapping[str, Store]) -> None:
        self._files = service_files(topology, "api")
        self._stores = stores
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def is_ready(self, process: Process) -> bool:
        """Whether the process does its work now. Never raises for one that does not."""
        match process.kind:
            case Kind.ETCD:
                return await _is_healthy(int(process.target))
            case Kind.SERVER:
                return await self._serves(process.target)
            case Kind.LIBVIRTD:
                return await _listens(process.target)
            case Kind.HOSTD:
                return await self._is_up(process.target)

    async def close(self) -> None:
        """Hang up."""
        await asyncio.gather(*(each.close() for each in self._channels.values()))

    async def _serves(self, endpoint: str) -> bool:
        if endpoint not in self._channels:
            self._channels[endpoint] = channel(endpoint, self._files)
        stub = health_pb2_grpc.HealthStub(self._channels[endpoint])
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _is_up(self, target: str) -> bool:
        cell, _, host = target.partition("/")
        key = keys.SESSION.at(host)
        try:
            value = (await self._stores[cell].get(key)).value(key)
        except FabricError:
            return False
        return value is not None and codec.decode(Session, value).state is SessionState.UP


async def _is_healthy(metrics_port: int) -> bool:
    """Whether an etcd member says that it has a leader (its /health)."""
    with contextlib.suppress(OSError, TimeoutError):
        async with within(_PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", metrics_port)
            try:
                writer.write(b"GET /health HTTP/1.0\r\n\r\n")
                return b'"health":"true"' in await reader.read()
            finally:
                writer.close()
    return False


async def _listens(path: str) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_unix_connection(path)
        writer.close()
        return True
    return False
