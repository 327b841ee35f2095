"""Consoles: a ticket, and being at a server's serial port with it."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc

from fabric.client.calls import Calls
from fabric.errors import Bug
from fabric.model.console import CHUNK_BYTES, ConsoleEnd, ConsoleKind
from fabric.pb.compute.v1 import console_service_pb2 as pb
from fabric.pb.compute.v1.console_service_pb2_grpc import ConsoleServiceStub

__all__ = ["Attachment", "ConsoleEnd", "ConsoleKind", "Consoles", "Ticket"]

_WAITING: Final = 16
"""Pieces of what is typed that may wait for the network: whoever sends more waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The way in, once, for a minute. Both are secrets; `url` is for a browser, and empty for a serial console."""

    ticket: str
    url: str
    expire_time_s: int


class Attachment:
    """Being at a console. One thread iterates over what the guest says; another may send and close."""

    def __init__(self, calls: Calls, stub: ConsoleServiceStub, ticket: str, *, take_over: bool) -> None:
        self._calls = calls
        self._typed: queue.Queue[pb.AttachConsoleRequest | None] = queue.Queue(_WAITING)
        self._is_closed = False
        self.why = ConsoleEnd.UNSPECIFIED
        """Why it has ended, where the server has said."""
        shown = pb.ConsoleTicket(ticket=ticket, take_over=take_over)
        self._typed.put(pb.AttachConsoleRequest(ticket=shown))
        self._call = stub.AttachConsole(iter(self._typed.get, None), metadata=calls.metadata())
        self.name = self._attached().name
        """The server's."""

    def send(self, data: bytes) -> None:
        """Type. Waits while the network is behind; after the end it does nothing."""
        for start in range(0, len(data), CHUNK_BYTES):
            piece = pb.AttachConsoleRequest(data=data[start : start + CHUNK_BYTES])
            while not self._is_closed:
                try:
                    self._typed.put(piece, timeout=0.2)
                    break
                except queue.Full:
                    continue

    def __iter__(self) -> Iterator[bytes]:
        """What the guest says, as it says it, until the end. Raises FabricError where the console is lost."""
        try:
            for frame in self._call:
                if frame.WhichOneof("frame") == "end":
                    self.why = _end(frame.end)
                    return
                yield frame.data
        except grpc.RpcError as lost:
            if not self._is_closed:
                raise self._calls.error(lost) from None
        finally:
            self.close()

    def close(self) -> None:
        """Leave. Safe to call from any thread, at any time, and again."""
        if not self._is_closed:
            self._is_closed = True
            self._call.cancel()
            # The thread that sends waits for what is typed; what it has not sent by now nobody reads.
            with contextlib.suppress(queue.Empty):
                self._typed.get_nowait()
            with contextlib.suppress(queue.Full):
                self._typed.put_nowait(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _attached(self) -> pb.ConsoleAttached:
        try:
            first = next(iter(self._call))
        except grpc.RpcError as refused:
            self.close()
            raise self._calls.error(refused) from None
        except StopIteration:
            self.close()
            raise Bug("the server ended a console without a word") from None
        return first.attached


class Consoles:
    """ConsoleService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = ConsoleServiceStub(calls.channel)

    def ticket(self, instance: str, kind: ConsoleKind) -> Ticket:
        """A ticket for one console of a server, by id or name."""
        request = pb.CreateConsoleTicketRequest(instance=instance, kind=pb.ConsoleKind.ValueType(kind))
        made = self._calls.unary(self._stub.CreateConsoleTicket, request)
        return Ticket(ticket=made.ticket, url=made.url, expire_time_s=made.expire_time.seconds)

    def attach(self, ticket: str, *, take_over: bool = False) -> Attachment:
        """Be at a serial console. Raises WrongState where somebody else is, and is not to be sent away."""
        return Attachment(self._calls, self._stub, ticket, take_over=take_over)


def _end(number: int) -> ConsoleEnd:
    try:
        return ConsoleEnd(number)
    except ValueError:
        return ConsoleEnd.UNSPECIFIED
