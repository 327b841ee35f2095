"""The caller's end of a gRPC call with both directions streamed, as a `Stream`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc.aio

from fabric.rpc.stream import StreamClosed

BytesCall = grpc.aio.StreamStreamCall[bytes, bytes]


class CallStream:
    """See the module.

    Giving up on `receive` loses nothing: gRPC would cancel the whole call with a read that is cancelled, so the read stays, and the next
    `receive` waits for it.
    """

    def __init__(self, call: BytesCall) -> None:
        self._call = call
        self._reading: asyncio.Future[object] | None = None

    async def send(self, data: bytes) -> None:
        with closed_when_over():
            await self._call.write(data)

    async def receive(self) -> bytes:
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
            # Whoever gives up on it may never look.
            self._reading.add_done_callback(_looked_at)
        with closed_when_over():
            data = await asyncio.shield(self._reading)
        self._reading = None
        if not isinstance(data, bytes):
            raise StreamClosed("the other end has ended it")
        return data

    async def close(self) -> None:
        self._call.cancel()

    async def error(self) -> grpc.aio.AioRpcError | None:
        """What a call that is over has failed with; None where it ended well. Waits for its end."""
        try:
            await self._call.code()
            trailing = await self._call.trailing_metadata()
            code, details = await self._call.code(), await self._call.details()
        except asyncio.CancelledError:
            if is_cancelling():
                raise
            return None
        if code is grpc.StatusCode.OK:
            return None
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)


def _looked_at(reading: asyncio.Future[object]) -> None:
    if not reading.cancelled():
        reading.exception()


@contextmanager
def closed_when_over() -> Iterator[None]:
    """Say StreamClosed for every way in which gRPC says that a call is over."""
    try:
        yield
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as over:
        raise StreamClosed(_words(over)) from None
    except asyncio.CancelledError:
        if is_cancelling():
            raise
        raise StreamClosed("the call was ended here") from None


def is_cancelling() -> bool:
    """Whether this task is being cancelled. gRPC raises CancelledError for a call that was cancelled, too: that is not the same."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _words(over: BaseException) -> str:
    if isinstance(over, grpc.aio.AioRpcError):
        return f"{over.code().name}: {over.details()}"
    return "the call has ended"
