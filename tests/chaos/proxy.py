"""A TCP proxy that misbehaves on command: refuses, cuts, breaks in mid-stream, goes silent, delays."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

CHUNK_BYTES = 16 * 1024


class Proxy:
    """Forwards 127.0.0.1:`port` to one endpoint. An async context manager."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        for gate in self._open.values():
            gate.set()
        self._bytes_left: int | None = None
        self.delay_s = 0.0
        self.refuses = False
        self.connections = 0
        self.bytes_down = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    # ------------------------------------------------------------------ faults

    def cut(self) -> None:
        """Reset every connection there is. New ones are accepted."""
        for link in self._links:
            link.cancel()

    def refuse(self) -> None:
        """Reset every connection, and every new one as soon as it is made."""
        self.refuses = True
        self.cut()

    def break_after(self, n_bytes: int) -> None:
        """Let so many more bytes pass towards the client, then reset all connections, once."""
        self._bytes_left = n_bytes

    def silence(self, *directions: str) -> None:
        """Pass nothing on, without closing anything: a black hole. `up` is towards the server, `down` towards the client."""
        for direction in directions or ("up", "down"):
            self._open[direction].clear()

    def heal(self) -> None:
        """Behave from now on. What was held back by a silence is passed on, late."""
        self.refuses = False
        self.delay_s = 0.0
        for gate in self._open.values():
            gate.set()

    # ------------------------------------------------------------------ plumbing

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            if not self.refuses:
                await self._link(reader, writer)
        except (asyncio.CancelledError, OSError):
            pass  # cut, or an end went away: both are what this is for
        finally:
            self._links.discard(task)
            _reset(writer)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        pumps = [
            asyncio.create_task(self._pump(reader, up_writer, "up")),
            asyncio.create_task(self._pump(up_reader, writer, "down")),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            _reset(up_writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str) -> None:
        while data := await source.read(CHUNK_BYTES):
            await self._open[direction].wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if direction == "down":
                data = self._ration(data)
                self.bytes_down += len(data)
            if data:
                sink.write(data)
                await sink.drain()

    def _ration(self, data: bytes) -> bytes:
        if self._bytes_left is None:
            return data
        if len(data) < self._bytes_left:
            self._bytes_left -= len(data)
            return data
        passed, self._bytes_left = data[: self._bytes_left], None
        # Later in this turn of the loop: the part that may pass is written first.
        asyncio.get_running_loop().call_soon(self.cut)
        return passed


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset: what is left unread is lost, as when a machine dies."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
