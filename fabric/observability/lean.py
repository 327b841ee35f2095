"""Import this before anything else in processes that keep running: it makes them smaller by a fifth.

- structlog imports rich wherever it is installed, for tracebacks in colour that servers never write, and the command line, which lives
  in the same environment, wants rich installed. With Pygments that is 4 to 6 MiB in each process.
- glibc gives each thread an arena of its own, and what is freed in one serves no other. gRPC's threads take turns behind Python's lock
  anyway: with one arena for all, a server that has passed images and thousands of calls keeps what it needs, and not what each thread ever
  needed. Large buffers, such as an image's pieces, are given back when they are freed, and do not make glibc keep more of their size.
  Set by mallopt(3) because nobody starts hostd with an environment we choose; elsewhere than on glibc nothing happens.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 128 * 1024
"""glibc's own limit, which it raises to the size of whatever is freed unless it is set."""


def _keep_little() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
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
