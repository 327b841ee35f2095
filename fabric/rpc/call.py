"""One call as the server's stages see it, without gRPC: bytes in, bytes out, and who is asking.

Handlers are plain objects with one method per RPC, named as in the proto in snake case and given the parsed request and the principal:

    unary                 async def get_flavor(self, request, principal) -> Response
    requests streamed     async def create_image(self, requests: AsyncIterator, principal) -> Response
    responses streamed    def download_image(self, request, principal) -> AsyncIterator[Response]
    both                  async def session(self, stream: fabric.rpc.stream.Stream, principal) -> None     (raw messages)

so that a simulation calls them as the server does, and nothing in them knows gRPC. The server takes bytes rather than messages,
because malformed ones must become an error of ours and not an exception's text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from fabric.errors import Bug, InvalidRequest, Reason
from fabric.model.identity import Principal
from fabric.rpc.authz import ANYBODY
from fabric.rpc.method import Method, methods
from fabric.rpc.stream import Stream, StreamClosed
from fabric.rpc.validate import validate


class Pipe(Protocol):
    """The wire of one call: what gRPC, or a test, provides."""

    async def read(self) -> bytes | None:
        """The next message; None when the caller has sent its last. Raises StreamClosed when the call is over."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a message. Raises StreamClosed when the call is over."""
        ...


@dataclass(slots=True, kw_only=True)
class Call:
    """One call under way. Stages fill `principal` and `facts`; the facts go into the call's one log line."""

    method: Method
    pipe: Pipe
    metadata: Mapping[str, str]
    """Lower-case names; binary values are left out."""
    peer: str
    """The caller's address, for logs and for slowing down those who guess passwords."""
    certificate: Principal = ANYBODY
    """What the client certificate proves, if there was one."""
    timeout_s: float | None = None
    """What is left of the caller's own deadline."""
    principal: Principal = ANYBODY
    facts: dict[str, object] = field(default_factory=dict)


_TARGETS = ("instance", "flavor", "keypair", "image", "network", "host", "user", "project", "name")
"""Fields that say what a request is about, by id, by name, or as a message with a name."""

Endpoint = Callable[[Call], Awaitable[None]]
"""Answers a call, or raises."""

Stage = Callable[[Endpoint], Endpoint]
"""Wraps an endpoint: what interceptors are elsewhere."""


def chain(stages: Sequence[Stage], endpoint: Endpoint) -> Endpoint:
    """The endpoint within all stages, the first of them outermost."""
    for stage in reversed(stages):
        endpoint = stage(endpoint)
    return endpoint


@dataclass(frozen=True, slots=True)
class Bound:
    """A method and what answers it."""

    method: Method
    endpoint: Endpoint


def bind(service: ServiceDescriptor, handler: object) -> tuple[Bound, ...]:
    """Every method of a service with its handler's.

    Raises:
        Bug: a method without authz, or one that the handler does not have. So a server with a hole does not start.
    """
    return tuple(_bind(method, handler) for method in methods(service))


def _bind(method: Method, handler: object) -> Bound:
    function = getattr(handler, method.attribute, None)
    if not callable(function):
        raise Bug(f"{type(handler).__name__} has no {method.attribute} for {method.path}")
    match method.streams_requests, method.streams_responses:
        case False, False:
            endpoint = _unary(method, function)
        case True, False:
            endpoint = _upload(method, function)
        case False, True:
            endpoint = _download(method, function)
        case _:
            endpoint = _session(function)
    return Bound(method, endpoint)


def _unary(method: Method, function: Callable[..., Any]) -> Endpoint:
    async def answer(call: Call) -> None:
        request = await _only(method, call)
        response: Message = await function(request, call.principal)
        await call.pipe.write(response.SerializeToString())

    return answer


def _upload(method: Method, function: Callable[..., Any]) -> Endpoint:
    async def answer(call: Call) -> None:
        async with aclosing(_requests(method, call)) as requests:
            response: Message = await function(requests, call.principal)
        await call.pipe.write(response.SerializeToString())

    return answer


def _download(method: Method, function: Callable[..., Any]) -> Endpoint:
    async def answer(call: Call) -> None:
        request = await _only(method, call)
        async with aclosing(function(request, call.principal)) as responses:
            async for response in responses:
                await call.pipe.write(response.SerializeToString())

    return answer


def _session(function: Callable[..., Any]) -> Endpoint:
    async def answer(call: Call) -> None:
        await function(_Session(call.pipe), call.principal)

    return answer


class _Session(Stream):
    """A call with both directions streamed, as the port that sessions are written against."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._is_closed = False

    async def send(self, data: bytes) -> None:
        if self._is_closed:
            raise StreamClosed
        await self._pipe.write(data)

    async def receive(self) -> bytes:
        data = None if self._is_closed else await self._pipe.read()
        if data is None:
            raise StreamClosed
        return data

    async def close(self) -> None:
        # The call ends when its handler returns; until then nothing more goes either way.
        self._is_closed = True


async def _only(method: Method, call: Call) -> Message:
    data = await call.pipe.read()
    if data is None:
        raise InvalidRequest("the request is missing", field="", reason=Reason.MESSAGE_MALFORMED)
    return _parse(method, data, call)


async def _requests(method: Method, call: Call) -> AsyncGenerator[Message, None]:
    while (data := await call.pipe.read()) is not None:
        yield _parse(method, data, call)


def _parse(method: Method, data: bytes, call: Call) -> Message:
    request = method.request()
    try:
        request.ParseFromString(data)
    except DecodeError:
        raise InvalidRequest(
            f"the request is not a {method.request.DESCRIPTOR.full_name}",
            field="",
            reason=Reason.MESSAGE_MALFORMED,
        ) from None
    validate(request)
    _note(request, call)
    return request


def _note(request: Message, call: Call) -> None:
    """Keep which request this is and what it is about, for the log and the audit: both fields that are never secret."""
    header = getattr(request, "header", request)
    request_id = getattr(header, "request_id", "")
    if request_id:
        call.facts["request_id"] = request_id
    for name in _TARGETS:
        target = getattr(header, name, "")
        named = target if isinstance(target, str) else getattr(target, "name", "")
        if named:
            call.facts["target"] = named
            return
