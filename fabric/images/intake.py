"""Taking in the images that hosts make: bytes for a record that waits, looked at like anybody's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog

from fabric.clock import Clock
from fabric.errors import Ambiguous, Conflict, NotFound
from fabric.images.base import Blobs
from fabric.images.core import snapshots
from fabric.images.core.inspect import Accepted, ImageLimits
from fabric.images.service import Received, receive
from fabric.model.image import Image, ImageFormat, ImageOffer, ImageState
from fabric.store.base import Committed, Store, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import IMAGE, IMAGE_NAME
from fabric.store.parsed import parsed

log = structlog.get_logger()

TRIES: Final = 8
ROTATED_AT_ONCE: Final = 24
"""Backups that go in one transaction: the store compares and writes 128 keys at once."""


class Intake:
    """See the module."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        *,
        limits: ImageLimits,
        clock: Clock,
        jitter: Callable[[], float],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._limits = limits
        self._clock = clock
        self._jitter = jitter

    async def take(self, offer: ImageOffer, pieces: AsyncIterator[bytes]) -> Image:
        """Keep the bytes as the image that waits for them. An image that has its bytes takes no others: they were the first.

        Raises:
            NotFound: no image waits for this instance's disk under this id.
            InvalidRequest: the bytes are not what was offered, or not an image that is accepted.
            TooMuch: there are too many of them.
        """
        image, _ = await self._waiting(offer)
        if image.state is ImageState.ACTIVE:
            return image
        received = await receive(
            self._blobs,
            pieces,
            declared=ImageFormat.QCOW2,
            expected_sha256=offer.sha256,
            limits=self._limits,
            owner=image.project_id,
            expected=Accepted(offer.size_bytes, offer.virtual_size_bytes),
        )
        return await self._keep(offer, received)

    async def _keep(self, offer: ImageOffer, received: Received) -> Image:
        for _ in range(TRIES):
            image, revision = await self._waiting(offer)
            if image.state is ImageState.ACTIVE:
                return image
            after = snapshots.taken(
                image,
                sha256=received.sha256,
                size_bytes=received.size_bytes,
                virtual_size_bytes=received.virtual_size_bytes,
                now_ms=self._clock.now_ms(),
            )
            txn, gone = await self._write(after, revision)
            try:
                if isinstance(await self._store.commit(txn), Committed):
                    log.info("image.taken", image=after.id, instance=offer.instance_id, rotated_out=gone)
                    return after
            except Ambiguous:
                pass  # read again: whether it was applied is what counts (R12)
            await asyncio.sleep(0.05 * (0.5 + self._jitter()))
        raise Conflict("the image's record kept changing", image=offer.image_id)

    async def _waiting(self, offer: ImageOffer) -> tuple[Image, int]:
        """The record that waits for this disk, or has it, and its revision. Raises NotFound."""
        key = IMAGE.at(offer.image_id)
        seen = await self._store.get(key)
        value = seen.value(key)
        image = None if value is None else decode(Image, value)
        if image is None or image.properties.get(snapshots.INSTANCE) != offer.instance_id:
            raise NotFound("no image waits for this", image=offer.image_id)
        return image, seen.seen(key)

    async def _write(self, after: Image, revision: int) -> tuple[Txn, list[str]]:
        """The image as it is now, and, of its backups, those that go with its coming."""
        key = IMAGE.at(after.id)
        unchanged, delete = {key: revision}, []
        gone: list[str] = []
        if snapshots.ROTATION in after.properties:
            listed = await self._store.list(IMAGE.under())
            # One that does not parse is no backup that could go.
            images = [image for _, image in parsed(Image, listed)]
            for old in snapshots.rotated_out(after, images)[:ROTATED_AT_ONCE]:
                # Servers are perhaps still being built from it: its bytes stay for a while.
                await self._blobs.touch(old.sha256)
                unchanged[IMAGE.at(old.id)] = listed.seen(IMAGE.at(old.id))
                delete += [IMAGE.at(old.id), IMAGE_NAME.at(old.project_id, old.name)]
                gone.append(old.id)
        return Txn(unchanged=unchanged, put={key: encode(after)}, delete=delete), gone
