"""The interpreter of the lifecycle table: functions from a record and a fact to the next record. They never wait.

`begin` opens an action, `settle` takes in what a host says, `expire` ends what has overrun its deadline. Each returns the record to
write, or a value that says why nothing is to be written.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from fabric.errors import WrongState
from fabric.lifecycle.devices import barred, plugged
from fabric.lifecycle.events import behind, closed, noted, opened
from fabric.lifecycle.moves import MOVING, heard, returned
from fabric.lifecycle.table import (
    BY_ACTION,
    BY_TASK,
    FREE_TO_DRIFT,
    HOST_WORDS,
    RULES,
    HostWord,
    Rule,
    shown,
)
from fabric.model.event import EventStep
from fabric.model.faults import FAULT_TEXT, FaultCode
from fabric.model.instance import ActionMark, Assignment, Fault, Guest, ImageRef, Instance, OneShot, Request
from fabric.model.network import Port
from fabric.model.session import HostState
from fabric.model.states import Action, TaskState, VmState, Want


def allowed_actions(vm_state: VmState, task: TaskState) -> tuple[Action, ...]:
    """What people may ask for now, in the table's order."""
    return tuple(
        rule.action
        for rule in RULES
        if vm_state in rule.allowed and (task is TaskState.NONE or task in rule.preempts)
    )


def ending(now: Instance) -> Action | None:
    """What its host is to let go of the instance for; None where it is to keep it."""
    if now.want is not Want.ABSENT:
        return None
    if now.task is TaskState.SHELVING_OFFLOADING or (
        now.task is TaskState.NONE and now.vm_state is VmState.SHELVED
    ):
        return Action.SHELVE_OFFLOAD
    if now.task is TaskState.RESIZE_REVERTING or (
        now.task is TaskState.NONE and now.vm_state is VmState.RESIZED
    ):
        return Action.REVERT_RESIZE
    return Action.DELETE


def begin(
    now: Instance,
    action: Action,
    *,
    now_ms: int,
    op_id: str,
    request_id: str = "",
    user_id: str = "",
    guest_timeout_s: int = 0,
    image_id: str = "",
    keep_s: float = 0.0,
    is_admin: bool = False,
) -> Instance:
    """The record with the action under way: its intent, its task, and, where its host has something to do, a new generation.

    `guest_timeout_s` is what the guest itself may take (a shutdown), added to the row's deadline; `image_id` the image that a snapshot
    hands in, `keep_s` how long a soft-deleted server is kept from now. Deleting what is being deleted changes nothing and is fine, softly
    too; where deleting has failed it is begun anew, and nothing else may be asked for: a deletion that was accepted is never taken back.
    The same goes for the other ways to leave a host. A server without a host can be asked only what needs none. A locked one refuses
    everybody but administrators.
    Raises WrongState, naming the action, the state and what would be allowed.
    """
    rule = BY_ACTION[action]
    if action is Action.DELETE and now.task is TaskState.DELETING:
        return now
    if action is Action.SOFT_DELETE and _is_soft_deleted(now):
        return now
    leaving = ending(now)
    if leaving is not None and action not in {leaving, Action.DELETE}:
        raise _refused(now, action, f"the server is being {_DOING[leaving]}", (leaving, Action.DELETE))
    if not now.host and not rule.is_unplaced:
        may = [each for each in allowed_actions(now.vm_state, now.task) if BY_ACTION[each].is_unplaced]
        why = "was never placed on a host" if now.placement_epoch == 0 else "is on no host"
        raise _refused(now, action, f"the server {why}", may)
    is_begun_anew = leaving is action and now.task is TaskState.NONE
    if (
        action not in allowed_actions(now.vm_state, now.task)
        and not is_begun_anew
        and not _can_go_back(now, action)
    ):
        state = shown(now.vm_state, TaskState.NONE)
        busy = f" with {now.task.name.lower()} under way" if now.task is not TaskState.NONE else ""
        raise _refused(now, action, f"{state}{busy}", allowed_actions(now.vm_state, now.task))
    if not rule.despite_lock:
        refuse_locked(now, action, is_admin=is_admin)
    _refuse_between_hosts(now, action)
    bar = barred(now, action)
    if bar:
        raise WrongState(
            f"cannot {action}: {bar}",
            action=action,
            vm_state=now.vm_state.name.lower(),
            task_state=now.task.name.lower(),
            instance=now.id,
        )
    # Who is to go elsewhere is told so: a read that is older than the request must not look like its outcome.
    one_shot = _one_shot(rule, now)
    asks_host = rule.want is not None or one_shot is not OneShot.NONE or rule.task in MOVING
    mark = now.action
    if one_shot is not OneShot.NONE:
        mark = ActionMark(seq=now.action.seq + 1, kind=one_shot, image_id=image_id)
    is_under_way = rule.task is not TaskState.NONE
    event = opened(now, action, request_id=request_id, user_id=user_id, now_ms=now_ms, op_id=op_id)
    return replace(
        now,
        request=_unrescued(now.request) if action in _ENDS_RESCUE else now.request,
        event=event if is_under_way else closed(event, now_ms=now_ms),
        plugging=behind(now, event, now.plugs),
        # One that failed where it was resized to is being reverted like any other: what is to leave its host in ERROR would be deleted.
        vm_state=VmState.RESIZED if action is Action.REVERT_RESIZE else now.vm_state,
        task=rule.task,
        want=now.want if rule.want is None else rule.want,
        action=mark,
        uploaded=None if one_shot is OneShot.SNAPSHOT else now.uploaded,
        carrier_id=image_id if action is Action.SHELVE else now.carrier_id,
        disk=None if action is Action.REBUILD else now.disk,
        attempt=1 if action is Action.UNSHELVE else now.attempt,
        generation=now.generation + 1 if asks_host else now.generation,
        task_request_id=request_id,
        task_by=user_id,
        task_start_ms=now_ms,
        task_deadline_ms=now_ms + (rule.deadline_s + guest_timeout_s) * 1000 if is_under_way else 0,
        purge_time_ms=now_ms + int(keep_s * 1000) if action is Action.SOFT_DELETE else now.purge_time_ms,
        update_time_ms=now_ms,
        op_id=op_id,
    )


def refuse_locked(now: Instance, action: str, *, is_admin: bool) -> None:
    """Raise WrongState where the server is locked against who asks, with the lock's reason. `action` need be no row of the table: what
    changes a server elsewhere than in its record asks here too.
    """
    if not now.locked or is_admin:
        return
    reason = f": {now.locked_reason}" if now.locked_reason else ""
    raise WrongState(
        f"cannot {action}: the server is locked{reason}; allowed now: unlock",
        action=action,
        vm_state=now.vm_state.name.lower(),
        task_state=now.task.name.lower(),
        instance=now.id,
    )


def still_placed(instance_id: str, action: str) -> WrongState:
    """The refusal of whatever is asked of a server that no host has been claimed for: only its end is possible yet."""
    return WrongState(
        f"cannot {action} while BUILD with scheduling under way; allowed now: {Action.DELETE}",
        action=action,
        vm_state=VmState.BUILDING.name.lower(),
        task_state=TaskState.SCHEDULING.name.lower(),
        instance=instance_id,
    )


def _one_shot(rule: Rule, now: Instance) -> OneShot:
    """What the host is to do once for an action. What boots from a volume is put away without an image: it has no disk of its own."""
    has_own_disk = now.request.guest.root_volume is None
    return rule.one_shot if has_own_disk or rule.one_shot is not OneShot.SNAPSHOT else OneShot.NONE


_ENDS_RESCUE: Final = frozenset({Action.UNRESCUE, Action.REBUILD, Action.SHELVE})
"""Actions after which a server boots from its own disk again."""


def _unrescued(request: Request) -> Request:
    return replace(request, guest=replace(request.guest, rescue=None))


def _is_soft_deleted(now: Instance) -> bool:
    return now.task is TaskState.SOFT_DELETING or (
        now.task is TaskState.NONE and now.vm_state is VmState.SOFT_DELETED
    )


_DOING: Final[Mapping[Action, str]] = MappingProxyType(
    {
        Action.DELETE: "deleted",
        Action.SHELVE_OFFLOAD: "taken off its host",
        Action.REVERT_RESIZE: "taken back to where it came from",
    }
)


_BETWEEN_HOSTS: Final = frozenset(
    {Action.CONFIRM_RESIZE, Action.REVERT_RESIZE, Action.DELETE, Action.REBOOT_HARD, Action.RESET_STATE}
)
"""What may be asked of a server with a copy on a second host, besides what touches no host."""


def _can_go_back(now: Instance, action: Action) -> bool:
    """A server that failed where it was moved to may be taken back to where it came from, as one may that did not."""
    is_failed = now.vm_state is VmState.ERROR and now.task is TaskState.NONE
    return action is Action.REVERT_RESIZE and is_failed and _has_switched(now)


def _refuse_between_hosts(now: Instance, action: Action) -> None:
    """Raise WrongState for what needs a copy to go back to and finds none, or would leave one behind."""
    if action in {Action.CONFIRM_RESIZE, Action.REVERT_RESIZE} and now.move is None:
        raise _refused(now, action, "the server was not resized", ())
    if now.move is not None and BY_ACTION[action].task is not TaskState.NONE and action not in _BETWEEN_HOSTS:
        raise _refused(
            now,
            action,
            "the server is on its way to another host",
            (Action.REVERT_RESIZE, Action.DELETE),
        )


def _refused(now: Instance, action: Action, why: str, may: Iterable[Action]) -> WrongState:
    allowed = ", ".join(dict.fromkeys(may)) or "nothing until that is done"
    because = f": {why}" if why.startswith("the server") else f" while {why}"
    return WrongState(
        f"cannot {action}{because}; allowed now: {allowed}",
        action=action,
        vm_state=now.vm_state.name.lower(),
        task_state=now.task.name.lower(),
        instance=now.id,
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
    steps: tuple[EventStep, ...] = ()


class Gone(enum.Enum):
    """The host has let go of the instance, and its record is to be removed."""

    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Freed:
    """The host has let go of the instance, which lives on without it, or elsewhere: its claim and its order go, `after` stays."""

    why: Action
    after: Instance


def settle(now: Instance, said: Said, *, now_ms: int, op_id: str) -> Instance | Gone | Freed | Refused:
    """What the record becomes when the instance's own host says this. Only status fields ever change (I6), and where the guest went its
    own way or could not be made to go the way that was wanted, the intent follows it. What it means for the action is written down.

    Generations are compared, not only states: the same state under a newer generation is news (hole 1 of the protocol draft).
    """
    after = _settled(now, said, now_ms=now_ms, op_id=op_id)
    if now.plugs and (isinstance(after, Instance) or after is Refused.KNOWN):
        told = after if isinstance(after, Instance) else replace(now, update_time_ms=now_ms, op_id=op_id)
        moved = plugged(now, told, said.state, said.fault_code)
        after = after if moved == told else moved
    if isinstance(after, Instance):
        fault = _fault(said, now_ms=now_ms) if _has_failed(said) else None
        return noted(now, after, said.steps, now_ms=now_ms, op_id=op_id, fault=fault)
    if isinstance(after, Freed):
        return Freed(after.why, noted(now, after.after, said.steps, now_ms=now_ms, op_id=op_id))
    return after


def _settled(now: Instance, said: Said, *, now_ms: int, op_id: str) -> Instance | Gone | Freed | Refused:
    refusal = _refusal(now, said)
    if refusal is not None:
        return refusal
    word = HOST_WORDS[said.state]
    seen = replace(
        now,
        power=type(now.power)(said.power),
        power_seen_ms=now_ms,
        observed_generation=said.generation,
        observed_action=said.action_seq,
        update_time_ms=now_ms,
        op_id=op_id,
    )
    if said.state is HostState.ABSENT:
        return _let_go(now, seen, now_ms=now_ms, op_id=op_id)
    fault = _fault(said, now_ms=now_ms) if _has_failed(said) else None
    moved = heard(now, seen, said.state, fault, now_ms=now_ms, op_id=op_id)
    if moved is not None:
        return Refused.KNOWN if _same_but_for_times(now, moved) else moved
    if said.state is HostState.ERROR:
        return _given_up(now, seen, said, now_ms=now_ms, op_id=op_id)
    if said.fault_code:
        return _unable(now, seen, said, word, now_ms=now_ms, op_id=op_id)
    if now.want is not word.fulfils:
        return _went_its_way(now, seen, word)
    rule = BY_TASK.get(now.task)
    if rule is not None and _one_shot(rule, now) is OneShot.SNAPSHOT and not is_handed_in(now):
        # Whoever skipped it, by a lost journal or on purpose: without the image it was not done.
        code = FaultCode.IMAGE_UPLOAD_FAILED
        unsaid = replace(said, fault_code=code, fault_message=FAULT_TEXT[code])
        return _unable(now, seen, unsaid, word, now_ms=now_ms, op_id=op_id)
    if _is_said_to_be_in_error(now):
        return Refused.KNOWN if _same_but_for_times(now, seen) else seen
    if rule is None and now.vm_state not in FREE_TO_DRIFT and said.state is HostState.STOPPED:
        # What failed and was told to stay off has not thereby been stopped: its fault is what people must see (I7).
        return Refused.KNOWN if _same_but_for_times(now, seen) else seen
    final = (rule and rule.final) or _stable(now, word)
    if _has_switched(now):
        final = VmState.RESIZED
    if final is VmState.ACTIVE and now.request.guest.rescue is not None:
        # A failed rescue is rebooted into what it was to boot from: there is a way out of that.
        final = VmState.RESCUED
    after = replace(
        seen,
        vm_state=final,
        task=TaskState.NONE,
        task_deadline_ms=0,
        # A fault of an action that failed stays until the server has done, or become, something else.
        fault=now.fault if rule is None and now.vm_state is final else None,
        launch_time_ms=seen.launch_time_ms or (now_ms if said.state is HostState.ACTIVE else 0),
        carrier_id=now.carrier_id if final in _IN_AN_IMAGE else "",
    )
    return Refused.KNOWN if _same_but_for_times(now, after) else after


def is_handed_in(now: Instance) -> bool:
    """Whether the image that the latest snapshot was to become has its bytes."""
    return now.uploaded is not None and now.uploaded.id == now.action.image_id


STATE_RESET: Final = "STATE_RESET"
"""The fault of a server that an administrator has said to be in error: only an action ends that, whatever its guest does."""


def _is_said_to_be_in_error(now: Instance) -> bool:
    if now.vm_state is not VmState.ERROR or now.task is not TaskState.NONE or now.fault is None:
        return False
    return now.fault.code == STATE_RESET


def _stable(now: Instance, word: HostWord) -> VmState:
    """The state that a server is in when its host says this, with nothing in flight."""
    if _has_switched(now):
        return VmState.RESIZED
    if word.vm_state is None:
        return now.vm_state
    if word.vm_state is VmState.ACTIVE and now.request.guest.rescue is not None:
        return VmState.RESCUED
    return word.vm_state


def _has_switched(now: Instance) -> bool:
    return now.move is not None and now.move.has_switched


_IN_AN_IMAGE: Final = frozenset({VmState.SHELVED, VmState.SHELVED_OFFLOADED})
"""States of a server whose disk is, or is also, in an image of its own."""


def _let_go(now: Instance, seen: Instance, *, now_ms: int, op_id: str) -> Gone | Freed:
    leaving = ending(now)
    if leaving is Action.REVERT_RESIZE and _has_switched(now):
        return Freed(leaving, returned(seen, now.fault, now_ms=now_ms, op_id=op_id))
    if leaving is not Action.SHELVE_OFFLOAD:
        return Gone.GONE
    rule = BY_ACTION[leaving]
    after = replace(
        seen,
        vm_state=rule.final or now.vm_state,
        task=TaskState.NONE,
        task_deadline_ms=0,
        want=Want.STOP,
        host="",
        slot=0,
        ports=(),
        disk=None,
        highest_epoch=max(now.highest_epoch, now.placement_epoch),
        fault=None,
    )
    return Freed(leaving, after)


def _given_up(now: Instance, seen: Instance, said: Said, *, now_ms: int, op_id: str) -> Instance | Refused:
    fault = _fault(said, now_ms=now_ms)
    known = now.fault is not None and replace(fault, time_ms=now.fault.time_ms) == now.fault
    if known and now.task is TaskState.NONE and now.observed_generation == said.generation:
        return Refused.KNOWN
    after = failed(seen, fault, now_ms=now_ms, op_id=op_id)
    if after.vm_state in FREE_TO_DRIFT:
        # There is no guest any more that such a state would follow. (Seeds 26 and 103 of the simulation: a server whose disk was lost
        # while an image was made of it was ACTIVE, and wanted stopped.)
        after = replace(after, vm_state=VmState.ERROR)
    # Its host has given up on it. Left wanted, it would start by itself whenever that host next begins a session, long after people
    # were told that it failed. (Seed 29 of the simulation: recorded as stopped, wanted running, and neither.)
    holds_memory = now.want in {Want.RUN, Want.PAUSE, Want.SUSPEND}
    return replace(after, want=Want.STOP, generation=now.generation + 1) if holds_memory else after


def _unable(
    now: Instance, seen: Instance, said: Said, word: HostWord, *, now_ms: int, op_id: str
) -> Instance | Refused:
    """The action failed and the guest is as the host says: what is wanted is then what is, and the fault says what was not done."""
    fault = _fault(said, now_ms=now_ms)
    known = now.fault is not None and replace(fault, time_ms=now.fault.time_ms) == now.fault
    if known and now.task is TaskState.NONE and now.observed_generation == said.generation:
        return Refused.KNOWN
    is_free = now.vm_state in FREE_TO_DRIFT or now.task in _BOOTING
    after = replace(
        failed(seen, fault, now_ms=now_ms, op_id=op_id),
        vm_state=_stable(now, word) if is_free else now.vm_state,
    )
    if word.fulfils is None or word.fulfils is now.want:
        return after
    return replace(after, want=word.fulfils, generation=now.generation + 1)


_BOOTING: Final = frozenset({TaskState.POWERING_ON, TaskState.POWERING_OFF, TaskState.RESTORING})
"""Tasks between running and not running, whatever the server was before."""


def _has_failed(said: Said) -> bool:
    return bool(said.fault_code) or said.state is HostState.ERROR


def _fault(said: Said, *, now_ms: int) -> Fault:
    return Fault(code=said.fault_code, message=said.fault_message, host=said.host, time_ms=now_ms)


def failed(now: Instance, fault: Fault, *, now_ms: int, op_id: str) -> Instance:
    """The record after what is in flight has failed: the task cleared, the fault kept, the state as the table's row says.

    With nothing in flight it is the server itself that failed, and it goes to ERROR; but not one that is still to leave its host for
    another or for none, whose state says what it leaves for. (Seed 325 of the simulation: a shelved server whose host failed twice to let
    go of it was in ERROR and wanted gone, which is what a deletion looks like, and was deleted.) `want` stays: what was asked for may
    still come about, on a host that was out of reach until the deadline.
    """
    rule = BY_TASK.get(now.task)
    is_itself = rule is None and ending(now) in {None, Action.DELETE}
    onto = VmState.ERROR if is_itself else (rule and rule.on_failure) or now.vm_state
    if now.task is TaskState.SHELVING:
        # What was to carry its disk never will.
        now = replace(now, carrier_id="")
    return replace(
        now,
        vm_state=onto,
        task=TaskState.NONE,
        task_deadline_ms=0,
        fault=fault,
        # With nothing in flight, the latest action may be a device's, which ends with its plug.
        event=now.event
        if rule is None or now.event is None
        else closed(now.event, now_ms=now_ms, fault=fault),
        update_time_ms=now_ms,
        op_id=op_id,
    )


def ordered(before: Assignment, now: Instance) -> Assignment:
    """The assignment that carries the record's intent to its host. What the claim gave the guest, its place, is kept."""
    placed = before.guest
    guest = guest_at(now.request.guest, now.disk, ports=now.ports, zone=placed.availability_zone)
    return replace(before, generation=now.generation, want=now.want, action=now.action, guest=guest)


def guest_at(guest: Guest, disk: ImageRef | None, *, ports: tuple[Port, ...], zone: str) -> Guest:
    """The guest as the host of one placement is told of it: with its addresses there, and with what its disk is made from there."""
    placed = replace(guest, ports=ports, availability_zone=zone)
    return placed if disk is None else replace(placed, image=disk, standalone=True)


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


def _went_its_way(now: Instance, seen: Instance, word: HostWord) -> Instance | Refused:
    """Drift: the guest shut itself down, or somebody paused it by hand. That is adopted, with an order that says so (lifecycle.md).

    A server in ERROR stays there, and one that could not be started stays stopped, each with its fault: what it does is seen, and it takes
    an action to end an error.
    """
    if now.task is not TaskState.NONE:
        return Refused.STALE
    if now.vm_state is VmState.RESIZED and word.fulfils is Want.STOP:
        return replace(seen, want=Want.STOP, generation=now.generation + 1)
    if now.vm_state not in FREE_TO_DRIFT or word.fulfils is None:
        return Refused.KNOWN if _same_but_for_times(now, seen) else seen
    return replace(
        seen,
        vm_state=_stable(now, word),
        want=word.fulfils,
        generation=now.generation + 1,
        observed_generation=now.generation,
        fault=None,
    )


def _same_but_for_times(now: Instance, after: Instance) -> bool:
    return (
        replace(after, power_seen_ms=now.power_seen_ms, update_time_ms=now.update_time_ms, op_id=now.op_id)
        == now
    )
