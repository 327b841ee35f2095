"""One watch, kept going over broken streams, dead members and silence."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import structlog

from fabric.deadlines import within
from fabric.errors import Unavailable
from fabric.pb.etcd.v3 import wire_pb2 as pb
from fabric.store.base import Batch, Compacted
from fabric.store.etcd.endpoints import Endpoint, Endpoints, hang_up, raise_if_cancelled
from fabric.store.etcd.sequence import Sequence
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.translate import Namespace
from fabric.store.etcd.wire import PROGRESS_WATCH_ID, WATCH, progress_answers_are_in_step

log = structlog.get_logger()

BACKOFF_S = (0.05, 2.0)

Stream = grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]


class _Broken(Exception):
    """Why a stream was given up. Stays in this module: another stream takes its place."""


async def follow(
    endpoints: Endpoints, settings: EtcdSettings, names: Namespace, *, prefix: str, after: int
) -> AsyncIterator[Batch]:
    """Every change under `prefix` after revision `after`, until the store is closed. Raises Compacted."""
    sequence = Sequence(after)
    backoff_s = BACKOFF_S[0]
    while True:
        try:
            member = await endpoints.connected(wait_s=None)
        except Unavailable:
            return  # waiting for ever fails in one way: the store was closed
        reached = sequence.revision
        gone: int | None = None
        stream = member.stream(WATCH)
        try:
            async for batch in _read(stream, member, settings, names, prefix, sequence):
                yield batch
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, _Broken) as broken:
            if endpoints.is_closed:
                return
            why = f"{broken.code().name}" if isinstance(broken, grpc.aio.AioRpcError) else str(broken)
            log.info(
                "store.watch_resumes",
                prefix=prefix,
                after=sequence.revision,
                endpoint=member.address,
                why=why,
            )
        except Compacted as told:
            gone = told.revision
        finally:
            await hang_up(stream)
        if gone is not None:
            # Raised from here, with the stream forgotten: an exception keeps all its frames, and so a connection.
            del stream
            raise Compacted(gone)
        endpoints.avoid(member)
        # A stream that brought something was a good one: its successor need not wait.
        backoff_s = BACKOFF_S[0] if sequence.revision > reached else min(backoff_s * 2, BACKOFF_S[1])
        await asyncio.sleep(backoff_s * (0.5 + random.random()))  # noqa: S311 - jitter


async def _read(
    stream: Stream,
    member: Endpoint,
    settings: EtcdSettings,
    names: Namespace,
    prefix: str,
    sequence: Sequence,
) -> AsyncIterator[Batch]:
    """What one stream brings. Ends only by raising."""
    key, range_end = names.interval(prefix)
    create = pb.WatchCreateRequest(
        key=key, range_end=range_end, start_revision=sequence.resume_at, progress_notify=True, fragment=True
    )
    sequence.begin_stream()
    await _write(stream, pb.WatchRequest(create_request=create), settings.try_timeout_s)
    async for answer in _answers(stream, settings):
        if answer.compact_revision:
            raise Compacted(answer.compact_revision)
        if answer.canceled:
            raise _Broken(f"cancelled by etcd: {answer.cancel_reason or 'no reason given'}")
        if answer.created:
            continue
        if answer.events or answer.fragment:
            batch = sequence.take(names.events(answer.events), is_fragment=answer.fragment)
        elif answer.watch_id != PROGRESS_WATCH_ID or progress_answers_are_in_step(member.version):
            batch = sequence.mark(answer.header.revision)
        else:
            batch = None
        if batch is not None:
            yield batch


async def _answers(stream: Stream, settings: EtcdSettings) -> AsyncIterator[pb.WatchResponse]:
    """The stream's answers; when it falls silent it is asked for a sign of life, and given up if none comes.

    The reads are tasks because a timeout around grpc.aio's `read` would cancel the whole stream.
    """
    loop = asyncio.get_running_loop()
    reading: asyncio.Future[object] | None = None
    try:
        while True:
            reading = asyncio.ensure_future(stream.read())
            heard_s = loop.time()
            while not (await asyncio.wait({reading}, timeout=settings.probe_s))[0]:
                if loop.time() - heard_s >= settings.silence_s:
                    raise _Broken(f"silent for {settings.silence_s} s")
                probe = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
                await _write(stream, probe, settings.try_timeout_s)
            if reading.cancelled():
                raise _Broken("closed here")  # being cancelled ourselves would have ended the wait above
            answer = reading.result()
            if not isinstance(answer, pb.WatchResponse):
                raise _Broken("ended by etcd")
            yield answer
    finally:
        if reading is not None and not reading.done():
            stream.cancel()
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await reading


async def _write(stream: Stream, request: pb.WatchRequest, timeout_s: float) -> None:
    try:
        async with within(timeout_s):
            await stream.write(request)
    except TimeoutError:
        raise _Broken("takes no requests") from None
    except asyncio.CancelledError:
        raise_if_cancelled()
        raise _Broken("closed here") from None
