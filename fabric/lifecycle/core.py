"""The interpreter of the lifecycle table: functions from a record and a fact to the next record. They never wait.

`begin` opens an action, `settle` takes in what a host says, `expire` ends what has overrun its deadline. Each returns the record to
write, or a value that says why nothing is to be written.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from fabric.errors import WrongState
from fabric.lifecycle.table import BY_ACTION, BY_TASK, HOST_WORDS, RULES, shown
from fabric.model.instance import ActionMark, Fault, Instance
from fabric.model.session import HostState
from fabric.model.states import Action, TaskState, VmState, Want


def allowed_actions(vm_state: VmState, task: TaskState) -> tuple[Action, ...]:
    """What people may ask for now, in the table's order."""
    return tuple(
        rule.action
        for rule in RULES
        if vm_state in rule.allowed and (task is TaskState.NONE or task in rule.preempts)
    )


def begin(
    now: Instance, action: Action, *, now_ms: int, op_id: str, request_id: str = "", guest_timeout_s: int = 0
) -> Instance:
    """The record with the action under way: its intent, its task, and a new generation.

    `guest_timeout_s` is what the guest itself may take (a shutdown), added to the row's deadline. Deleting what is being deleted
    changes nothing and is fine; where deleting has failed it is begun anew, and nothing else may be asked for: a deletion that was
    accepted is never taken back. A server without a host (no host fitted) can only be deleted: there is nobody to do anything else.
    Raises WrongState, naming the action, the state and what would be allowed.
    """
    rule = BY_ACTION[action]
    if now.want is Want.ABSENT and action is not Action.DELETE:
        raise WrongState(
            f"cannot {action}: the server is being deleted; allowed now: {Action.DELETE}",
            action=action,
            vm_state=now.vm_state.name.lower(),
            task_state=now.task.name.lower(),
            instance=now.id,
        )
    if not now.host and action is not Action.DELETE:
        raise WrongState(
            f"cannot {action}: the server was never placed on a host; allowed now: {Action.DELETE}",
            action=action,
            vm_state=now.vm_state.name.lower(),
            task_state=now.task.name.lower(),
            instance=now.id,
        )
    if action is Action.DELETE and now.task is TaskState.DELETING:
        return now
    if action not in allowed_actions(now.vm_state, now.task):
        state = shown(now.vm_state, TaskState.NONE)
        busy = f" with {now.task.name.lower()} under way" if now.task is not TaskState.NONE else ""
        may = ", ".join(allowed_actions(now.vm_state, now.task)) or "nothing until that is done"
        raise WrongState(
            f"cannot {action} while {state}{busy}; allowed now: {may}",
            action=action,
            vm_state=now.vm_state.name.lower(),
            task_state=now.task.name.lower(),
            instance=now.id,
        )
    mark = now.action if rule.one_shot.value == 0 else ActionMark(seq=now.action.seq + 1, kind=rule.one_shot)
    return replace(
        now,
        task=rule.task,
        want=rule.want,
        action=mark,
        generation=now.generation + 1,
        task_request_id=request_id,
        task_start_ms=now_ms,
        task_deadline_ms=now_ms + (rule.deadline_s + guest_timeout_s) * 1000,
        update_time_ms=now_ms,
        op_id=op_id,
    )


class Refused(enum.StrEnum):
    """Why what a host said changes nothing."""

    NOT_YOURS = "the instance is not placed on this host at this placement epoch"
    FROM_THE_FUTURE = "the generation or the action was never asked for"
    STALE = "a newer intent is under way"
    ILLEGAL = "a host may not say this of an instance in this state"
    KNOWN = "the record says so already"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a host says of one instance, as the guard has checked it to be well formed."""

    host: str
    placement_epoch: int
    generation: int
    action_seq: int
    state: HostState
    power: int
    fault_code: str = ""
    fault_message: str = ""


class Gone(enum.Enum):
    """The host has let go of the instance, and its record is to be removed."""

    GONE = "gone"


def settle(now: Instance, said: Said, *, now_ms: int, op_id: str) -> Instance | Gone | Refused:
    """What the record becomes when the instance's own host says this. Only status fields ever change (I6).

    Generations are compared, not only states: the same state under a newer generation is news (hole 1 of the protocol draft).
    """
    refusal = _refusal(now, said)
    if refusal is not None:
        return refusal
    if said.state is HostState.ABSENT:
        return Gone.GONE
    seen = replace(
        now,
        power=type(now.power)(said.power),
        power_seen_ms=now_ms,
        observed_generation=said.generation,
        observed_action=said.action_seq,
        update_time_ms=now_ms,
        op_id=op_id,
    )
    if said.state is HostState.ERROR:
        fault = Fault(code=said.fault_code, message=said.fault_message, host=said.host, time_ms=now_ms)
        known = now.fault is not None and replace(fault, time_ms=now.fault.time_ms) == now.fault
        if known and now.task is TaskState.NONE and now.observed_generation == said.generation:
            return Refused.KNOWN
        after = failed(seen, fault, now_ms=now_ms, op_id=op_id)
        # Its host has given up on it. Left wanted, it would start by itself whenever that host next begins a session, long after people
        # were told that it failed. (Seed 29 of the simulation: recorded as stopped, wanted running, and neither.)
        return (
            replace(after, want=Want.STOP, generation=now.generation + 1) if now.want is Want.RUN else after
        )
    if said.state is HostState.STOPPED and now.want is Want.RUN:
        return _went_off(now, seen)
    if said.state is HostState.STOPPED and now.task is TaskState.NONE and now.vm_state is not VmState.ACTIVE:
        # What failed and was told to stay off has not thereby been stopped: its fault is what people must see (I7).
        return Refused.KNOWN if _same_but_for_times(now, seen) else seen
    final = VmState.ACTIVE if said.state is HostState.ACTIVE else VmState.STOPPED
    after = replace(
        seen,
        vm_state=final,
        task=TaskState.NONE,
        task_deadline_ms=0,
        fault=None,
        launch_time_ms=seen.launch_time_ms or (now_ms if final is VmState.ACTIVE else 0),
    )
    return Refused.KNOWN if _same_but_for_times(now, after) else after


def failed(now: Instance, fault: Fault, *, now_ms: int, op_id: str) -> Instance:
    """The record after what is in flight has failed: the task cleared, the fault kept, the state as the table's row says.

    With nothing in flight it is the server itself that failed, and it goes to ERROR. `want` stays: what was asked for may still come
    about, on a host that was out of reach until the deadline.
    """
    rule = BY_TASK.get(now.task)
    onto = VmState.ERROR if rule is None else rule.on_failure or now.vm_state
    return replace(
        now,
        vm_state=onto,
        task=TaskState.NONE,
        task_deadline_ms=0,
        fault=fault,
        update_time_ms=now_ms,
        op_id=op_id,
    )


def expired(now: Instance, *, now_ms: int) -> bool:
    """Whether what is in flight has overrun its deadline, so that somebody must look."""
    return now.task is not TaskState.NONE and 0 < now.task_deadline_ms <= now_ms


def _refusal(now: Instance, said: Said) -> Refused | None:
    if now.host != said.host or now.placement_epoch != said.placement_epoch:
        return Refused.NOT_YOURS
    if said.generation > now.generation or said.action_seq > now.action.seq:
        return Refused.FROM_THE_FUTURE
    if said.generation < now.generation or said.action_seq < now.action.seq:
        return Refused.STALE
    row = HOST_WORDS.get(said.state)
    if row is None or now.vm_state not in row.from_states or now.want not in row.wants:
        return Refused.ILLEGAL
    if said.power not in row.powers:
        return Refused.ILLEGAL
    return None


def _went_off(now: Instance, seen: Instance) -> Instance | Refused:
    """Drift: recorded as running, the guest shut itself down. Its will is adopted, with an order that says so (lifecycle.md).

    A server in ERROR stays there, and one that could not be started stays stopped, each with its fault: that it is off is seen, and it
    takes an action to end an error.
    """
    if now.task is not TaskState.NONE:
        return Refused.STALE
    if now.vm_state is not VmState.ACTIVE:
        return Refused.KNOWN if _same_but_for_times(now, seen) else seen
    return replace(
        seen,
        vm_state=VmState.STOPPED,
        want=Want.STOP,
        generation=now.generation + 1,
        observed_generation=now.generation,
        fault=None,
    )


def _same_but_for_times(now: Instance, after: Instance) -> bool:
    return (
        replace(after, power_seen_ms=now.power_seen_ms, update_time_ms=now.update_time_ms, op_id=now.op_id)
        == now
    )
