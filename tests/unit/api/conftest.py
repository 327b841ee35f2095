from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fabric.store.memory import MemoryStore
from tests.unit.api import network_books
from tests.unit.api.network_world import ADMIN, NetworkWorld


@pytest.fixture
async def world() -> AsyncIterator[NetworkWorld]:
    """With a network outside; the books are checked in the end."""
    made = NetworkWorld(MemoryStore())
    await made.network("public", ADMIN, external=True)
    await made.subnet("public", "172.24.4.0/24", "public-subnet", ADMIN)
    yield made
    await network_books.check(made.store)
