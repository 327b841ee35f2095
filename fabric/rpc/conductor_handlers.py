"""The conductor's services on the wire: what hosts ask of it, and what API servers do.

Here because generated code stays at the edges; who answers is known by its shape only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from fabric.errors import PermissionDenied, TooMuch
from fabric.model.identity import Principal
from fabric.pb.host.v1 import conductor_service_pb2, host_session_service_pb2
from fabric.rpc.call import Bound, bind
from fabric.rpc.stream import Stream

API: Final = "api"

SESSIONS_AT_ONCE: Final = 8
"""Streams of one host: it has one session, and perhaps a few that are just ending. An escaped guest would open thousands."""

FETCHES_AT_ONCE: Final = 32
"""Images on their way to one host: spawns are few at a time, and each has three at most."""


class Conducts(Protocol):
    """A cell's conductor, as `fabric.conductor.service` makes one."""

    async def serve_host(self, host: str, cert_serial: str, stream: Stream) -> None:
        """Be the conductor of a host for one session."""
        ...

    def fetch_image(
        self, host: str, cert_serial: str, image_id: str, offset_bytes: int
    ) -> AsyncIterator[bytes]:
        """An image's bytes for a host that is to run an instance made from it."""
        ...

    async def read_console_log(
        self, host: str, instance_id: str, placement_epoch: int, tail_bytes: int
    ) -> bytes:
        """The end of an instance's console."""
        ...

    def read_progress(self, instance_ids: Iterable[str]) -> Mapping[str, str]:
        """How far instances' steps are."""
        ...


class HostSessionHandlers:
    """fabric.host.v1.HostSessionService: for hosts of this cell, named by their certificates."""

    def __init__(self, conductor: Conducts, cell: str) -> None:
        self._conductor = conductor
        self._cell = cell
        self._sessions: Counter[str] = Counter()
        self._fetches: Counter[str] = Counter()

    async def session(self, stream: Stream, principal: Principal) -> None:
        """The host's session."""
        self._check(principal)
        with _one_of(self._sessions, principal.host, SESSIONS_AT_ONCE, "sessions"):
            await self._conductor.serve_host(principal.host, principal.cert_serial, stream)

    async def fetch_image(
        self, request: host_session_service_pb2.FetchImageRequest, principal: Principal
    ) -> AsyncIterator[host_session_service_pb2.FetchImageResponse]:
        """The bytes of an image."""
        self._check(principal)
        with _one_of(self._fetches, principal.host, FETCHES_AT_ONCE, "images"):
            async for data in self._conductor.fetch_image(
                principal.host, principal.cert_serial, request.image_id, request.offset_bytes
            ):
                yield host_session_service_pb2.FetchImageResponse(data=data)

    def _check(self, principal: Principal) -> None:
        if principal.cell != self._cell:
            raise PermissionDenied("this host is of another cell", cell=self._cell)


class ConductorHandlers:
    """fabric.host.v1.ConductorService: for API servers."""

    def __init__(self, conductor: Conducts) -> None:
        self._conductor = conductor

    async def read_console_log(
        self, request: conductor_service_pb2.ReadConsoleLogRequest, principal: Principal
    ) -> conductor_service_pb2.ReadConsoleLogResponse:
        """The end of an instance's console."""
        _check_api(principal)
        data = await self._conductor.read_console_log(
            request.host, request.instance_id, request.placement_epoch, request.tail_bytes
        )
        return conductor_service_pb2.ReadConsoleLogResponse(data=data)

    async def read_progress(
        self, request: conductor_service_pb2.ReadProgressRequest, principal: Principal
    ) -> conductor_service_pb2.ReadProgressResponse:
        """How far instances' steps are."""
        _check_api(principal)
        return conductor_service_pb2.ReadProgressResponse(
            progress=self._conductor.read_progress(request.instance_ids)
        )


def bound(conductor: Conducts, cell: str) -> tuple[Bound, ...]:
    """Both services, ready to be served."""
    return (
        *bind(
            host_session_service_pb2.DESCRIPTOR.services_by_name["HostSessionService"],
            HostSessionHandlers(conductor, cell),
        ),
        *bind(
            conductor_service_pb2.DESCRIPTOR.services_by_name["ConductorService"],
            ConductorHandlers(conductor),
        ),
    )


def _check_api(principal: Principal) -> None:
    if principal.service != API:
        raise PermissionDenied("only API servers may ask this")


@contextmanager
def _one_of(counts: Counter[str], host: str, most: int, what: str) -> Iterator[None]:
    """One of what a host may have under way, while it is. Raises TooMuch."""
    if counts[host] >= most:
        raise TooMuch(f"this host has {most} {what} under way already", retry_after_s=1.0, limit=most)
    counts[host] += 1
    try:
        yield
    finally:
        counts[host] -= 1
        if not counts[host]:
            del counts[host]
