"""The sending side of a call whose requests are streamed: every failure an error of ours, whoever it was that ended the call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

import grpc
import grpc.aio

from fabric.errors import Unavailable
from fabric.rpc.call_stream import is_cancelling
from fabric.rpc.status import error_of

Q = TypeVar("Q")
R = TypeVar("R")
T = TypeVar("T")


async def send_all(call: grpc.aio.StreamUnaryCall[Q, R], requests: AsyncGenerator[Q, None]) -> R:
    """Send every request, then take the answer. A server that has answered before the last one is heard at once.

    Raises what the server did, Unavailable where there is none, and what iterating raises: then the call is cancelled, so that what was
    sent is not taken for all there was.
    """
    ends: list[grpc.aio.AioRpcError] = []
    call.add_done_callback(lambda _: ends.append(_end_of(call)))
    try:
        # By hand, because gRPC only logs what iterating raises, and a peer that is slow must slow us down.
        async for request in requests:
            try:
                await call.write(request)
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                break  # it has ended; the answer says why
        else:
            await call.done_writing()
        return await call
    except grpc.aio.AioRpcError as failed:
        # A write that fails because the server has ended the call hides why behind an error of gRPC's own. The first end is the server's.
        first = ends[0] if ends else failed
        if first.code() is grpc.StatusCode.OK:
            raise Unavailable("the answer was lost") from None
        why = next((end for end in ends if end.code() is not grpc.StatusCode.INTERNAL), failed)
        raise error_of(why) from None
    except asyncio.CancelledError:
        if is_cancelling():
            raise
        raise Unavailable("the connection was closed") from None
    finally:
        call.cancel()
        await requests.aclose()


def _end_of(call: grpc.aio.StreamUnaryCall[Q, R]) -> grpc.aio.AioRpcError:
    """How a call that is over has ended, as of now: these coroutines do not wait any more."""
    return grpc.aio.AioRpcError(
        _at_once(call.code()),
        grpc.aio.Metadata(),
        _at_once(call.trailing_metadata()),
        details=_at_once(call.details()),
    )


def _at_once(ready: Awaitable[T]) -> T:
    steps = ready.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise asyncio.InvalidStateError("the call is not over")
