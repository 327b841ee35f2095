"""What is free is given back, for as long as the process lives; and nothing is asked of a library that cannot."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fabric.observability import lean


async def test_free_memory_is_given_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(lean, "GIVE_BACK_S", 0.0)
    monkeypatch.setattr(lean, "_LIBC", SimpleNamespace(malloc_trim=asked.append))

    giving = asyncio.create_task(lean.give_back())
    while len(asked) < 3:
        await asyncio.sleep(0)
    giving.cancel()

    assert set(asked) == {0}


async def test_without_glibc_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "_LIBC", SimpleNamespace())

    await lean.give_back()
