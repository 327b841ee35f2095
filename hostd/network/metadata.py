"""The metadata service of a host's guests, at 169.254.169.254:80 on their bridge, or in their network's service namespace.

A request is answered for the guest that owns its source address. That is proof enough, because the answer can go nowhere else: the
tap lets no other source address in, and the host's neighbour entry for the address, and the bridge's for its MAC, are pinned to
that guest's tap, so nobody else can complete a TCP handshake under it.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from fabric.clock import Clock
from fabric.deadlines import within
from fabric.model.instance import Guest
from fabric.model.network import METADATA_ADDRESS
from hostd.core.metadata_request import MAX_HEAD_BYTES, Response, parse, respond
from hostd.core.ruleset import METADATA_PORT
from hostd.network.netns import Namespace

_log = structlog.get_logger(__name__)

_PATIENCE_S: Final = 5.0
"""How long a guest may take to ask, and how long to take the answer."""
_MAX_CONNECTIONS: Final = 128
_MAX_PER_GUEST: Final = 8
_SEED_BYTES: Final = 512


class MetadataServer:
    """Serves `lookup`'s guests: a function from an address to the guest that has it."""

    def __init__(
        self,
        namespace: Namespace,
        bridge: str,
        lookup: Callable[[str], Guest | None],
        clock: Clock,
        *,
        addresses: tuple[str, ...] = (METADATA_ADDRESS,),
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._namespace = namespace
        self._bridge = bridge
        self._lookup = lookup
        self._clock = clock
        self._secret = os.urandom(32)
        self._addresses = addresses
        self._patience_s = patience_s
        self._servers: list[asyncio.Server] = []
        self._open: Counter[str] = Counter()

    async def ensure(self) -> None:
        """Listen, unless it does already. Raises OSError."""
        if len(self._servers) == len(self._addresses) and all(each.is_serving() for each in self._servers):
            return
        await self.close()
        for address in self._addresses:
            listening = await self._namespace.listen(address, METADATA_PORT, interface=self._bridge)
            self._servers.append(
                await asyncio.start_server(self._serve, sock=listening, limit=MAX_HEAD_BYTES)
            )

    async def close(self) -> None:
        """Stop listening."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Of a link-local address, without the interface: it is this one.
        address: str = writer.get_extra_info("peername")[0].partition("%")[0]
        admitted = self._open.total() < _MAX_CONNECTIONS and self._open[address] < _MAX_PER_GUEST
        self._open[address] += 1
        try:
            if admitted:
                async with within(self._patience_s):
                    await self._answer(address, reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            _log.debug("metadata.dropped", address=address)
        finally:
            try:
                await self._hang_up(writer)
            finally:
                self._open[address] -= 1
                if not self._open[address]:
                    del self._open[address]

    async def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        """Close a connection, which counts until it is: a guest that asks and does not read would have as many as it likes."""
        writer.close()
        try:
            async with within(self._patience_s):
                await writer.wait_closed()
        except TimeoutError:
            writer.transport.abort()
        except ConnectionError:
            return

    async def _answer(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = parse(await reader.readuntil(b"\r\n\r\n"))
        guest = self._lookup(address)
        response: Response = respond(
            request,
            guest,
            now_s=self._clock.boot_s(),
            secret=self._secret,
            random_seed=os.urandom(_SEED_BYTES),
        )
        _log.info(
            "metadata.answered",
            instance=guest.id if guest else "",
            path=request.path[:128] if request else "",
            status=response.status.value,
        )
        writer.write(response.encode(head_only=request is not None and request.method == "HEAD"))
        await writer.drain()
