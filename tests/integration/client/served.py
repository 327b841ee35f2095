"""The API in memory, behind a real port: gRPC, TLS and HTTP/2 as they are, everything else as the test wants it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import trustme
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from fabric.errors import FabricError
from fabric.rpc.status import DETAILS_KEY, to_status
from tests.unit.client.fake_api import FILES, METHODS, FakeApi

MAX_MESSAGE_BYTES = 1024 * 1024 + 64 * 1024
"""Enough for a piece of an image with its envelope, and not for two."""


@dataclass(frozen=True)
class Served:
    """Where it is."""

    endpoint: str
    port: int


@contextlib.contextmanager
def served(api: FakeApi, *, authority: trustme.CA | None = None, port: int = 0) -> Iterator[Served]:
    """Serve `api` on loopback: in plain text, or with a certificate for `localhost` of `authority`."""
    pool = ThreadPoolExecutor(4)
    server = grpc.server(
        pool,
        options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)],
    )
    server.add_generic_rpc_handlers(_handlers(api))
    if authority is None:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        certificate = authority.issue_cert("localhost")
        chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
        bound = server.add_secure_port(
            f"localhost:{port}",
            grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)]),
        )
    server.start()
    try:
        yield Served(f"http://127.0.0.1:{bound}" if authority is None else f"localhost:{bound}", bound)
    finally:
        server.stop(grace=None).wait()
        pool.shutdown()


def _handlers(api: FakeApi) -> tuple[grpc.GenericRpcHandler, ...]:
    return tuple(
        grpc.method_handlers_generic_handler(
            service.full_name, {method.name: _handler(api, method) for method in service.methods}
        )
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
    )


def _handler(api: FakeApi, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
    name = METHODS[f"/{method.containing_service.full_name}/{method.name}"]
    parse = GetMessageClass(method.input_type).FromString

    def token(context: grpc.ServicerContext) -> str:
        found = dict(context.invocation_metadata()).get("authorization", "")
        return str(found).removeprefix("Bearer ")

    def one(request: Any, context: grpc.ServicerContext) -> Any:
        # A client that streams is listened to before it is answered, as an upload has to be checked as a whole.
        asked = list(request) if method.client_streaming else request
        try:
            return api.call(name, asked, token(context))
        except FabricError as error:
            refuse(context, error)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            for number, piece in enumerate(api.call(name, request, token(context))):
                if api.break_after[name] and number >= api.break_after[name][0]:
                    api.break_after[name].pop(0)
                    raise api.fail[f"{name}.break"].pop(0)
                yield piece
        except FabricError as error:
            refuse(context, error)

    def serialize(message: Any) -> bytes:
        data: bytes = message.SerializeToString()
        return data

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, parse, serialize)
    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(one, parse, serialize)
    return grpc.unary_unary_rpc_method_handler(one, parse, serialize)


def refuse(context: grpc.ServicerContext, error: FabricError) -> None:
    """End the call with an error, as our servers do."""
    status = to_status(error)
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    context.abort(next(code for code in grpc.StatusCode if code.value[0] == status.code), status.message)
