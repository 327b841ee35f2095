"""Taking in images, and sweeping away bytes that nobody names any more."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import structlog

from fabric.errors import FabricError, InvalidRequest, Reason
from fabric.images.base import Blobs
from fabric.images.core.inspect import Accepted, ImageLimits, Inspection
from fabric.model.image import ImageFormat

log = structlog.get_logger()

SWEEP_AGE_S = 7200.0
"""A blob without an image is kept for so long: servers that are still being built from it need its bytes."""

PARTIAL_AGE_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Received:
    """An image that was accepted and is stored."""

    sha256: str
    size_bytes: int
    virtual_size_bytes: int


async def receive(
    blobs: Blobs,
    pieces: AsyncIterator[bytes],
    *,
    declared: ImageFormat,
    expected_sha256: str,
    limits: ImageLimits,
    owner: str,
    expected: Accepted | None = None,
) -> Received:
    """Store an image's bytes, looking at them as they come: what is refused is refused as soon as its header is there.

    `owner` is the project that it is for; `expected` are its sizes, where they were announced.

    Raises:
        InvalidRequest: it is not what it was declared to be, or its digest is not the expected one. Nothing is left of it.
        TooMuch: it is too large, the store is full, or too many are under way, in all or for this project.
    """
    inspection = Inspection(declared, limits)
    digest = hashlib.sha256()
    upload = await blobs.begin(owner)
    try:
        async for piece in pieces:
            inspection.feed(piece)
            digest.update(piece)
            await upload.write(piece)
        accepted = inspection.finish()
        found = digest.hexdigest()
        # Also what tells an upload that was broken off: its stream may end as if there were no more (measured with gRPC).
        if expected_sha256 != found:
            raise InvalidRequest(
                f"the bytes' SHA-256 is {found}, not {expected_sha256}: they were changed on their way, or are not all",
                field="image.sha256",
                reason=Reason.IMAGE_REJECTED,
            )
        if expected not in {None, accepted}:
            raise InvalidRequest(
                "the image is of another size than was announced",
                field="header",
                reason=Reason.IMAGE_REJECTED,
            )
        await upload.keep(found)
    finally:
        await upload.discard()
    return Received(found, accepted.size_bytes, accepted.virtual_size_bytes)


async def sweep(blobs: Blobs, used: Callable[[], Awaitable[frozenset[str]]]) -> int:
    """Remove blobs that no image names, if they are old enough; returns how many. Raises Unavailable."""
    # The blobs first: one that is put and named in between is not in the list.
    old = [blob for blob in await blobs.list() if blob.age_s >= SWEEP_AGE_S]
    kept = await used() if old else frozenset()
    removed = 0
    for blob in old:
        if blob.sha256 not in kept:
            removed += await blobs.delete(blob.sha256, older_than_s=SWEEP_AGE_S)
    return removed + await blobs.clean(older_than_s=PARTIAL_AGE_S)


async def keep_swept(blobs: Blobs, used: Callable[[], Awaitable[frozenset[str]]], *, every_s: float) -> None:
    """Sweep now and then, until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        try:
            removed = await sweep(blobs, used)
            if removed:
                log.info("blobs.swept", removed=removed)
        except (FabricError, OSError) as failed:
            log.warning("blobs.sweep_failed", error=type(failed).__name__)
