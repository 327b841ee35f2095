"""The browsers' door to consoles: a ticket is taken, and the RFB protocol carried over a WebSocket (RFC 6455), as noVNC speaks it.

Beside it lies the page that shows it, and noVNC's own files where the operator has them. Nobody is let in without a ticket, and a browser
only from pages of our own (its `Origin`): so no other page can use a ticket that it got hold of through a person's browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from fabric.api.consoles import Consoles
from fabric.clock import Clock
from fabric.errors import Bug, FabricError, InvalidRequest, TooMuch, Unavailable
from fabric.model.console import CHUNK_BYTES, ConsoleEnd, ConsoleKind, ConsoleTicket
from fabric.rpc.limits import Limits, LimitSettings
from fabric.rpc.stream import StreamClosed
from fabric.rpc.tls import TlsFiles

log = structlog.get_logger()

SCREEN: Final = "/vnc"
"""Where the WebSocket is."""

TICKETS_PER_PEER: Final = LimitSettings(rate_per_s=2.0, burst=20, in_flight=32, principals=1000)
"""How often one address may show a ticket, and how many consoles it may have."""

OPEN_TIMEOUT_S: Final = 10.0
PING_S: Final = 20.0

_BINARY: Final = Subprotocol("binary")

_CLOSED_WELL: Final = 1000
_CLOSED_BADLY: Final = 4000
"""The first of the codes that are ours to give (RFC 6455, section 7.4.2)."""

_WORD_BYTES: Final = 120
"""What a reason may have, less a little (RFC 6455, section 5.5)."""

_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorSettings:
    """Where browsers come to, and from which pages. `novnc` is a folder with noVNC's `core/` and `vendor/`."""

    listen: str
    url: str
    tls: TlsFiles | None
    origins: tuple[str, ...] = ()
    novnc: Path | None = None
    most: int = 200


class ConsoleDoor:
    """One listening port. Belongs to the event loop it is started on."""

    def __init__(self, settings: DoorSettings, consoles: Consoles, clock: Clock) -> None:
        self._settings = settings
        self._consoles = consoles
        self._clock = clock
        self._limits = Limits(TICKETS_PER_PEER)
        self._origins = {_origin(settings.url), *settings.origins}
        self._admitted: dict[ServerConnection, tuple[ConsoleTicket, str]] = {}
        # Whose tickets are being looked at.
        self._at_the_door = 0
        self._server: Server | None = None

    async def start(self) -> int:
        """Listen; returns the port. Raises Bug when the address cannot be had, or the certificate not be read."""
        settings = self._settings
        host, _, port = settings.listen.rpartition(":")
        try:
            self._server = await serve(
                self._serve,
                host.removeprefix("[").removesuffix("]"),
                int(port),
                ssl=None if settings.tls is None else _tls(settings.tls),
                process_request=self._admit,
                select_subprotocol=_subprotocol,
                # What is compressed takes memory for each viewer, and a screen is compressed by QEMU already.
                compression=None,
                server_header=None,
                open_timeout=OPEN_TIMEOUT_S,
                ping_interval=PING_S,
                ping_timeout=PING_S,
                close_timeout=5.0,
                max_size=CHUNK_BYTES,
                max_queue=4,
                write_limit=CHUNK_BYTES,
                logger=_silent(),
            )
        except OSError as taken:
            raise Bug(
                f"cannot listen for browsers on {settings.listen}: {taken.strerror or taken}"
            ) from taken
        opened: int = next(iter(self._server.sockets)).getsockname()[1]
        log.info("consoles.started", listen=settings.listen, port=opened, novnc=settings.novnc is not None)
        return opened

    async def stop(self) -> None:
        """End every console, and listen no more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    # ---------------------------------------------------------------- before the WebSocket

    async def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Take the ticket, or answer with a file. None opens the WebSocket."""
        try:
            asked = urlsplit(request.path)
        except ValueError:
            return _plain(http.HTTPStatus.NOT_FOUND, "there is no such page")
        if asked.path != SCREEN:
            return await self._file(asked.path)
        if [each.lower() for each in request.headers.get_all("Upgrade")] != ["websocket"]:
            return _plain(http.HTTPStatus.UPGRADE_REQUIRED, "this is a WebSocket")
        # A program has no origin, and no person's browser that could be tricked. No browser has two.
        origins = request.headers.get_all("Origin")
        if len(origins) > 1 or not self._origins.issuperset(origins):
            log.info("console.refused", why="origin")
            return _plain(http.HTTPStatus.FORBIDDEN, "this page may not open consoles")
        if len(self._admitted) + self._at_the_door >= self._settings.most:
            return _plain(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many consoles are open")
        peer = str((connection.remote_address or ("",))[0])
        try:
            self._limits.enter(peer, now_s=self._clock.boot_s())
        except TooMuch:
            return _plain(http.HTTPStatus.TOO_MANY_REQUESTS, "too many tickets from your address")
        self._at_the_door += 1
        try:
            shown = parse_qs(asked.query, max_num_fields=4).get("ticket", [""])[0]
            ticket = await self._consoles.redeem(shown, ConsoleKind.VNC)
        except (FabricError, ValueError) as refused:
            self._limits.leave(peer)
            log.info("console.refused", why="ticket")
            is_away = isinstance(refused, Unavailable)
            status = http.HTTPStatus.SERVICE_UNAVAILABLE if is_away else http.HTTPStatus.FORBIDDEN
            return _plain(status, "the ticket is not valid; make a new one")
        except BaseException:
            self._limits.leave(peer)
            raise
        finally:
            self._at_the_door -= 1
        self._admitted[connection] = ticket, peer
        # Also where the handshake comes to nothing after all.
        connection.connection_lost_waiter.add_done_callback(lambda _: self._forget(connection))
        return None

    def _forget(self, connection: ServerConnection) -> None:
        admitted = self._admitted.pop(connection, None)
        if admitted is not None:
            self._limits.leave(admitted[1])

    async def _file(self, path: str) -> Response:
        name = path.lstrip("/") or "index.html"
        try:
            if name.startswith("novnc/"):
                content = await asyncio.to_thread(self._read_novnc, name.removeprefix("novnc/"))
            else:
                content = _read_page(name)
        except (OSError, ValueError, KeyError):
            return _plain(http.HTTPStatus.NOT_FOUND, "there is no such page")
        return _response(http.HTTPStatus.OK, content, _TYPES[Path(name).suffix])

    def _read_novnc(self, name: str) -> bytes:
        """A file of noVNC's. Raises OSError, ValueError, KeyError for whatever is not one."""
        folder = self._settings.novnc
        if folder is None or Path(name).suffix not in _TYPES:
            raise KeyError(name)
        root = folder.resolve()
        file = (root / name).resolve()
        if not file.is_relative_to(root):
            raise ValueError(name)
        return file.read_bytes()

    # ---------------------------------------------------------------- over the WebSocket

    async def _serve(self, connection: ServerConnection) -> None:
        admitted = self._admitted.get(connection)
        if admitted is None:
            return  # gone again, between its handshake and now
        ticket, _ = admitted
        try:
            await self._consoles.carry(ticket, _Browser(connection))
        except StreamClosed:
            pass  # it is gone already
        except FabricError as refused:
            with contextlib.suppress(ConnectionClosed):
                await connection.close(
                    _CLOSED_BADLY, refused.message.encode()[:_WORD_BYTES].decode(errors="ignore")
                )
        finally:
            self._forget(connection)


class _Browser:
    """A browser's end of a console, as speech."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    async def send(self, data: bytes) -> None:
        try:
            await self._connection.send(data)
        except ConnectionClosed:
            raise StreamClosed from None

    async def receive(self) -> bytes | ConsoleEnd:
        try:
            said = await self._connection.recv()
        except ConnectionClosed:
            raise StreamClosed from None
        if isinstance(said, str):
            raise InvalidRequest("a screen takes bytes, not text", field="data")
        return said

    async def end(self, why: ConsoleEnd) -> None:
        await self._connection.close(_CLOSED_WELL, why.name)


def _subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Older viewers want to be told that there are bytes, newer ones want nothing."""
    return _BINARY if _BINARY in offered else None


def _read_page(name: str) -> bytes:
    """A file of ours. Raises OSError, KeyError for whatever is not one."""
    if "/" in name or Path(name).suffix not in _TYPES:
        raise KeyError(name)
    return (resources.files("fabric.server") / "console_page" / name).read_bytes()


def _origin(url: str) -> str:
    """The origin of a URL, as browsers write it (RFC 6454, section 6.2)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _tls(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.cert_path, files.key_path)
    return context


def _plain(status: http.HTTPStatus, text: str) -> Response:
    return _response(status, f"{text}\n".encode(), "text/plain; charset=utf-8")


def _response(status: http.HTTPStatus, content: bytes, kind: str) -> Response:
    headers = Headers(
        {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "Connection": "close",
        }
    )
    return Response(status.value, status.phrase, headers, content)


def _silent() -> logging.Logger:
    """The library's own words hold what browsers sent, tickets too: ours are enough."""
    quiet = logging.getLogger("websockets.server")
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    return quiet
