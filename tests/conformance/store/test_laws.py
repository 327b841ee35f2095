"""Every store keeps every law."""

from __future__ import annotations

import pytest

from tests.conformance.store.conftest import BINARIES, STORES
from tests.conformance.store.laws import LAWS, CompactingStore, Law


@pytest.mark.parametrize("store", STORES, indirect=True)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
async def test_store(store: CompactingStore, law: Law) -> None:
    await law(store)


def test_a_real_etcd_is_among_the_stores() -> None:
    if not BINARIES:
        pytest.skip("NO ETCD HERE: the fake was checked against its own reflection; run tools/setup first")
    assert len(STORES) > 1
