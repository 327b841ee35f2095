"""What was done to a server: one record for each action, with its steps. Names are stored by number: append only, never renumber.

Everything in it is ours: a host says which step of a closed list it took, when, and how it ended, never a word of text.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class StepName(enum.IntEnum):
    """What a step does. A step that this version has no name for is OTHER."""

    OTHER = 0
    SCHEDULE = 1
    FETCH_IMAGE = 2
    MAKE_DISKS = 3
    WIRE = 4
    DEFINE = 5
    START = 6
    PRESS_POWER = 7
    PRESS_RESET = 8
    CUT_POWER = 9
    HOLD = 10
    GO_ON = 11
    FORGET = 12
    UNWIRE = 13
    REMOVE_DISKS = 14
    REMAKE_DISKS = 15
    SNAPSHOT = 16
    UPLOAD_IMAGE = 17
    ATTACH = 18
    DETACH = 19
    SET_PASSWORD = 20
    CLEAN_UP = 21


class Outcome(enum.IntEnum):
    """How an action ended. SUPERSEDED: something else was asked for before it did."""

    RUNNING = 0
    DONE = 1
    FAILED = 2
    SUPERSEDED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStep:
    """One step, on the conductor's clock as well as a host's can be placed on it. It failed where there is a `fault_code`."""

    name: StepName
    host: str = ""
    start_ms: int = 0
    finish_ms: int = 0
    fault_code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One action on a server: which in its life (`seq`), who asked, under which request id, and how it went.

    `user_id` is empty for what nobody asked for: a time that was over, a guest that went its own way. The project is kept with it so that
    it may be shown when the server is gone.
    """

    seq: int
    instance_id: str
    project_id: str
    action: str
    request_id: str
    user_id: str = ""
    start_ms: int = 0
    finish_ms: int = 0
    outcome: Outcome = Outcome.RUNNING
    fault_code: str = ""
    message: str = ""
    steps: tuple[EventStep, ...] = ()
