"""Time as a port: shells ask a Clock, cores get numbers, simulations make it virtual.

Two times, never mixed: wall time (milliseconds since 1970, for display, tokens and certificates) and boot time (seconds, never set
back, counts suspended time too: for every duration, deadline and permit; rule R5 of the host protocol).
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the time is. Sleeping is `asyncio.sleep`, which a simulation's loop makes virtual."""

    def now_ms(self) -> int:
        """Wall time, milliseconds since 1970-01-01 UTC. May jump."""
        ...

    def boot_s(self) -> float:
        """Seconds on CLOCK_BOOTTIME: monotonic, and running through a suspend."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def boot_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
