"""A gRPC server of ours: raw bytes in and out, the stages around every handler, health, reflection, an orderly end.

gRPC's own parsing and its handling of exceptions are not used: both put exception texts on the wire. Every method is served by a
generic handler that passes bytes to an endpoint and turns `Reported` into a status with details.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from fabric.errors import Bug, FabricError, Reason, TooMuch
from fabric.model.identity import Principal
from fabric.rpc.authz import ANYBODY
from fabric.rpc.call import Bound, Call, Endpoint, Stage, chain
from fabric.rpc.channel import KEEPALIVE, KEEPALIVE_MS
from fabric.rpc.method import Method
from fabric.rpc.stages import Reported
from fabric.rpc.status import DETAILS_KEY, to_status
from fabric.rpc.stream import MAX_MESSAGE_BYTES, StreamClosed
from fabric.rpc.tls import TlsFiles, proven, server_credentials

log = structlog.get_logger()

MAX_REQUEST_BYTES = 1024 * 1024
"""The largest message of a method without streams, and of a piece of an image with its envelope excepted."""

MAX_STREAMS = 200
"""Calls that one connection carries at the same time. gRPC has a caller of one more wait, without a word, until another has ended."""

OPTIONS: tuple[tuple[str, int], ...] = (
    *KEEPALIVE,
    # Less than what our clients ping at, or they are sent away for too many pings.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    # A second process on the same port by mistake must fail to start, not take half the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    # A storm of reconnecting hosts is queued, not refused: the default guard loses streams (measured).
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where a server listens, and how it is recognised."""

    listen: str
    """`host:port`; port 0 takes a free one."""
    tls: TlsFiles | None = None
    """None means plain text, which only a test on loopback should want."""
    client_certificates: bool = False
    """Whether nobody gets in without a certificate of our CA."""
    reflection: bool = False
    """Whether anybody may read the service definitions from the server."""
    drain_s: float = 5.0
    """How long calls under way may go on when the server stops."""


class RpcServer:
    """One listening port and the services on it. Belongs to the event loop it is started on."""

    def __init__(self, settings: ServerSettings, bound: Iterable[Bound], stages: Sequence[Stage]) -> None:
        self._settings = settings
        self._bound = tuple(bound)
        self._server = grpc.aio.server(options=OPTIONS)
        self._health = health.aio.HealthServicer()
        self._services = tuple(dict.fromkeys(each.method.service for each in self._bound))
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {
            name: {} for name in self._services
        }
        for each in self._bound:
            endpoint = chain(stages, each.endpoint)
            by_service[each.method.service][each.method.name] = _handler(each.method, endpoint)
        self._server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in by_service.items())
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def start(self, *, serving: bool = True) -> int:
        """Listen; returns the port. Raises Bug when the address cannot be had.

        Health says NOT_SERVING until told otherwise, for a server that is not `serving` yet.
        """
        settings = self._settings
        try:
            if settings.tls is None:
                port = self._server.add_insecure_port(settings.listen)
            else:
                credentials = server_credentials(
                    settings.tls, client_certificates=settings.client_certificates
                )
                port = self._server.add_secure_port(settings.listen, credentials)
        except RuntimeError as taken:
            raise Bug(f"cannot listen on {settings.listen}: is another process there?") from taken
        await self.serving(serving)
        await self._server.start()
        log.info("server.started", listen=settings.listen, port=port, services=self._services)
        return port

    async def serving(self, is_serving: bool) -> None:
        """Tell health checks, and those who watch, whether calls are welcome."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if is_serving else states.NOT_SERVING
        for name in ("", *self._services):
            await self._health.set(name, state)

    async def stop(self) -> None:
        """Say NOT_SERVING, let calls under way end, then cut those that do not."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.drain_s)
        log.info("server.stopped", listen=self._settings.listen)


def _handler(method: Method, endpoint: Endpoint) -> grpc.RpcMethodHandler[bytes, bytes]:
    """The generic handler of one method: no serializers, so bytes stay bytes."""

    async def unary(data: bytes, context: Any) -> bytes:
        pipe = _Once(data, method)
        await _answer(method, endpoint, pipe, context)
        return pipe.answer

    async def stream(context: Any) -> None:
        await _answer(method, endpoint, _Streamed(context), context)

    if not method.streams_requests and not method.streams_responses:
        return grpc.unary_unary_rpc_method_handler(unary)

    async def unary_to_stream(data: bytes, context: Any) -> None:
        await _answer(method, endpoint, _Down(data, context), context)

    async def stream_to_unary(_requests: AsyncIterator[bytes], context: Any) -> bytes:
        pipe = _Up(context)
        await _answer(method, endpoint, pipe, context)
        return pipe.answer

    async def stream_to_stream(_requests: AsyncIterator[bytes], context: Any) -> None:
        await stream(context)

    if not method.streams_requests:
        return grpc.unary_stream_rpc_method_handler(unary_to_stream)
    if not method.streams_responses:
        return grpc.stream_unary_rpc_method_handler(stream_to_unary)
    return grpc.stream_stream_rpc_method_handler(stream_to_stream)


async def _answer(method: Method, endpoint: Endpoint, pipe: Any, context: Any) -> None:
    call = Call(
        method=method,
        pipe=pipe,
        metadata=_metadata(context),
        peer=context.peer(),
        certificate=_certificate(context),
        timeout_s=context.time_remaining(),
    )
    try:
        await endpoint(call)
    except Reported as reported:
        await _abort(context, reported.error, reported.error_id)
    except StreamClosed:
        # The caller has hung up: there is nobody to tell.
        await _abort(context, Bug("closed"), "")


async def _abort(context: Any, error: FabricError, error_id: str) -> None:
    status: status_pb2.Status = to_status(error, error_id=error_id)
    await context.abort_with_status(rpc_status.to_status(status))


def _metadata(context: Any) -> Mapping[str, str]:
    pairs = context.invocation_metadata() or ()
    return {name.lower(): value for name, value in pairs if isinstance(value, str) and name != DETAILS_KEY}


def _certificate(context: Any) -> Principal:
    pems = context.auth_context().get("x509_pem_cert") or ()
    return proven(pems[0]) if pems else ANYBODY


class _Once:
    """The wire of a unary call: one message in, one out."""

    def __init__(self, data: bytes, method: Method) -> None:
        self._data: bytes | None = data
        self.answer = b""

    async def read(self) -> bytes | None:
        data, self._data = self._data, None
        if data is not None and len(data) > MAX_REQUEST_BYTES:
            raise TooMuch(
                f"the request has {len(data)} bytes; at most {MAX_REQUEST_BYTES} are allowed",
                reason=Reason.TOO_LARGE,
                limit=MAX_REQUEST_BYTES,
            )
        return data

    async def write(self, data: bytes) -> None:
        self.answer = data


class _Streamed:
    """The wire of a call with both directions streamed."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        try:
            data = await self._context.read()
        except (grpc.aio.BaseError, grpc.RpcError):
            raise StreamClosed from None
        return None if data is grpc.aio.EOF else bytes(data)

    async def write(self, data: bytes) -> None:
        try:
            await self._context.write(data)
        except (grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError):
            raise StreamClosed from None


class _Up(_Streamed):
    """The wire of an upload: the one answer is returned, not written."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.answer = b""

    async def write(self, data: bytes) -> None:
        self.answer = data


class _Down(_Streamed):
    """The wire of a download: the one request is there already."""

    def __init__(self, data: bytes, context: Any) -> None:
        super().__init__(context)
        self._data: bytes | None = data

    async def read(self) -> bytes | None:
        data, self._data = self._data, None
        return data
