"""What was prepared for an action before it is written, as a value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from fabric.api.core.devices import Beside
from fabric.api.core.intent import Change
from fabric.api.core.moves import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What `fabric.api.core.intent.Intent` takes over.

    `answer` is what the response says besides the server. `undo` takes back what was written elsewhere, where the action is refused.
    """

    change: Change | None = None
    image_id: str = ""
    also: Mapping[str, object] = field(default_factory=dict)
    work: Work | None = None
    beside: Beside | None = None
    answer: Mapping[str, str] = field(default_factory=dict)
    undo: Callable[[], Awaitable[None]] | None = None


NOTHING = Prepared()
