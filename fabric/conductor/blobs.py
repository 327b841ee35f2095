"""Where image bytes come from and go to, as ports: hosts only through their conductor, and a conductor only to the fabric's API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from fabric.model.image import ImageOffer
from fabric.model.instance import ImageRef


class BlobSource(Protocol):
    """The fabric's blob store, read only."""

    def read(self, sha256: str, offset_bytes: int) -> AsyncIterator[bytes]:
        """A blob's bytes from an offset, in pieces of at most 1 MiB. Raises NotFound, Unavailable."""
        ...


class ImageSink(Protocol):
    """The fabric's images, for those that hosts make."""

    async def take(self, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> ImageRef:
        """Keep the bytes as the image that waits for them; one that has them already takes no others.

        Raises NotFound where no image waits, InvalidRequest, TooMuch, Unavailable; and what the chunks raise.
        """
        ...
