"""How a host reaches its conductors, as a port: without gRPC in it, so that a simulation can put its own network there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from fabric.model.image import ImageOffer
from fabric.rpc.stream import Stream


class Dialer(Protocol):
    """Dials out; a host listens on nothing."""

    async def dial(self, endpoint: str) -> Stream:
        """Open a session's stream to the conductor at `name:port`. Raises Unavailable."""
        ...

    def fetch_image(self, endpoint: str, image_id: str, offset: int) -> AsyncIterator[bytes]:
        """An image's bytes from `offset` on, in chunks of at most 1 MiB. Raises Unavailable, NotFound or PermissionDenied, at any chunk."""
        ...

    async def upload_image(self, endpoint: str, offer: ImageOffer, chunks: AsyncIterator[bytes]) -> None:
        """Hand an image in, whole. Returns when it is taken, now or before.

        Raises NotFound where nobody wants it, another FabricError where it is refused, Unavailable; and whatever reading the chunks does.
        """
        ...

    async def tunnel(self, endpoint: str) -> Stream:
        """Open a console's tunnel to the conductor that has our session, for `fabric.rpc.frames.to_tunnel`. Raises Unavailable."""
        ...
