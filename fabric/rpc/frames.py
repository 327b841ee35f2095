"""Consoles on the wire: at every hop the same three kinds of frame, a head that says what this is, data, and the end.

    hop                     what opens it        what answers
    client → fabric-api     ConsoleTicket        ConsoleAttached
    fabric-api → conductor  ConsoleWanted        ConsoleOpened
    host → conductor        TunnelHello          (data, or the end)

A `Line` is one end of such a hop. What the other end says is bounded and checked here, because at every hop one side trusts the other less:
a frame is at most `CHUNK_BYTES` and its envelope, a head comes once and first, and nothing comes after the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from fabric.errors import InvalidRequest, Reason
from fabric.model.console import CHUNK_BYTES, ConsoleEnd
from fabric.pb.compute.v1 import console_service_pb2
from fabric.pb.host.v1 import conductor_service_pb2, host_session_service_pb2
from fabric.rpc.stream import Stream, StreamClosed
from fabric.rpc.validate import validate

Head = TypeVar("Head", bound=Message)

_ENVELOPE_BYTES: Final = 1024
"""What a head, or the envelope of data, may take."""


class Speech(Protocol):
    """One end of a console, whatever carries it."""

    async def send(self, data: bytes) -> None:
        """Hand data over, waiting for room. Raises StreamClosed."""
        ...

    async def receive(self) -> bytes | ConsoleEnd:
        """The next data, or why there will be no more.

        Raises StreamClosed where nobody says why, InvalidRequest for what no console says.
        """
        ...

    async def end(self, why: ConsoleEnd) -> None:
        """Say that it is over, where that can still be said."""
        ...


class Line(Generic[Head]):
    """One end of a hop, over a `Stream`. `outgoing` and `incoming` are its messages, each a oneof of a head, `data` and `end`."""

    def __init__(self, stream: Stream, *, outgoing: type[Message], incoming: type[Message]) -> None:
        self._stream = stream
        self._outgoing = outgoing
        self._incoming = incoming

    async def open(self, head: str, message: Message) -> None:
        """Send the head. Raises StreamClosed."""
        await self._stream.send(self._outgoing(**{head: message}).SerializeToString())

    async def head(self, name: str) -> Head:
        """The other end's head. Raises InvalidRequest where it begins with something else, StreamClosed."""
        frame = self._parse(await self._stream.receive())
        if frame.WhichOneof("frame") != name:
            raise InvalidRequest(f"a console begins with {name}", field="frame")
        validate(frame)
        return cast("Head", getattr(frame, name))

    async def send(self, data: bytes) -> None:
        for piece in pieces(data):
            await self._stream.send(self._outgoing(data=piece).SerializeToString())

    async def receive(self) -> bytes | ConsoleEnd:
        frame = self._parse(await self._stream.receive())
        match frame.WhichOneof("frame"):
            case "data":
                return cast("bytes", frame.data)  # type: ignore[attr-defined]  # every message of a hop has it
            case "end":
                return _end(frame.end)  # type: ignore[attr-defined]  # of the generated frame
            case _:
                raise InvalidRequest("a console that has begun carries data, or its end", field="frame")

    async def end(self, why: ConsoleEnd) -> None:
        with contextlib.suppress(StreamClosed):
            await self._stream.send(self._outgoing(end=int(why)).SerializeToString())

    async def close(self) -> None:
        """Hang up."""
        await self._stream.close()

    def _parse(self, data: bytes) -> Message:
        if len(data) > CHUNK_BYTES + _ENVELOPE_BYTES:
            raise InvalidRequest(
                f"a frame has at most {CHUNK_BYTES} bytes of data", field="frame", reason=Reason.TOO_LARGE
            )
        frame = self._incoming()
        try:
            frame.ParseFromString(data)
        except DecodeError:
            raise InvalidRequest(
                "the frame does not parse", field="frame", reason=Reason.MESSAGE_MALFORMED
            ) from None
        return frame


def pieces(data: bytes) -> Iterator[bytes]:
    """Data in frames' sizes."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def _end(number: int) -> ConsoleEnd:
    """A reason of this version; a newer one's is not known here."""
    try:
        return ConsoleEnd(number)
    except ValueError:
        return ConsoleEnd.UNSPECIFIED


def client_side(stream: Stream) -> Line[console_service_pb2.ConsoleTicket]:
    """fabric-api's end of what a client opened."""
    return Line(
        stream,
        outgoing=console_service_pb2.AttachConsoleResponse,
        incoming=console_service_pb2.AttachConsoleRequest,
    )


def to_conductor(stream: Stream) -> Line[conductor_service_pb2.ConsoleOpened]:
    """fabric-api's end of what it opens at a conductor."""
    return Line(
        stream,
        outgoing=conductor_service_pb2.OpenConsoleRequest,
        incoming=conductor_service_pb2.OpenConsoleResponse,
    )


def api_side(stream: Stream) -> Line[conductor_service_pb2.ConsoleWanted]:
    """The conductor's end of what an API server opened."""
    return Line(
        stream,
        outgoing=conductor_service_pb2.OpenConsoleResponse,
        incoming=conductor_service_pb2.OpenConsoleRequest,
    )


def host_side(stream: Stream) -> Line[host_session_service_pb2.TunnelHello]:
    """The conductor's end of a tunnel that a host dialled."""
    return Line(
        stream,
        outgoing=host_session_service_pb2.TunnelResponse,
        incoming=host_session_service_pb2.TunnelRequest,
    )


Tunnel = Line[Message]
"""The host's end of a tunnel: its other end sends no head."""


def to_tunnel(stream: Stream) -> Tunnel:
    """The host's end of a tunnel that it dials."""
    return Line(
        stream,
        outgoing=host_session_service_pb2.TunnelRequest,
        incoming=host_session_service_pb2.TunnelResponse,
    )


# -- heads, as values --------------------------------------------------------------------------------


async def say_opened(line: Line[conductor_service_pb2.ConsoleWanted]) -> None:
    """Tell an API server that its console is open. Raises StreamClosed."""
    await line.open("opened", conductor_service_pb2.ConsoleOpened())


async def say_hello(line: Tunnel, *, epoch: int, question: int) -> None:
    """Open a tunnel: which question of which session this answers. Raises StreamClosed."""
    await line.open("hello", host_session_service_pb2.TunnelHello(epoch=epoch, question=question))
