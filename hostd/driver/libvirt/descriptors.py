"""A file descriptor as a `Stream`: a guest's serial port or its screen, read and written by the event loop itself.

No thread and no call of libvirt's carries what is typed or shown: libvirt would read a stream that nobody takes from into memory without
end, and stop answering every other call where a guest does not take what is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final

from fabric.rpc.stream import StreamClosed

_PIECE_BYTES: Final = 64 * 1024
WAITING_BYTES: Final = 256 * 1024
"""How much may wait for a slow reader."""


class DescriptorStream:
    """Owns a descriptor that is non-blocking.

    `is_lossy`: what a slow reader does not take is left out, oldest first, with a note in its place, rather than the writer held up. A
    guest waits for its serial port to take each byte, so a viewer who has gone to lunch would stop its kernel.
    """

    def __init__(self, descriptor: int, *, is_lossy: bool) -> None:
        self._descriptor = descriptor
        self._is_lossy = is_lossy
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()
        self._left_out = 0
        self._changed = asyncio.Event()
        self._is_over = False
        self._is_closed = False
        self._writable: asyncio.Future[None] | None = None
        self._listen()

    async def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            if self._is_over:
                raise StreamClosed("the guest has gone off")
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                await self._room()
            except OSError:
                self._end()

    async def receive(self) -> bytes:
        while not self._waiting:
            if self._is_over:
                raise StreamClosed("the guest has gone off")
            self._changed.clear()
            await self._changed.wait()
        said = bytes(self._waiting[:_PIECE_BYTES])
        del self._waiting[:_PIECE_BYTES]
        if self._left_out:
            said = f"\r\n[{self._left_out} bytes were left out]\r\n".encode() + said
            self._left_out = 0
        if not self._is_lossy and not self._is_over:
            self._listen()
        return said

    async def close(self) -> None:
        self._end()
        self._waiting.clear()
        if not self._is_closed:
            self._is_closed = True
            os.close(self._descriptor)

    def _listen(self) -> None:
        self._loop.add_reader(self._descriptor, self._on_readable)

    def _on_readable(self) -> None:
        try:
            said = os.read(self._descriptor, _PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            # What a terminal says when its other side is closed.
            said = b""
        if not said:
            self._end()
            return
        self._waiting += said
        over = len(self._waiting) - WAITING_BYTES
        if self._is_lossy and over > 0:
            del self._waiting[:over]
            self._left_out += over
        elif over >= 0:
            self._loop.remove_reader(self._descriptor)
        self._changed.set()

    async def _room(self) -> None:
        """Wait until more can be written. One task sends at a time."""
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._descriptor, self._on_writable)
        try:
            await self._writable
        finally:
            self._writable = None
            if not self._is_over:
                self._loop.remove_writer(self._descriptor)

    def _on_writable(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _end(self) -> None:
        """There is nothing more to read or to write; what has been read already still is."""
        if self._is_over:
            return
        self._is_over = True
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
        self._on_writable()
        self._changed.set()
