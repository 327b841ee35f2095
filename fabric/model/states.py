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
    PAUSED = 6
    SUSPENDED = 7
    RESCUED = 8
    RESIZED = 9
    SOFT_DELETED = 10
    SHELVED = 11
    SHELVED_OFFLOADED = 12


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
    PAUSING = 9
    UNPAUSING = 10
    SUSPENDING = 11
    RESUMING = 12
    RESCUING = 13
    UNRESCUING = 14
    SHELVING = 15
    SHELVING_IMAGE_PENDING_UPLOAD = 16
    SHELVING_IMAGE_UPLOADING = 17
    SHELVING_OFFLOADING = 18
    UNSHELVING = 19
    RESIZE_PREP = 20
    RESIZE_MIGRATING = 21
    RESIZE_MIGRATED = 22
    RESIZE_FINISH = 23
    RESIZE_REVERTING = 24
    REBUILDING = 25
    REBUILD_BLOCK_DEVICE_MAPPING = 26
    REBUILD_SPAWNING = 27
    IMAGE_SNAPSHOT_PENDING = 28
    IMAGE_SNAPSHOT = 29
    IMAGE_PENDING_UPLOAD = 30
    IMAGE_UPLOADING = 31
    IMAGE_BACKUP = 32
    UPDATING_PASSWORD = 33
    SOFT_DELETING = 34
    RESTORING = 35


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
    PAUSE = 4
    SUSPEND = 5


class Action(enum.StrEnum):
    """What people may ask for. The word is the verb of the API method and of the command line."""

    CREATE = "create"
    START = "start"
    STOP = "stop"
    REBOOT_SOFT = "reboot-soft"
    REBOOT_HARD = "reboot-hard"
    DELETE = "delete"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    SUSPEND = "suspend"
    RESUME = "resume"
    RESCUE = "rescue"
    UNRESCUE = "unrescue"
    SHELVE = "shelve"
    SHELVE_OFFLOAD = "shelve-offload"
    UNSHELVE = "unshelve"
    RESIZE = "resize"
    MIGRATE = "migrate"
    CONFIRM_RESIZE = "confirm-resize"
    REVERT_RESIZE = "revert-resize"
    REBUILD = "rebuild"
    CREATE_IMAGE = "create-image"
    CREATE_BACKUP = "create-backup"
    SOFT_DELETE = "soft-delete"
    RESTORE = "restore"
    CHANGE_PASSWORD = "change-password"  # noqa: S105 - a verb
    ATTACH_INTERFACE = "attach-interface"
    DETACH_INTERFACE = "detach-interface"
    ATTACH_VOLUME = "attach-volume"
    DETACH_VOLUME = "detach-volume"
    SET_METADATA = "set-metadata"
    RENAME = "rename"
    LOCK = "lock"
    UNLOCK = "unlock"
    RESET_STATE = "reset-state"
