"""Images on their way from hosts to the API servers, which keep them: relayed, measured, and noted on the instance's record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.blobs import ImageSink
from fabric.conductor.core import uploads
from fabric.conductor.core.draft import Draft, ref
from fabric.errors import Ambiguous, Conflict, InvalidRequest, PermissionDenied
from fabric.ids import Ids
from fabric.model.image import ImageOffer
from fabric.model.instance import ImageRef
from fabric.store.base import Store
from fabric.store.keys import HOST, INSTANCE

TRIES: Final = 16


class Uploads:
    """See the module."""

    def __init__(
        self,
        store: Store,
        images: ImageSink,
        *,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
        bytes_per_s: float,
    ) -> None:
        self._store = store
        self._images = images
        self._clock = clock
        self._ids = ids
        self._jitter = jitter
        self._bytes_per_s = bytes_per_s

    async def take(
        self, host: str, cert_serial: str, offer: ImageOffer, chunks: AsyncIterator[bytes]
    ) -> None:
        """Take an image that a host hands in. Returns when the record says so, now or before.

        Raises PermissionDenied, NotFound where nobody wants it, TooMuch, InvalidRequest where it is not what was offered or no image,
        Unavailable.
        """
        draft = Draft(await records.read(self._store, [ref(HOST, host), ref(INSTANCE, offer.instance_id)]))
        inventory = draft.get(HOST, host)
        if inventory is None or inventory.cert_serial != cert_serial:
            raise PermissionDenied("this host is not approved with this certificate", host=host)
        now = uploads.check(draft.get(INSTANCE, offer.instance_id), host, offer)
        if now.uploaded is not None and now.uploaded.id == offer.image_id:
            return
        image = await self._images.take(offer, self._measured(offer, chunks))
        await self._note(host, offer, image)

    async def _measured(self, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The chunks, no faster than a host may send and no more than were offered: whoever waits for them learns it."""
        began_s = self._clock.boot_s()
        sent_bytes = 0
        async for chunk in chunks:
            sent_bytes += len(chunk)
            if sent_bytes > offer.size_bytes:
                raise InvalidRequest(
                    f"there are more than the {offer.size_bytes} bytes that were offered", field="data"
                )
            yield chunk
            wait_s = uploads.pause_s(
                sent_bytes, self._clock.boot_s() - began_s, bytes_per_s=self._bytes_per_s
            )
            if wait_s > 0:
                await asyncio.sleep(wait_s)
        if sent_bytes < offer.size_bytes:
            raise InvalidRequest(f"only {sent_bytes} of {offer.size_bytes} bytes came", field="data")

    async def _note(self, host: str, offer: ImageOffer, image: ImageRef) -> None:
        for _ in range(TRIES):
            draft = Draft(await records.read(self._store, [ref(INSTANCE, offer.instance_id)]))
            now = uploads.check(draft.get(INSTANCE, offer.instance_id), host, offer)
            if now.uploaded == image:
                return
            after = uploads.handed_in(now, image, now_ms=self._clock.now_ms(), op_id=self._ids.new_id())
            draft.put(INSTANCE, offer.instance_id, value=after)
            try:
                if await records.commit(self._store, draft):
                    return
            except Ambiguous:
                pass  # read again: whether it was applied is what counts (R12)
            await asyncio.sleep(0.05 * self._jitter())
        raise Conflict("the server's record kept changing", instance=offer.instance_id)
