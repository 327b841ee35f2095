"""The conductor's services on the wire: what hosts ask of it, and what API servers do.

Here because generated code stays at the edges; who answers is known by its shape only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from fabric.errors import InvalidRequest, PermissionDenied, TooMuch
from fabric.model.identity import Principal
from fabric.model.image import ImageOffer
from fabric.model.network_plan import PlanState
from fabric.model.session import Diagnostics
from fabric.pb.host.v1 import conductor_service_pb2, host_session_service_pb2
from fabric.rpc.call import Bound, bind
from fabric.rpc.plan_codec import pack_plan_state
from fabric.rpc.session_codec import pack_diagnostics
from fabric.rpc.stream import Stream

API: Final = "api"

SESSIONS_AT_ONCE: Final = 8
"""Streams of one host: it has one session, and perhaps a few that are just ending. An escaped guest would open thousands."""

FETCHES_AT_ONCE: Final = 32
"""Images on their way to one host: spawns are few at a time, and each has three at most."""


UPLOADS_AT_ONCE: Final = 4
"""Images on their way from one host: it hands in two at a time, and perhaps a few are just ending."""

TUNNELS_AT_ONCE: Final = 80
"""Consoles of one host's guests: a little more than the conductor asks for, because some are just ending."""

_Who = tuple[str, str]
"""A host and the serial number of a certificate: one that was revoked is counted by itself, and takes nothing of what is the host's."""


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

    async def upload_image(
        self, host: str, cert_serial: str, offer: ImageOffer, chunks: AsyncIterator[bytes]
    ) -> None:
        """The disk of an instance on a host, which was told to hand it in."""
        ...

    async def read_console_log(
        self, host: str, instance_id: str, placement_epoch: int, tail_bytes: int
    ) -> bytes:
        """The end of an instance's console."""
        ...

    def read_progress(self, instance_ids: Iterable[str]) -> Mapping[str, str]:
        """How far instances' steps are."""
        ...

    def read_plan_state(self, host: str) -> PlanState | None:
        """How far a host has got with its network plans."""
        ...

    async def serve_tunnel(self, host: str, cert_serial: str, stream: Stream) -> None:
        """One console that a host has dialled."""
        ...

    async def read_diagnostics(self, host: str, instance_id: str, placement_epoch: int) -> Diagnostics:
        """An instance's counters."""
        ...

    async def set_password(
        self, host: str, instance_id: str, placement_epoch: int, request_id: str, user: str, password: str
    ) -> None:
        """Set a password inside a guest."""
        ...

    async def open_console(self, stream: Stream) -> None:
        """One console, for an API server."""
        ...


class HostSessionHandlers:
    """fabric.host.v1.HostSessionService: for hosts of this cell, named by their certificates."""

    def __init__(self, conductor: Conducts, cell: str) -> None:
        self._conductor = conductor
        self._cell = cell
        self._sessions: Counter[_Who] = Counter()
        self._tunnels: Counter[_Who] = Counter()
        self._fetches: Counter[_Who] = Counter()
        self._uploads: Counter[_Who] = Counter()

    async def session(self, stream: Stream, principal: Principal) -> None:
        """The host's session."""
        self._check(principal)
        with _one_of(self._sessions, principal, SESSIONS_AT_ONCE, "sessions"):
            await self._conductor.serve_host(principal.host, principal.cert_serial, stream)

    async def fetch_image(
        self, request: host_session_service_pb2.FetchImageRequest, principal: Principal
    ) -> AsyncIterator[host_session_service_pb2.FetchImageResponse]:
        """The bytes of an image."""
        self._check(principal)
        with _one_of(self._fetches, principal, FETCHES_AT_ONCE, "images"):
            async for data in self._conductor.fetch_image(
                principal.host, principal.cert_serial, request.image_id, request.offset_bytes
            ):
                yield host_session_service_pb2.FetchImageResponse(data=data)

    async def upload_image(
        self, requests: AsyncIterator[host_session_service_pb2.UploadImageRequest], principal: Principal
    ) -> host_session_service_pb2.UploadImageResponse:
        """The disk of an instance, as an image."""
        self._check(principal)
        with _one_of(self._uploads, principal, UPLOADS_AT_ONCE, "uploads"):
            first = await anext(requests, None)
            if first is None or first.WhichOneof("piece") != "header":
                raise InvalidRequest("the first piece must be the header", field="header")
            header = first.header
            offer = ImageOffer(
                image_id=header.image_id,
                instance_id=header.instance_id,
                placement_epoch=header.placement_epoch,
                sha256=header.sha256,
                size_bytes=header.size_bytes,
                virtual_size_bytes=header.virtual_size_bytes,
            )
            await self._conductor.upload_image(principal.host, principal.cert_serial, offer, _data(requests))
        return host_session_service_pb2.UploadImageResponse()

    async def tunnel(self, stream: Stream, principal: Principal) -> None:
        """A console that was asked for."""
        self._check(principal)
        with _one_of(self._tunnels, principal, TUNNELS_AT_ONCE, "consoles"):
            await self._conductor.serve_tunnel(principal.host, principal.cert_serial, stream)

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

    async def read_plan_state(
        self, request: conductor_service_pb2.ReadPlanStateRequest, principal: Principal
    ) -> conductor_service_pb2.ReadPlanStateResponse:
        """How far a host has got with its network plans."""
        _check_api(principal)
        state = self._conductor.read_plan_state(request.host)
        return conductor_service_pb2.ReadPlanStateResponse(
            state=None if state is None else pack_plan_state(state)
        )

    async def read_diagnostics(
        self, request: conductor_service_pb2.ReadDiagnosticsRequest, principal: Principal
    ) -> conductor_service_pb2.ReadDiagnosticsResponse:
        """An instance's counters."""
        _check_api(principal)
        found = await self._conductor.read_diagnostics(
            request.host, request.instance_id, request.placement_epoch
        )
        return conductor_service_pb2.ReadDiagnosticsResponse(diagnostics=pack_diagnostics(found))

    async def set_password(
        self, request: conductor_service_pb2.SetPasswordRequest, principal: Principal
    ) -> conductor_service_pb2.SetPasswordResponse:
        """Set a password inside a guest."""
        _check_api(principal)
        await self._conductor.set_password(
            request.host,
            request.instance_id,
            request.placement_epoch,
            request.request_id,
            request.user,
            request.password,
        )
        return conductor_service_pb2.SetPasswordResponse()

    async def open_console(self, stream: Stream, principal: Principal) -> None:
        """One console of an instance."""
        _check_api(principal)
        await self._conductor.open_console(stream)


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


async def _data(requests: AsyncIterator[host_session_service_pb2.UploadImageRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("piece") != "data":
            raise InvalidRequest("after the header come bytes, and nothing else", field="data")
        yield request.data


def _check_api(principal: Principal) -> None:
    if principal.service != API:
        raise PermissionDenied("only API servers may ask this")


@contextmanager
def _one_of(counts: Counter[_Who], principal: Principal, most: int, what: str) -> Iterator[None]:
    """One of what a host may have under way, while it is. Raises TooMuch."""
    who = principal.host, principal.cert_serial
    if counts[who] >= most:
        raise TooMuch(f"this host has {most} {what} under way already", retry_after_s=1.0, limit=most)
    counts[who] += 1
    try:
        yield
    finally:
        counts[who] -= 1
        if not counts[who]:
            del counts[who]
