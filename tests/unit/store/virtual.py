"""A coroutine run to its end in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

from tests.sim.loop import SimLoop

T = TypeVar("T")


class LoopClock:
    """The running loop's virtual time as both clocks."""

    def now_ms(self) -> int:
        return int(self.boot_s() * 1000)

    def boot_s(self) -> float:
        return asyncio.get_running_loop().time()


def run(main: Coroutine[Any, Any, T]) -> T:
    return SimLoop(Random(0)).run_world(main)
