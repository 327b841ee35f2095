"""A whole API server on loopback over stores in memory: real gRPC, real handlers, real tokens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.message import Message

from fabric.api.placed import Whereabouts
from fabric.api.service import Administrator, ApiOptions, ApiService
from fabric.clock import SystemClock
from fabric.errors import FabricError, Unavailable
from fabric.identity.directory import project_writes, user_writes
from fabric.identity.passwords import CHEAP, Passwords
from fabric.ids import RandomIds
from fabric.images.blobs import FileBlobs
from fabric.images.core.inspect import ImageLimits
from fabric.model.host import Cell
from fabric.model.identity import Project, Role, RoleGrant, Token, User
from fabric.model.network_plan import PlanState
from fabric.model.quota import Charge
from fabric.network.core.host_local import default_network
from fabric.observability.audit import Book
from fabric.pb.identity.v1 import token_service_pb2
from fabric.rpc.channel import channel
from fabric.rpc.limits import LimitSettings
from fabric.rpc.method import Method
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.rpc.status import DETAILS_KEY, from_status
from fabric.server.api import internal_stages, public_stages
from fabric.store.base import Txn
from fabric.store.codec import encode
from fabric.store.keys import CELL
from fabric.store.memory import MemoryStore
from fabric.workers import Inline
from tests.console_doubles import NoGuests

ADMIN_PASSWORD = "correct-horse-battery-canary"


@dataclass
class Lines:
    """The audit log's lines."""

    written: list[bytes] = field(default_factory=list)

    def append(self, line: bytes) -> None:
        self.written.append(line)


class NoConductors(NoGuests):
    async def console_log(self, where: Whereabouts, *, tail_bytes: int) -> bytes:
        raise Unavailable("there is no conductor in this test")

    async def plan_state(self, endpoint: str, host: str) -> PlanState | None:
        return None

    async def progress(self, endpoint: str, instance_ids: Sequence[str]) -> Mapping[str, str]:
        return {}


HIDDEN = "Internal error from Core"
"""What gRPC's client says, and no server of ours, when a send meets the end of its call."""

HIDDEN_TRIES = 5

RESTS_S = 0.1
"""A watch that has said nothing for so long is left. Whoever wants to know what it says follows it by itself."""

PATIENCE_S = 60.0


async def _until_it_rests(answers: grpc.aio.UnaryStreamCall[bytes, bytes]) -> AsyncIterator[bytes]:
    while True:
        reading = asyncio.ensure_future(answers.read())
        if not (await asyncio.wait({reading}, timeout=RESTS_S))[0]:
            answers.cancel()
            await asyncio.wait({reading})
            return
        piece = reading.result()
        if not isinstance(piece, bytes):
            return
        yield piece


@dataclass
class FrontDoor:
    """The server, its stores, and a channel to it."""

    service: ApiService
    store: MemoryStore
    cells: Mapping[str, MemoryStore]
    wire: grpc.aio.Channel
    internal: grpc.aio.Channel
    audit: Lines
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[Method, ...]:
        return tuple(bound.method for bound in (*self.service.public(), *self.service.internal()))

    async def send(self, path: str, data: bytes | Sequence[bytes], token: str = "") -> bytes:
        """Raw bytes to any method: one answer, or all of a stream's joined. Raises the error that the server sent.

        Of a server that ends a call while its caller still sends, gRPC at times hides the answer behind an error of its own: it is asked
        again.
        """
        for _ in range(HIDDEN_TRIES):
            try:
                return await self._send(path, data, token)
            except grpc.aio.AioRpcError as raised:
                if raised.details() != HIDDEN:
                    raise error_of(raised) from raised
        raise AssertionError(f"{path} hid its answer {HIDDEN_TRIES} times")

    async def _send(self, path: str, data: bytes | Sequence[bytes], token: str) -> bytes:
        method = next(each for each in self.methods if each.path == path)
        wire = self.internal if method.service.endswith("BlobService") else self.wire
        metadata = (("authorization", f"Bearer {token}"),) if token else None
        pieces = [data] if isinstance(data, bytes) else list(data)
        if method.streams_requests and method.streams_responses:
            session: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = wire.stream_stream(path)
            said = session(iter(pieces), metadata=metadata, timeout=PATIENCE_S)
            return b"".join([piece async for piece in said])
        if method.streams_requests:
            upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = wire.stream_unary(path)
            return await upload(iter(pieces), metadata=metadata, timeout=PATIENCE_S)
        if method.streams_responses:
            download: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = wire.unary_stream(path)
            answers = download(pieces[0], metadata=metadata, timeout=PATIENCE_S)
            # Only a watch has no end. The end of any other is waited for: it may be the refusal that a test is about.
            told = _until_it_rests(answers) if method.name.startswith("Watch") else answers
            return b"".join([piece async for piece in told])
        unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = wire.unary_unary(path)
        return await unary(pieces[0], metadata=metadata, timeout=PATIENCE_S)

    async def ask(self, service: str, name: str, request: Message, who: str = "") -> bytes:
        return await self.send(f"/{service}/{name}", request.SerializeToString(), self.tokens.get(who, ""))

    async def log_in(self, user: str, password: str, project: str = "") -> str:
        request = token_service_pb2.IssueTokenRequest(user=user, password=password, project=project)
        answer = await self.ask("fabric.identity.v1.TokenService", "IssueToken", request)
        return token_service_pb2.IssueTokenResponse.FromString(answer).token


def error_of(raised: grpc.aio.AioRpcError) -> FabricError:
    details = next((value for key, value in raised.trailing_metadata() or () if key == DETAILS_KEY), b"")
    assert isinstance(details, bytes)
    error = from_status(raised.code().value[0], raised.details() or "", details)
    error.facts["grpc_code"] = raised.code().name
    return error


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[FrontDoor]:
    """A front door with two projects, and a token for each kind of person."""
    clock, ids, lines = SystemClock(), RandomIds(), Lines()
    store, cells = MemoryStore("global"), {"c1": MemoryStore("c1")}
    await store.commit(Txn(put={CELL.at("c1"): encode(Cell(name="c1"))}))
    service = ApiService(
        store,
        cells,
        conductors=NoConductors(),
        blobs=FileBlobs(folder, workers=Inline(), clock=clock, ids=ids, total_bytes=1 << 30, uploads=4),
        passwords=Passwords(Inline(), CHEAP),
        options=ApiOptions(
            default_limit=Charge(instances=10, vcpus=20, ram_mib=50_000),
            network=default_network(
                network_id=ids.new_id(), name="default", mtu=1500, dns_servers=(), now_ms=clock.now_ms()
            ),
            image_limits=ImageLimits(max_bytes=1 << 24),
            administrator=Administrator(user="admin", project="admin", password=ADMIN_PASSWORD),
        ),
        clock=clock,
        ids=ids,
        jitter=lambda: 0.5,
    )
    book, limits = Book(lines, clock), LimitSettings(rate_per_s=100_000, burst=100_000)
    servers = [
        RpcServer(ServerSettings(listen="127.0.0.1:0", drain_s=0.1), bound, around)
        for bound, around in (
            (service.public(), public_stages(service, book, limits, clock, ids)),
            (service.internal(), internal_stages(book, clock, ids)),
        )
    ]
    running = asyncio.create_task(service.run())
    ports = [await server.start() for server in servers]
    async with (
        channel(f"127.0.0.1:{ports[0]}", None) as wire,
        channel(f"127.0.0.1:{ports[1]}", None) as internal,
    ):
        await asyncio.wait_for(service.ready.wait(), PATIENCE_S)
        door = FrontDoor(service, store, cells, wire, internal, lines)
        await _people(door)
        yield door
    for server in servers:
        await server.stop()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


PEOPLE = {
    "own reader": ("own", Role.READER),
    "own member": ("own", Role.MEMBER),
    "own admin": ("own", Role.ADMIN),
    "other reader": ("other", Role.READER),
    "other member": ("other", Role.MEMBER),
    "other admin": ("other", Role.ADMIN),
}


async def _people(door: FrontDoor) -> None:
    now_ms = SystemClock().now_ms()
    put: dict[str, bytes] = {}
    for project in ("own", "other"):
        limit = Charge(instances=5, vcpus=10, ram_mib=10_000)
        put |= project_writes(Project(id=project_id(project), name=project), limit, op_id=project).put
    for name, (project, role) in PEOPLE.items():
        user = User(id=name.replace(" ", "-"), name=name.replace(" ", "."))
        grant = RoleGrant(project_id=project_id(project), user_id=user.id, role=role)
        put |= user_writes(user, grant).put
    await door.store.commit(Txn(put=put))
    for name, (project, role) in PEOPLE.items():
        token = Token(
            id="",
            user_id=name.replace(" ", "-"),
            user_name=name.replace(" ", "."),
            project_id=project_id(project),
            project_name=project,
            role=role,
            issue_time_ms=now_ms,
            expire_time_ms=now_ms + 3_600_000,
        )
        door.tokens[name] = await door.service.tokens.issue(token)
    expired = Token(
        id="",
        user_id="own-member",
        user_name="own.member",
        project_id=project_id("own"),
        project_name="own",
        role=Role.MEMBER,
        issue_time_ms=now_ms - 7_200_000,
        expire_time_ms=now_ms - 3_600_000,
    )
    door.tokens["expired"] = await door.service.tokens.issue(expired)
    door.tokens["system admin"] = await door.log_in("admin", ADMIN_PASSWORD)


def project_id(name: str) -> str:
    return {"own": "11111111-1111-4111-8111-111111111111", "other": "22222222-2222-4222-8222-222222222222"}[
        name
    ]
