"""Import this before anything else in processes that keep running: it makes them smaller by a fifth.

- structlog imports rich wherever it is installed, for tracebacks in colour that servers never write, and the command line, which lives
  in the same environment, wants rich installed. With Pygments that is 4 to 6 MiB in each process.
- glibc gives each thread an arena of its own, and what is freed in one serves no other. gRPC's threads take turns behind Python's lock
  anyway: with one arena for all, a server that has passed images and thousands of calls keeps what it needs, and not what each thread ever
  needed. Large buffers, such as an image's pieces, are given back when they are freed, and do not make glibc keep more of their size.
  Set by mallopt(3) because nobody starts hostd with an environment we choose; elsewhere than on glibc nothing happens.
- What lies free between things that are used is not given back by itself, and after an image has passed that is most of what it took:
  `give_back` does so now and then.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 128 * 1024
"""glibc's own limit, which it raises to the size of whatever is freed unless it is set."""

GIVE_BACK_S: Final = 5.0
"""Soon after an image has passed. It takes a quarter of a millisecond."""

_LIBC: Final = ctypes.CDLL(None)


async def give_back() -> None:
    """Give memory that is free back to the system (malloc_trim(3)), now and then, until cancelled."""
    trim = getattr(_LIBC, "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(GIVE_BACK_S)
        trim(0)


def _keep_little() -> None:
    mallopt = getattr(_LIBC, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _leave_rich_out() -> None:
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    # What is None there cannot be imported (importlib's own rule); structlog then does without.
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes importing it fail
    try:
        import structlog  # noqa: F401 - only to have it imported
    finally:
        del sys.modules["rich"]


_keep_little()
_leave_rich_out()
