"""The lifecycle table: what people may ask for in which state, what it does, and who may say so.

Everything about actions derives from these rows: the API's methods and refusals, what the conductor writes, what hosts are told, the
command line's verbs, metrics, documentation and tests. Facts about the reference are in Nova's `check_instance_state` decorators; where a
row differs, its comment says why. Numbers are stored: rows may be added, and task numbers are for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fabric.model.instance import OneShot
from fabric.model.session import HostState
from fabric.model.states import Action, PowerState, TaskState, VmState, Want


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row: an action that people may ask for.

    It may start in `allowed` with no task in flight, or taking over one of `preempts`. `task` is shown while it runs and is the lock; with
    NONE the action is done when it is written. `passes` are the later words for the same task. `want` is what the host is then to make
    true (None: what it was), `one_shot` what it is to do once. It ends in `final` (None: in the state that fits what is wanted); when it
    fails, in `on_failure` (None: where it was). `deadline_s` is when somebody must look, added to what the guest itself may take.

    `verb` is the command line's word, where the command is made from this row and nothing else. `is_unplaced` tells that it can also be
    asked of a server that has no host, `despite_lock` that a lock does not refuse it.
    """

    action: Action
    summary: str
    allowed: frozenset[VmState]
    task: TaskState
    want: Want | None = None
    final: VmState | None = None
    deadline_s: int = 0
    on_failure: VmState | None = None
    one_shot: OneShot = OneShot.NONE
    preempts: frozenset[TaskState] = frozenset()
    passes: tuple[TaskState, ...] = ()
    verb: str = ""
    is_unplaced: bool = False
    despite_lock: bool = False


_ON = frozenset({VmState.ACTIVE})
_OFF = frozenset({VmState.STOPPED})
_HELD = frozenset({VmState.PAUSED, VmState.SUSPENDED})
_SHELVED = frozenset({VmState.SHELVED, VmState.SHELVED_OFFLOADED})
_EVERY_STATE = frozenset(VmState) - {VmState.UNSPECIFIED, VmState.DELETED}
_EVERY_OTHER_TASK = frozenset(TaskState) - {TaskState.NONE, TaskState.DELETING}

_POWER_TASKS = frozenset(
    {
        TaskState.POWERING_ON,
        TaskState.POWERING_OFF,
        TaskState.REBOOTING,
        TaskState.REBOOTING_HARD,
        TaskState.PAUSING,
        TaskState.UNPAUSING,
        TaskState.SUSPENDING,
        TaskState.RESUMING,
    }
)
_SNAPSHOT_TASKS = (TaskState.IMAGE_SNAPSHOT, TaskState.IMAGE_PENDING_UPLOAD, TaskState.IMAGE_UPLOADING)
_RESIZE_TASKS = (TaskState.RESIZE_MIGRATING, TaskState.RESIZE_MIGRATED, TaskState.RESIZE_FINISH)

RULES: tuple[Rule, ...] = (
    Rule(
        action=Action.CREATE,
        summary="Build a new server: place it, wire it, fetch its image, boot it.",
        allowed=frozenset(),
        task=TaskState.SPAWNING,
        want=Want.RUN,
        final=VmState.ACTIVE,
        # The reference's build timeout is off by default, which leaves servers in BUILD for ever.
        deadline_s=600,
        on_failure=VmState.ERROR,
    ),
    Rule(
        action=Action.START,
        summary="Power a stopped server on.",
        allowed=_OFF,
        task=TaskState.POWERING_ON,
        want=Want.RUN,
        final=VmState.ACTIVE,
        deadline_s=90,
        verb="start",
    ),
    Rule(
        action=Action.STOP,
        summary="Shut a server down: its power button first, its power after the timeout.",
        allowed=_ON | {VmState.ERROR},
        task=TaskState.POWERING_OFF,
        want=Want.STOP,
        final=VmState.STOPPED,
        deadline_s=90,
    ),
    Rule(
        action=Action.REBOOT_SOFT,
        summary="Ask the guest to reboot; a guest that does not answer is rebooted hard.",
        allowed=_ON,
        task=TaskState.REBOOTING,
        want=Want.RUN,
        final=VmState.ACTIVE,
        deadline_s=180,
        on_failure=VmState.ERROR,
        one_shot=OneShot.REBOOT_SOFT,
    ),
    Rule(
        action=Action.REBOOT_HARD,
        summary="Cut the power, define the server anew from its record, and boot it.",
        allowed=_ON | _OFF | _HELD | {VmState.ERROR},
        task=TaskState.REBOOTING_HARD,
        want=Want.RUN,
        final=VmState.ACTIVE,
        deadline_s=180,
        on_failure=VmState.ERROR,
        one_shot=OneShot.REBOOT_HARD,
        preempts=frozenset(
            {
                TaskState.REBOOTING,
                TaskState.PAUSING,
                TaskState.UNPAUSING,
                TaskState.SUSPENDING,
                TaskState.RESUMING,
            }
        ),
    ),
    Rule(
        action=Action.PAUSE,
        summary="Hold a server where it is, in memory.",
        allowed=_ON,
        task=TaskState.PAUSING,
        want=Want.PAUSE,
        final=VmState.PAUSED,
        deadline_s=60,
        verb="pause",
    ),
    Rule(
        action=Action.UNPAUSE,
        summary="Let a paused server go on where it was.",
        allowed=frozenset({VmState.PAUSED}),
        task=TaskState.UNPAUSING,
        want=Want.RUN,
        final=VmState.ACTIVE,
        deadline_s=60,
        verb="unpause",
    ),
    Rule(
        action=Action.SUSPEND,
        summary="Save a server's memory to its host's disk, and free what it held.",
        allowed=_ON,
        task=TaskState.SUSPENDING,
        want=Want.SUSPEND,
        final=VmState.SUSPENDED,
        # Memory is written to a disk that others write to.
        deadline_s=600,
        on_failure=VmState.ERROR,
        verb="suspend",
    ),
    Rule(
        action=Action.RESUME,
        summary="Bring a suspended server's memory back, and let it go on.",
        allowed=frozenset({VmState.SUSPENDED}),
        task=TaskState.RESUMING,
        want=Want.RUN,
        final=VmState.ACTIVE,
        deadline_s=600,
        on_failure=VmState.ERROR,
        verb="resume",
    ),
    Rule(
        action=Action.RESCUE,
        summary="Boot a server from a rescue image, with its own disk as the second.",
        allowed=_ON | _OFF | {VmState.ERROR},
        task=TaskState.RESCUING,
        want=Want.RUN,
        final=VmState.RESCUED,
        deadline_s=600,
        on_failure=VmState.ERROR,
        one_shot=OneShot.REBOOT_HARD,
    ),
    Rule(
        action=Action.UNRESCUE,
        summary="Boot a rescued server from its own disk again.",
        allowed=frozenset({VmState.RESCUED}),
        task=TaskState.UNRESCUING,
        want=Want.RUN,
        final=VmState.ACTIVE,
        deadline_s=300,
        on_failure=VmState.ERROR,
        one_shot=OneShot.REBOOT_HARD,
        verb="unrescue",
    ),
    Rule(
        action=Action.SHELVE,
        summary="Put a server away: its disk becomes an image, and its host is freed after the offload time.",
        allowed=_ON | _OFF | _HELD,
        task=TaskState.SHELVING,
        passes=(TaskState.SHELVING_IMAGE_PENDING_UPLOAD, TaskState.SHELVING_IMAGE_UPLOADING),
        want=Want.STOP,
        final=VmState.SHELVED,
        deadline_s=3600,
        one_shot=OneShot.SNAPSHOT,
    ),
    Rule(
        action=Action.SHELVE_OFFLOAD,
        summary="Free the host of a shelved server.",
        allowed=frozenset({VmState.SHELVED}),
        task=TaskState.SHELVING_OFFLOADING,
        want=Want.ABSENT,
        final=VmState.SHELVED_OFFLOADED,
        deadline_s=120,
    ),
    Rule(
        action=Action.UNSHELVE,
        summary="Bring a shelved server back, on any host that has room.",
        allowed=_SHELVED,
        task=TaskState.UNSHELVING,
        want=Want.RUN,
        final=VmState.ACTIVE,
        deadline_s=1200,
        on_failure=VmState.ERROR,
        verb="unshelve",
        is_unplaced=True,
    ),
    Rule(
        action=Action.RESIZE,
        summary="Move a server to another flavor, on another host; confirm or revert it afterwards.",
        allowed=_ON | _OFF,
        task=TaskState.RESIZE_PREP,
        passes=_RESIZE_TASKS,
        final=VmState.RESIZED,
        deadline_s=3600,
    ),
    Rule(
        action=Action.MIGRATE,
        summary="Move a server to another host while it is off; confirm or revert it afterwards.",
        allowed=_ON | _OFF,
        task=TaskState.RESIZE_PREP,
        passes=_RESIZE_TASKS,
        final=VmState.RESIZED,
        deadline_s=3600,
    ),
    Rule(
        action=Action.CONFIRM_RESIZE,
        summary="Keep a resized server as it is now: what was left on the host it came from goes.",
        allowed=frozenset({VmState.RESIZED}),
        task=TaskState.NONE,
    ),
    Rule(
        action=Action.REVERT_RESIZE,
        summary="Take a resized server back to where it came from, as it was.",
        allowed=frozenset({VmState.RESIZED}),
        task=TaskState.RESIZE_REVERTING,
        want=Want.ABSENT,
        deadline_s=600,
    ),
    Rule(
        action=Action.REBUILD,
        summary="Make a server's disk anew from an image, on its host, with its addresses.",
        allowed=_ON | _OFF | {VmState.ERROR},
        task=TaskState.REBUILDING,
        passes=(TaskState.REBUILD_BLOCK_DEVICE_MAPPING, TaskState.REBUILD_SPAWNING),
        deadline_s=900,
        on_failure=VmState.ERROR,
        one_shot=OneShot.REBUILD,
    ),
    Rule(
        action=Action.CREATE_IMAGE,
        summary="Make an image of a server's disk, as it is at one instant.",
        allowed=_ON | _OFF | _HELD,
        task=TaskState.IMAGE_SNAPSHOT_PENDING,
        passes=_SNAPSHOT_TASKS,
        deadline_s=3600,
        one_shot=OneShot.SNAPSHOT,
    ),
    Rule(
        action=Action.CREATE_BACKUP,
        summary="Make an image of a server's disk, and delete the oldest of its backups beyond the rotation.",
        allowed=_ON | _OFF | _HELD,
        task=TaskState.IMAGE_BACKUP,
        deadline_s=3600,
        one_shot=OneShot.SNAPSHOT,
    ),
    Rule(
        action=Action.SOFT_DELETE,
        summary="Power a server off and keep it until it is restored, or its time is over.",
        allowed=_EVERY_STATE - _SHELVED - {VmState.BUILDING, VmState.SOFT_DELETED, VmState.RESIZED},
        task=TaskState.SOFT_DELETING,
        want=Want.STOP,
        final=VmState.SOFT_DELETED,
        deadline_s=150,
        on_failure=VmState.ERROR,
        # What is between two hosts, or making an image, is to come to rest first; a delete by force does not wait.
        preempts=_POWER_TASKS,
    ),
    Rule(
        action=Action.RESTORE,
        summary="Bring a soft-deleted server back.",
        allowed=frozenset({VmState.SOFT_DELETED}),
        task=TaskState.RESTORING,
        want=Want.RUN,
        final=VmState.ACTIVE,
        deadline_s=90,
        verb="restore",
    ),
    Rule(
        action=Action.DELETE,
        summary="End the server's life, whatever it is doing.",
        allowed=_EVERY_STATE,
        task=TaskState.DELETING,
        want=Want.ABSENT,
        final=VmState.DELETED,
        deadline_s=120,
        on_failure=VmState.ERROR,
        preempts=_EVERY_OTHER_TASK,
        is_unplaced=True,
    ),
    Rule(
        action=Action.CHANGE_PASSWORD,
        summary="Set a password inside the guest, through its agent.",
        allowed=_ON,
        task=TaskState.UPDATING_PASSWORD,
        deadline_s=60,
    ),
    Rule(
        action=Action.ATTACH_INTERFACE,
        summary="Plug another interface into a server.",
        allowed=_ON | _OFF | {VmState.PAUSED},
        task=TaskState.NONE,
    ),
    Rule(
        action=Action.DETACH_INTERFACE,
        summary="Pull an interface out of a server.",
        allowed=_ON | _OFF | {VmState.PAUSED},
        task=TaskState.NONE,
    ),
    Rule(
        action=Action.ATTACH_VOLUME,
        summary="Plug a volume into a server.",
        # The reference allows more: there a volume is on the network, here on the host that the server would be on.
        allowed=_ON | _OFF | {VmState.PAUSED},
        task=TaskState.NONE,
    ),
    Rule(
        action=Action.DETACH_VOLUME,
        summary="Pull a volume out of a server.",
        allowed=_ON | _OFF | {VmState.PAUSED, VmState.SOFT_DELETED},
        task=TaskState.NONE,
    ),
    Rule(
        action=Action.SET_METADATA,
        summary="Change a server's metadata or tags.",
        allowed=_ON | _OFF | _HELD,
        task=TaskState.NONE,
    ),
    Rule(
        action=Action.RENAME,
        summary="Change a server's name.",
        allowed=_EVERY_STATE,
        task=TaskState.NONE,
        is_unplaced=True,
    ),
    Rule(
        action=Action.LOCK,
        summary="Refuse every change of a server by those who are not administrators.",
        allowed=_EVERY_STATE,
        task=TaskState.NONE,
        is_unplaced=True,
        despite_lock=True,
    ),
    Rule(
        action=Action.UNLOCK,
        summary="Let a locked server be changed again.",
        allowed=_EVERY_STATE,
        task=TaskState.NONE,
        is_unplaced=True,
        # Whoever may lock may unlock; whom a lock by an administrator stops, the method's own check decides.
        despite_lock=True,
        verb="unlock",
    ),
    Rule(
        action=Action.RESET_STATE,
        summary="Say that a server is active, or in error, and that nothing is in flight.",
        # The reference allows it everywhere. What is between two hosts, or on none, holds claims that only its own end gives back; and
        # every task ends by its deadline, so there nothing has to be reset.
        allowed=_ON | _OFF | _HELD | {VmState.BUILDING, VmState.RESCUED, VmState.ERROR},
        task=TaskState.NONE,
        preempts=_POWER_TASKS
        | {
            TaskState.SPAWNING,
            TaskState.RESCUING,
            TaskState.UNRESCUING,
            TaskState.REBUILDING,
            TaskState.UPDATING_PASSWORD,
            TaskState.SOFT_DELETING,
            TaskState.RESTORING,
        },
    ),
)

BY_ACTION: Mapping[Action, Rule] = MappingProxyType({rule.action: rule for rule in RULES})

BY_TASK: Mapping[TaskState, Rule] = MappingProxyType(
    {
        **{
            task: rule
            for rule in reversed(RULES)
            for task in (rule.task, *rule.passes)
            if task is not TaskState.NONE
        },
        # Shown while a create is on its way to a host; the same action's earlier words.
        TaskState.SCHEDULING: BY_ACTION[Action.CREATE],
        TaskState.NETWORKING: BY_ACTION[Action.CREATE],
    }
)
"""What is in flight, by any of its words. Rows that share a task end alike: which of them was asked for makes no difference to its end."""


def _ends(rule: Rule) -> tuple[object, ...]:
    return rule.want, rule.final, rule.on_failure, rule.one_shot, rule.deadline_s


if len(BY_ACTION) != len(RULES) or any(
    _ends(rule) != _ends(BY_TASK[rule.task]) for rule in RULES if rule.task is not TaskState.NONE
):
    raise AssertionError(
        "two rows of the lifecycle table share an action, or share a task and end differently"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """One row: what is begun by itself in `state`, with nothing in flight: after as long there as the conductors' `setting` says, or at the
    time that the record has in its field `at`.

    `never` is what the setting is set to for not at all: where 0 s is of use, it is -1. In a record it is 0.
    """

    state: VmState
    action: Action
    setting: str = ""
    never: float = 0.0
    at: str = ""


TIMERS: tuple[Timer, ...] = (
    # The reference's shelved_offload_time and resize_confirm_window, with its defaults.
    Timer(state=VmState.SHELVED, action=Action.SHELVE_OFFLOAD, setting="shelve_offload_s", never=-1.0),
    Timer(state=VmState.RESIZED, action=Action.CONFIRM_RESIZE, setting="resize_confirm_s"),
    # Its reclaim_instance_interval is a setting of two programs that must agree. Here people are told a time, and that time is kept.
    Timer(state=VmState.SOFT_DELETED, action=Action.DELETE, at="purge_time_ms"),
)

TIMED_STATES = frozenset(timer.state for timer in TIMERS)
"""States in which somebody must look now and then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWord:
    """What a host may say of an instance placed on it, and when: everything else it says is refused (R9).

    The record must be in one of `from_states`, with its `want` among `wants`. The word tells that `fulfils` is so, and the server, with
    nothing else to say about it, is `vm_state`.
    """

    word: HostState
    from_states: frozenset[VmState]
    wants: frozenset[Want]
    powers: frozenset[PowerState]
    fulfils: Want | None = None
    vm_state: VmState | None = None


_PLACED = _EVERY_STATE
_OFF_POWERS = frozenset({PowerState.SHUTDOWN, PowerState.CRASHED, PowerState.NOSTATE})
POWERS_WITH_MEMORY = frozenset({PowerState.RUNNING, PowerState.PAUSED, PowerState.SUSPENDED})
"""A guest seen like this is somewhere: it must be off before it may be elsewhere."""

_STAYING = frozenset({Want.RUN, Want.STOP, Want.PAUSE, Want.SUSPEND})

HOST_WORDS: Mapping[HostState, HostWord] = MappingProxyType(
    {
        row.word: row
        for row in (
            HostWord(
                word=HostState.ACTIVE,
                from_states=_PLACED,
                # With want PAUSE or SUSPEND it means: somebody let it go on by hand, or it could not be held.
                wants=frozenset({Want.RUN, Want.PAUSE, Want.SUSPEND}),
                powers=frozenset({PowerState.RUNNING}),
                fulfils=Want.RUN,
                vm_state=VmState.ACTIVE,
            ),
            HostWord(
                # With another want it means: the guest went off by itself, and the drift table decides.
                word=HostState.STOPPED,
                from_states=_PLACED - {VmState.BUILDING},
                wants=_STAYING,
                powers=_OFF_POWERS,
                fulfils=Want.STOP,
                vm_state=VmState.STOPPED,
            ),
            HostWord(
                # With want RUN it means: somebody paused it by hand.
                word=HostState.PAUSED,
                from_states=_PLACED,
                wants=frozenset({Want.PAUSE, Want.RUN, Want.SUSPEND}),
                powers=frozenset({PowerState.PAUSED}),
                fulfils=Want.PAUSE,
                vm_state=VmState.PAUSED,
            ),
            HostWord(
                word=HostState.SUSPENDED,
                from_states=_PLACED,
                wants=frozenset({Want.SUSPEND, Want.RUN, Want.PAUSE}),
                powers=frozenset({PowerState.SUSPENDED}),
                fulfils=Want.SUSPEND,
                vm_state=VmState.SUSPENDED,
            ),
            HostWord(
                word=HostState.ERROR,
                from_states=_PLACED,
                wants=_STAYING | {Want.ABSENT},
                powers=frozenset(PowerState),
            ),
            HostWord(
                word=HostState.ABSENT,
                from_states=_PLACED,
                wants=frozenset({Want.ABSENT}),
                powers=frozenset({PowerState.NOSTATE}),
                fulfils=Want.ABSENT,
            ),
        )
    }
)

FREE_TO_DRIFT = frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.RESCUED})
"""States that follow the guest when it goes its own way (lifecycle.md, drift). The others say something that the guest does not know."""


_MIGRATING = dict.fromkeys((TaskState.RESIZE_PREP, *_RESIZE_TASKS), "RESIZE")
_REBUILDING = dict.fromkeys(
    (TaskState.REBUILDING, TaskState.REBUILD_BLOCK_DEVICE_MAPPING, TaskState.REBUILD_SPAWNING), "REBUILD"
)

_TASK_WORDS: Mapping[VmState, Mapping[TaskState, str]] = MappingProxyType(
    {
        VmState.ACTIVE: {
            TaskState.REBOOTING: "REBOOT",
            TaskState.REBOOTING_HARD: "HARD_REBOOT",
            TaskState.UPDATING_PASSWORD: "PASSWORD",
            **_MIGRATING,
            **_REBUILDING,
        },
        VmState.STOPPED: {**_MIGRATING, **_REBUILDING, TaskState.RESIZE_REVERTING: "REVERT_RESIZE"},
        VmState.RESIZED: {TaskState.RESIZE_REVERTING: "REVERT_RESIZE"},
        VmState.ERROR: _REBUILDING,
    }
)

_VM_WORDS: Mapping[VmState, str] = MappingProxyType(
    {
        VmState.BUILDING: "BUILD",
        VmState.ACTIVE: "ACTIVE",
        VmState.STOPPED: "SHUTOFF",
        VmState.ERROR: "ERROR",
        VmState.DELETED: "DELETED",
        VmState.PAUSED: "PAUSED",
        VmState.SUSPENDED: "SUSPENDED",
        VmState.RESCUED: "RESCUE",
        VmState.RESIZED: "VERIFY_RESIZE",
        VmState.SOFT_DELETED: "SOFT_DELETED",
        VmState.SHELVED: "SHELVED",
        VmState.SHELVED_OFFLOADED: "SHELVED_OFFLOADED",
    }
)

UNKNOWN = "UNKNOWN"
"""What a server reads as while its cell cannot be reached."""


def shown(vm_state: VmState, task: TaskState) -> str:
    """The word people see, as the reference's API has it: BUILD, ACTIVE, SHUTOFF, REBOOT, …"""
    word = _TASK_WORDS.get(vm_state, {}).get(task)
    return word or _VM_WORDS.get(vm_state, UNKNOWN)


SHOWN = tuple(sorted({shown(vm_state, task) for vm_state in VmState for task in TaskState} | {UNKNOWN}))
"""Every word that a server can read as."""
