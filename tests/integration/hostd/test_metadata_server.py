"""The metadata server over loopback, asked by guests that do not read what it answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fabric.clock import SystemClock
from hostd.network.metadata import MetadataServer
from hostd.network.netns import Namespace
from tests.conformance.guests import a_guest

GUEST = replace(a_guest(), user_data=b"u" * 65_535)
REQUEST = b"GET /openstack/latest/user_data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
AT_ONCE = 8


class Loopback(Namespace):
    """Where the server listens at a port of the kernel's choice."""

    def __init__(self) -> None:
        super().__init__()
        self.port = 0

    async def listen(self, address: str, port: int, *, interface: str) -> socket.socket:
        made = socket.create_server((address, 0))
        self.port = made.getsockname()[1]
        made.setblocking(False)
        return made


@pytest.fixture
async def namespace() -> AsyncIterator[Loopback]:
    found = Loopback()
    server = MetadataServer(
        found, "lo", lambda _: GUEST, SystemClock(), addresses=("127.0.0.1",), patience_s=1.0
    )
    await server.ensure()
    yield found
    await server.close()


async def asked(namespace: Loopback) -> socket.socket:
    """A connection by which the guest has asked, with no more room for the answer than one on a real network has."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    made.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(made, ("127.0.0.1", namespace.port))
    await loop.sock_sendall(made, REQUEST)
    return made


async def everything(guest: socket.socket) -> bytes:
    """What arrives until the server has hung up."""
    loop, read = asyncio.get_running_loop(), b""
    try:
        while piece := await loop.sock_recv(guest, 1 << 16):
            read += piece
    except ConnectionError:
        pass
    finally:
        guest.close()
    return read


async def test_a_guest_that_reads_nothing_has_few_connections_and_not_for_long(namespace: Loopback) -> None:
    async with asyncio.timeout(30):
        idle = [await asked(namespace) for _ in range(AT_ONCE)]
        # Those are being answered by now, or the next would not be one too many.
        await asyncio.sleep(0.2)
        assert await everything(await asked(namespace)) == b""

        while not (read := await everything(await asked(namespace))):
            await asyncio.sleep(0.1)

    assert read.endswith(GUEST.user_data)
    for guest in idle:
        assert not (await everything(guest)).endswith(GUEST.user_data)
