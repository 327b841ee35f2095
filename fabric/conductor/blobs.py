"""Where image bytes come from, as a port: hosts get them only through their conductor, and a conductor only from the fabric's API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol


class BlobSource(Protocol):
    """The fabric's blob store, read only."""

    def read(self, sha256: str, offset_bytes: int) -> AsyncIterator[bytes]:
        """A blob's bytes from an offset, in pieces of at most 1 MiB. Raises NotFound, Unavailable."""
        ...
