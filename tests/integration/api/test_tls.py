"""Certificates of our own authority between real servers and clients: who gets in, and who it is taken for."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from fabric.clock import SystemClock
from fabric.ids import RandomIds
from fabric.model.identity import Principal
from fabric.pb.host.v1 import conductor_service_pb2 as pb
from fabric.rpc import stages
from fabric.rpc.call import bind
from fabric.rpc.channel import channel
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.rpc.tls import TlsFiles
from fabric.server.pki import Authority, create_authority, save
from tests.console_doubles import NoConsoles

NOW_MS = time.time_ns() // 1_000_000
PATH = "/fabric.host.v1.ConductorService/ReadProgress"


class Conductor(NoConsoles):
    def __init__(self) -> None:
        self.asked_by: list[Principal] = []

    async def read_progress(self, request: Any, principal: Principal) -> pb.ReadProgressResponse:
        self.asked_by.append(principal)
        return pb.ReadProgressResponse()

    async def read_console_log(self, request: Any, principal: Principal) -> pb.ReadConsoleLogResponse:
        return pb.ReadConsoleLogResponse()


@pytest.fixture
def authority() -> Authority:
    return create_authority("test", now_ms=NOW_MS)


@pytest.fixture
def conductor() -> Conductor:
    return Conductor()


@pytest.fixture
async def port(authority: Authority, conductor: Conductor, tmp_path: Path) -> AsyncIterator[int]:
    issued = authority.issue_service(
        "conductor", now_ms=NOW_MS, cell="c1", addresses=("127.0.0.1", "localhost")
    )
    server = RpcServer(
        ServerSettings(
            listen="127.0.0.1:0",
            tls=save(issued, authority, tmp_path / "server", "conductor"),
            client_certificates=True,
            drain_s=0.1,
        ),
        bind(pb.DESCRIPTOR.services_by_name["ConductorService"], conductor),
        (stages.report(SystemClock(), RandomIds().new_id), stages.authenticate(None), stages.authorize),
    )
    yield await server.start()
    await server.stop()


async def _ask(port: int, files: TlsFiles) -> None:
    async with channel(f"127.0.0.1:{port}", files) as made:
        await made.unary_unary(PATH)(b"", timeout=30)  # type: ignore[arg-type]  # raw bytes, which the stubs do not know


async def test_a_service_is_known_by_its_uri_and_serial(
    port: int, authority: Authority, conductor: Conductor, tmp_path: Path
) -> None:
    issued = authority.issue_service("api", now_ms=NOW_MS)

    await _ask(port, save(issued, authority, tmp_path, "api"))

    assert conductor.asked_by == [Principal(service="api", cert_serial=issued.serial)]


async def test_a_host_is_not_let_in_where_services_are(
    port: int, authority: Authority, tmp_path: Path
) -> None:
    issued = authority.issue_host("c1", "h1", now_ms=NOW_MS)

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _ask(port, save(issued, authority, tmp_path, "h1"))

    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "fault", ["other authority", "expired", "not yet valid", "name in the common name only"]
)
async def test_who_has_the_wrong_certificate_gets_nothing(
    port: int, authority: Authority, conductor: Conductor, tmp_path: Path, fault: str
) -> None:
    day_ms = 86_400_000
    issued = {
        "other authority": lambda: create_authority("test", now_ms=NOW_MS).issue_service(
            "api", now_ms=NOW_MS
        ),
        "expired": lambda: authority.issue_service("api", now_ms=NOW_MS - 3 * day_ms, days=1),
        "not yet valid": lambda: authority.issue_service("api", now_ms=NOW_MS + day_ms),
        "name in the common name only": lambda: authority.issue(
            "spiffe://cellfabric/service/api", now_ms=NOW_MS, dials=True
        ),
    }[fault]()

    with pytest.raises(grpc.aio.AioRpcError):
        await _ask(port, save(issued, authority, tmp_path, "x"))
    assert conductor.asked_by == []


async def test_a_host_cannot_pose_as_a_server(authority: Authority, tmp_path: Path) -> None:
    host = save(authority.issue_host("c1", "h1", now_ms=NOW_MS), authority, tmp_path, "h1")
    server = RpcServer(
        ServerSettings(listen="127.0.0.1:0", tls=host, client_certificates=True, drain_s=0.1),
        bind(pb.DESCRIPTOR.services_by_name["ConductorService"], Conductor()),
        (stages.authorize,),
    )
    port = await server.start()
    api = save(authority.issue_service("api", now_ms=NOW_MS), authority, tmp_path / "api", "api")

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _ask(port, api)
    await server.stop()

    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_without_a_certificate_there_is_no_connection(
    port: int, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    credentials = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes())

    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as made:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await made.unary_unary(PATH)(b"", timeout=30)  # type: ignore[arg-type]  # raw bytes, which the stubs do not know

    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def _handshake(port: int, authority: Authority, version: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        return wrapped.version()


async def test_tls_below_1_3_is_refused(port: int, authority: Authority) -> None:
    assert await asyncio.to_thread(_handshake, port, authority, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises(OSError, match=r"(?i)eof|alert|reset"):
        await asyncio.to_thread(_handshake, port, authority, ssl.TLSVersion.TLSv1_2)


async def test_plain_text_is_refused(port: int) -> None:
    async with channel(f"127.0.0.1:{port}", None) as made:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await made.unary_unary(PATH)(b"", timeout=30)  # type: ignore[arg-type]  # raw bytes, which the stubs do not know

    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_keys_are_readable_by_nobody_else(authority: Authority, tmp_path: Path) -> None:
    authority.save(tmp_path)
    files = save(authority.issue_host("c1", "h1", now_ms=NOW_MS), authority, tmp_path, "h1")

    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "ca.key", files.key_path)} == {0o600}
