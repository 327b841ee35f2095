"""The servers of the control plane: where each one's objects are put together from its settings, and run."""

import fabric.observability.lean  # noqa: F401 - before any module below imports structlog
