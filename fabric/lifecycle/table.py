"""The lifecycle table: what people may ask for in which state, what it does, and who may say so.

Everything about actions derives from these rows: the API's refusals, what the conductor writes, what hosts are told, permissions,
the command line's verbs, metrics, documentation and tests. Facts about the reference are in Nova's `check_instance_state`
decorators; where a row differs, its comment says why. Rows are append only: task numbers are stored.
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

    It may start in `allowed` with no task in flight, or taking over one of `preempts`. `task` is shown while it runs and is the lock.
    `want` is what the host is then to make true, `one_shot` what it is to do once. It ends in `final`; when it fails, in `on_failure`
    (None: where it was). `deadline_s` is when somebody must look, added to what the guest itself may take.
    """

    action: Action
    summary: str
    allowed: frozenset[VmState]
    task: TaskState
    want: Want
    final: VmState
    deadline_s: int
    on_failure: VmState | None = None
    one_shot: OneShot = OneShot.NONE
    preempts: frozenset[TaskState] = frozenset()


_EVERY_STATE = frozenset({VmState.BUILDING, VmState.ACTIVE, VmState.STOPPED, VmState.ERROR})
_EVERY_OTHER_TASK = frozenset(TaskState) - {TaskState.NONE, TaskState.DELETING}

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
        allowed=frozenset({VmState.STOPPED}),
        task=TaskState.POWERING_ON,
        want=Want.RUN,
        final=VmState.ACTIVE,
        deadline_s=90,
    ),
    Rule(
        action=Action.STOP,
        summary="Shut a server down: its power button first, its power after the timeout.",
        allowed=frozenset({VmState.ACTIVE, VmState.ERROR}),
        task=TaskState.POWERING_OFF,
        want=Want.STOP,
        final=VmState.STOPPED,
        deadline_s=90,
    ),
    Rule(
        action=Action.REBOOT_SOFT,
        summary="Ask the guest to reboot; a guest that does not answer is rebooted hard.",
        allowed=frozenset({VmState.ACTIVE}),
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
        allowed=frozenset({VmState.ACTIVE, VmState.STOPPED, VmState.ERROR}),
        task=TaskState.REBOOTING_HARD,
        want=Want.RUN,
        final=VmState.ACTIVE,
        deadline_s=180,
        on_failure=VmState.ERROR,
        one_shot=OneShot.REBOOT_HARD,
        preempts=frozenset({TaskState.REBOOTING}),
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
    ),
)

BY_ACTION: Mapping[Action, Rule] = MappingProxyType({rule.action: rule for rule in RULES})

BY_TASK: Mapping[TaskState, Rule] = MappingProxyType(
    {
        **{rule.task: rule for rule in RULES},
        # Shown while a create is on its way to a host; the same action's earlier words.
        TaskState.SCHEDULING: BY_ACTION[Action.CREATE],
        TaskState.NETWORKING: BY_ACTION[Action.CREATE],
    }
)

if len(BY_ACTION) != len(RULES) or len({rule.task for rule in RULES}) != len(RULES):
    raise AssertionError("two rows of the lifecycle table share an action or a task")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWord:
    """What a host may say of an instance placed on it, and when: everything else it says is refused (R9).

    The record must be in one of `from_states`, with its `want` among `wants`.
    """

    word: HostState
    from_states: frozenset[VmState]
    wants: frozenset[Want]
    powers: frozenset[PowerState]


_RUNNING_POWERS = frozenset({PowerState.RUNNING, PowerState.PAUSED, PowerState.SUSPENDED})
_OFF_POWERS = frozenset({PowerState.SHUTDOWN, PowerState.CRASHED, PowerState.NOSTATE})

HOST_WORDS: Mapping[HostState, HostWord] = MappingProxyType(
    {
        row.word: row
        for row in (
            HostWord(
                word=HostState.ACTIVE,
                from_states=_EVERY_STATE,
                wants=frozenset({Want.RUN}),
                powers=_RUNNING_POWERS,
            ),
            HostWord(
                # With want RUN it means: the guest went off by itself, and the drift table decides.
                word=HostState.STOPPED,
                from_states=frozenset({VmState.ACTIVE, VmState.STOPPED, VmState.ERROR}),
                wants=frozenset({Want.STOP, Want.RUN}),
                powers=_OFF_POWERS,
            ),
            HostWord(
                word=HostState.ERROR,
                from_states=_EVERY_STATE,
                wants=frozenset({Want.RUN, Want.STOP, Want.ABSENT}),
                powers=frozenset(PowerState),
            ),
            HostWord(
                word=HostState.ABSENT,
                from_states=_EVERY_STATE,
                wants=frozenset({Want.ABSENT}),
                powers=frozenset({PowerState.NOSTATE}),
            ),
        )
    }
)

_TASK_WORDS: Mapping[TaskState, str] = MappingProxyType(
    {TaskState.REBOOTING: "REBOOT", TaskState.REBOOTING_HARD: "HARD_REBOOT"}
)

_VM_WORDS: Mapping[VmState, str] = MappingProxyType(
    {
        VmState.BUILDING: "BUILD",
        VmState.ACTIVE: "ACTIVE",
        VmState.STOPPED: "SHUTOFF",
        VmState.ERROR: "ERROR",
        VmState.DELETED: "DELETED",
    }
)

UNKNOWN = "UNKNOWN"
"""What a server reads as while its cell cannot be reached."""


def shown(vm_state: VmState, task: TaskState) -> str:
    """The word people see, as the reference's API has it: BUILD, ACTIVE, SHUTOFF, REBOOT, …"""
    if vm_state is VmState.ACTIVE and task in _TASK_WORDS:
        return _TASK_WORDS[task]
    return _VM_WORDS.get(vm_state, UNKNOWN)
