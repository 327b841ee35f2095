"""Import this before structlog, in processes that keep running: it keeps rich and Pygments out of them.

structlog imports rich wherever it is installed, for tracebacks in colour that servers never write, and the command line, which lives in the
same environment, needs rich installed. The two are 6 MiB in every server and every host daemon.
"""

from __future__ import annotations

import sys

if "structlog" not in sys.modules and "rich" not in sys.modules:
    # What is None there cannot be imported (importlib's own rule); structlog then does without.
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401 - only to have it imported
    finally:
        del sys.modules["rich"]
