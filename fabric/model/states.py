"""The words of an instance's life. Values are stored: append only, never renumber.

Three facts are kept apart, as the reference rightly does: `VmState` is the last stable state (what the customer expects),
`TaskState` is what is in flight (and the lock), `PowerState` is what was last *seen* on the host. The third is never inferred
from the first two.
"""

from __future__ import annotations

import enum


class VmState(enum.IntEnum):
    """The last stable state. Names as in Nova's vm_states."""

    UNSPECIFIED = 0
    BUILDING = 1
    ACTIVE = 2
    STOPPED = 3
    ERROR = 4
    DELETED = 5


class TaskState(enum.IntEnum):
    """What is in flight; NONE is no task. Names as in Nova's task_states."""

    NONE = 0
    SCHEDULING = 1
    NETWORKING = 2
    SPAWNING = 3
    POWERING_ON = 4
    POWERING_OFF = 5
    REBOOTING = 6
    REBOOTING_HARD = 7
    DELETING = 8


class PowerState(enum.IntEnum):
    """What the hypervisor said last. Numbers as in Nova's power_state."""

    NOSTATE = 0
    RUNNING = 1
    PAUSED = 3
    SHUTDOWN = 4
    CRASHED = 6
    SUSPENDED = 7


class Want(enum.IntEnum):
    """What a host must make true of an assignment: desired state, not a command."""

    UNSPECIFIED = 0
    RUN = 1
    STOP = 2
    ABSENT = 3


class Action(enum.StrEnum):
    """What people may ask for. The word is the verb of the API method and of the command line."""

    CREATE = "create"
    START = "start"
    STOP = "stop"
    REBOOT_SOFT = "reboot-soft"
    REBOOT_HARD = "reboot-hard"
    DELETE = "delete"
