"""Descriptors as streams: a guest is never held up by its serial port's reader, and a screen's is waited for."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from fabric.rpc.stream import StreamClosed
from hostd.driver.libvirt.descriptors import WAITING_BYTES, DescriptorStream

PLENTY = 1024 * 1024


@pytest.fixture
def guest() -> Iterator[tuple[socket.socket, int]]:
    """The guest's end, and the descriptor that is opened to it."""
    theirs, ours = socket.socketpair()
    theirs.setblocking(False)
    ours.setblocking(False)
    yield theirs, ours.detach()
    theirs.close()


async def _all(stream: DescriptorStream) -> bytes:
    said = b""
    while True:
        try:
            said += await stream.receive()
        except StreamClosed:
            return said


async def test_who_does_not_read_a_serial_port_loses_the_oldest_and_is_told(
    guest: tuple[socket.socket, int],
) -> None:
    theirs, ours = guest
    stream = DescriptorStream(ours, is_lossy=True)

    # All of it is taken, though nobody reads: a guest's kernel would wait otherwise.
    await asyncio.get_running_loop().sock_sendall(theirs, b"o" * PLENTY + b"newest")
    theirs.close()

    said = await _all(stream)
    assert said.startswith(b"\r\n[")
    assert said.endswith(b"newest")
    # What was kept, and what the socket held beside.
    assert WAITING_BYTES <= len(said) < PLENTY
    await stream.close()


async def test_who_does_not_read_a_screen_holds_it_up_and_loses_nothing(
    guest: tuple[socket.socket, int],
) -> None:
    theirs, ours = guest
    stream = DescriptorStream(ours, is_lossy=False)
    drawing = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(theirs, b"x" * 4 * PLENTY))
    await asyncio.sleep(0.2)

    was_held_up = not drawing.done()
    said = b""
    while len(said) < 4 * PLENTY:
        said += await stream.receive()

    assert was_held_up
    assert len(said) == 4 * PLENTY
    await drawing
    await stream.close()


async def test_what_is_typed_waits_for_the_guest_to_take_it(guest: tuple[socket.socket, int]) -> None:
    theirs, ours = guest
    stream = DescriptorStream(ours, is_lossy=True)
    typing = asyncio.ensure_future(stream.send(b"k" * PLENTY))
    await asyncio.sleep(0.1)

    had_to_wait = not typing.done()
    taken = 0
    while taken < PLENTY:
        taken += len(await asyncio.get_running_loop().sock_recv(theirs, 65536))

    await typing
    assert had_to_wait
    await stream.close()


async def test_a_guest_that_goes_ends_both_ways(guest: tuple[socket.socket, int]) -> None:
    theirs, ours = guest
    stream = DescriptorStream(ours, is_lossy=True)
    typing = asyncio.ensure_future(stream.send(b"k" * PLENTY))
    await asyncio.sleep(0.05)

    theirs.close()

    with pytest.raises(StreamClosed):
        await stream.receive()
    with pytest.raises(StreamClosed):
        await typing
    await stream.close()
    await stream.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ours)
