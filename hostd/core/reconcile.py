"""From what is wanted and what is seen to the next step: the whole of a host's decisions about one instance.

Level-triggered: `next_step` is asked again after every step with what was measured anew, so it never matters how far an earlier pass,
or an earlier process, came. What must hold:

- a guest is started only at the newest placement accepted, and only under a permit (R2, R5; the caller checks both once more);
- nothing is destroyed because it is missing from somewhere: only an order to be ABSENT or a release destroys, or a newer placement of
  the same instance on this very host (R4);
- a domain of a newer placement or generation than the order is never touched: then the order is the one that is stale (R3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fabric.model.instance import OneShot
from fabric.model.session import HostState, Order, Release
from fabric.model.states import PowerState, Want
from hostd.commands.journal import JournalRow
from hostd.core.faults import FaultCode
from hostd.core.holds import HOLDS, Held, word_of
from hostd.core.plugging import HELD_LOOK_S, is_plugged, next_plug
from hostd.core.steps import (
    Act,
    AttachDisk,
    AttachInterface,
    Capture,
    ClearDisks,
    CutPower,
    Define,
    DetachDisk,
    DetachInterface,
    DropCopies,
    Effort,
    EnsureFiles,
    EnsureImage,
    EnsureVolumes,
    Forget,
    GoOn,
    HandIn,
    Hold,
    LetGo,
    MarkDone,
    MarkMade,
    MarkStarted,
    Plug,
    Prepare,
    PressPower,
    PressReset,
    RemoveFiles,
    Rewire,
    Settled,
    Start,
    Step,
    Stuck,
    Unplug,
    Wait,
)
from hostd.driver.base import Domain

RUNNING = frozenset({PowerState.RUNNING, PowerState.PAUSED, PowerState.SUSPENDED})
"""Powers that hold memory: such a domain must be stopped before it may be elsewhere."""

_OPEN = frozenset({PowerState.RUNNING, PowerState.PAUSED})
"""Powers in which a hypervisor has the guest's disks open."""

_TRANSIENT = frozenset(
    {
        FaultCode.HYPERVISOR_UNAVAILABLE,
        FaultCode.HYPERVISOR_TIMEOUT,
        FaultCode.IMAGE_UNAVAILABLE,
        FaultCode.IMAGE_UPLOAD_FAILED,
    }
)
"""Faults that trying again may cure without anybody doing anything."""


_BRINGS_BACK = (Prepare, EnsureImage, EnsureFiles, EnsureVolumes, Plug, Define, Start)
"""Steps by which a guest is booted, or brought back from being suspended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long things are given, in seconds."""

    press_again_s: float = 10.0
    soft_reboot_s: float = 90.0
    transient_s: float = 30.0
    hand_in_s: float = 600.0
    longest_retry_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was measured of one instance: its domain, the placements with files, the placement its wires are of.

    `files` and `wired` are measured only where `looks_everywhere` says so, `macs` (what the host's network has for it) only where not.
    `unmade` are those of the guest's volumes that are still to be made of an image.
    """

    domain: Domain | None = None
    files: frozenset[int] = frozenset()
    wired: int | None = None
    macs: frozenset[str] | None = None
    unmade: frozenset[str] = frozenset()


def looks_everywhere(goal: Order | Release) -> bool:
    """Whether files and wires must be measured too: to let go of them, but not to make a guest run (there, having them is idempotent)."""
    return isinstance(goal, Release) or goal.want is Want.ABSENT


def begun(before: JournalRow | None, row: JournalRow, *, now_s: float) -> Effort:
    """The effort at the beginning of a pass. `before` is the journal's row before what is asked now was accepted.

    An action that was under way then and is not any more was given up: what it may have left is to go.
    """
    is_given_up = before is not None and before.action_done < before.action_started <= row.action_done
    return Effort(began_s=now_s, may_have_copies=is_given_up)


def resting(effort: Effort, *, now_s: float) -> Wait | None:
    """Whether to wait before even measuring again: something failed, and is to be tried again later."""
    return Wait(effort.retry_s, "a step failed and is tried again") if now_s < effort.retry_s else None


def next_step(
    goal: Order | Release,
    row: JournalRow,
    seen: Seen,
    effort: Effort,
    *,
    now_s: float,
    permitted: bool,
    patience: Patience,
) -> Step:
    """The next step towards the goal. `row` is the journal's, already accepted; `permitted` is R5's permit at this instant."""
    if isinstance(goal, Release):
        return _let_go(goal.placement_epoch, seen, effort) or LetGo(goal.placement_epoch)
    if goal.want is Want.ABSENT:
        return _let_go(goal.placement_epoch, seen, effort) or Settled(HostState.ABSENT)
    domain = seen.domain
    if domain is not None and not domain.ours:
        return Settled(HostState.ERROR, domain.power, FaultCode.DOMAIN_INVALID)
    if domain is not None and _is_newer(domain, goal):
        return Wait(None, "the domain is newer than the order")
    if domain is not None and domain.placement_epoch < goal.placement_epoch:
        return _once(Forget(), effort, FaultCode.DOMAIN_STOP_FAILED)
    if _owes(goal, row, OneShot.REBUILD):
        return _rebuild(goal, row, domain, effort)
    if goal.want is Want.STOP:
        step = _toward_stop(goal, domain, effort, now_s=now_s, patience=patience)
    elif goal.want in HOLDS:
        step = _toward_hold(HOLDS[goal.want], domain, effort)
    else:
        step = _toward_run(goal, row, seen, effort, now_s=now_s, permitted=permitted, patience=patience)
    if isinstance(step, Hold) or (isinstance(step, Settled) and step.state is not HostState.ERROR):
        plug = next_plug(goal.guest, domain, seen.macs, effort, now_s=now_s, unmade=seen.unmade)
        if plug is not None and not isinstance(plug, FaultCode):
            return plug
        if plug is not None and isinstance(step, Settled):
            step = replace(step, fault=step.fault or plug)
    if isinstance(step, Settled) and step.state is not HostState.ERROR:
        return _snapshot(goal, row, domain, effort, step)
    return step


def _owes(order: Order, row: JournalRow, action: OneShot) -> bool:
    return order.action is action and order.action_seq > row.action_done


def _is_newer(domain: Domain, order: Order) -> bool:
    return (domain.placement_epoch, domain.generation) > (order.placement_epoch, order.generation)


def _let_go(placement_epoch: int, seen: Seen, effort: Effort) -> Step | None:
    """The next step of forgetting every copy up to a placement; None when there is none left. A newer copy is left alone."""
    domain = seen.domain
    if domain is not None and domain.ours and domain.placement_epoch <= placement_epoch:
        return _once(Forget(), effort, FaultCode.DOMAIN_STOP_FAILED)
    if seen.wired is not None and seen.wired <= placement_epoch:
        return _once(Unplug(placement_epoch), effort, FaultCode.NETWORK_FAILED)
    if any(held <= placement_epoch for held in seen.files):
        return _once(RemoveFiles(placement_epoch), effort, FaultCode.DISK_FAILED)
    return None


def _once(step: Forget | Unplug | RemoveFiles, effort: Effort, fault: FaultCode) -> Step:
    """The step; or, where it was done and what it removes is still there, the fault."""
    return Stuck(fault) if type(step) in effort.let_go else step


def _toward_stop(
    order: Order, domain: Domain | None, effort: Effort, *, now_s: float, patience: Patience
) -> Step:
    if domain is None or domain.power not in RUNNING:
        return Settled(HostState.STOPPED, domain.power if domain else PowerState.NOSTATE)
    if effort.is_cut:
        return Settled(HostState.ERROR, domain.power, FaultCode.DOMAIN_STOP_FAILED)
    if order.stop_timeout_s <= 0 or domain.power is not PowerState.RUNNING:
        # Who is held cannot press anything.
        return CutPower()
    if effort.first_press_s is None or effort.last_press_s is None:
        return PressPower()
    cut_s = effort.first_press_s + order.stop_timeout_s
    again_s = effort.last_press_s + patience.press_again_s
    if now_s >= cut_s:
        return CutPower()
    return PressPower() if now_s >= again_s else Wait(min(cut_s, again_s), "the guest is shutting down")


def _toward_hold(held: Held, domain: Domain | None, effort: Effort) -> Step:
    power = domain.power if domain else PowerState.NOSTATE
    if power is held.power:
        return Settled(held.word, power)
    if power not in RUNNING:
        return Settled(HostState.STOPPED, power, FaultCode.GUEST_OFF)
    if effort.unable is not None or effort.is_held or power is PowerState.SUSPENDED:
        return Settled(word_of(power), power, effort.unable or held.fault)
    return Hold(held.power)


def _toward_run(
    order: Order,
    row: JournalRow,
    seen: Seen,
    effort: Effort,
    *,
    now_s: float,
    permitted: bool,
    patience: Patience,
) -> Step:
    domain = seen.domain
    pending = order.action_seq > row.action_done and order.action is not OneShot.SNAPSHOT
    if pending and row.action_started < order.action_seq:
        return MarkStarted(order.action_seq)
    if domain is not None and domain.power in RUNNING:
        if pending:
            return _reboot(order, domain, effort, now_s=now_s, patience=patience)
        if domain.power is PowerState.RUNNING:
            return Settled(HostState.ACTIVE, domain.power)
        if domain.power is PowerState.PAUSED:
            return _go_on(effort, permitted=permitted)
    if effort.was_captured_on:
        # It went off by itself while its disk was copied: to start it again is not what was asked for.
        return Settled(HostState.STOPPED, domain.power if domain else PowerState.NOSTATE, FaultCode.GUEST_OFF)
    if domain is not None and domain.power is PowerState.SUSPENDED and (effort.is_started or effort.unable):
        # Its memory is still there, and stays: in ERROR it would be stopped, which is to throw that away.
        return Settled(HostState.SUSPENDED, domain.power, effort.unable or FaultCode.DOMAIN_RESUME_FAILED)
    if effort.is_started:
        crashed = domain is not None and domain.power is PowerState.CRASHED
        fault = FaultCode.GUEST_CRASHED if crashed else FaultCode.DOMAIN_START_FAILED
        return Settled(HostState.ERROR, domain.power if domain else PowerState.NOSTATE, fault)
    return _spawn(order, row, seen, effort, permitted=permitted)


def _rebuild(order: Order, row: JournalRow, domain: Domain | None, effort: Effort) -> Step:
    """The next step of making the root disk anew. The image comes first: without it there would be no disk at all.

    Journalled with its beginning, the disk that was there counts no more; one that was made since is the new one, and is only looked at.
    """
    if row.action_started < order.action_seq:
        return MarkStarted(order.action_seq, unmakes=True)
    if row.made:
        return MarkDone(order.action_seq) if effort.files is not None else EnsureFiles(made=True)
    for image in order.guest.images():
        if image.sha256 not in effort.images:
            return EnsureImage(image)
    if domain is not None and domain.power in RUNNING:
        if effort.is_cut:
            return Settled(HostState.ERROR, domain.power, FaultCode.DOMAIN_STOP_FAILED)
        return CutPower()
    if not effort.is_cleared:
        return ClearDisks(order.placement_epoch)
    return EnsureFiles() if effort.files is None else MarkMade()


def _snapshot(order: Order, row: JournalRow, domain: Domain | None, effort: Effort, reached: Settled) -> Step:
    """The next step of handing the root disk in as an image, of a guest that is as it is wanted, or went its own way; else what it reached.

    A snapshot that was not taken leaves the guest as it is. An upload is told of before the conductor is: it has the image, or a fault.
    """
    if not _owes(order, row, OneShot.SNAPSHOT):
        if effort.may_have_copies and not effort.are_copies_dropped:
            return DropCopies()
        return replace(reached, fault=reached.fault or effort.missed)
    if row.action_started < order.action_seq:
        return MarkStarted(order.action_seq)
    missed = effort.missed or reached.fault
    if missed is None and effort.copy is None:
        return Capture(order.action_seq, is_on=domain is not None and domain.power in _OPEN)
    if missed is None and effort.copy is not None and not effort.is_handed_in:
        return HandIn(order.action_seq, effort.copy)
    return MarkDone(order.action_seq) if effort.are_copies_dropped else DropCopies()


def _go_on(effort: Effort, *, permitted: bool) -> Step:
    """The next step of letting a paused guest go on."""
    if effort.unable is not None or effort.has_gone_on:
        return Settled(HostState.PAUSED, PowerState.PAUSED, effort.unable or FaultCode.DOMAIN_RESUME_FAILED)
    return GoOn() if permitted else Wait(None, "no permit to let guests run")


def _reboot(order: Order, domain: Domain, effort: Effort, *, now_s: float, patience: Patience) -> Step:
    """The next step of a reboot, of a running guest. Soft first where asked; one that is not heard of in time is rebooted hard.

    A guest that runs a definition of this generation was booted by this order, whoever remembers it: that is a reboot.
    """
    rebooted = effort.is_started or effort.is_rebooted or domain.generation >= order.generation
    if rebooted or order.action is OneShot.NONE:
        return MarkDone(order.action_seq)
    if effort.is_cut:
        return Settled(HostState.ERROR, domain.power, FaultCode.DOMAIN_STOP_FAILED)
    if order.action is OneShot.REBOOT_SOFT:
        if effort.reset_s is None:
            return PressReset()
        if now_s < effort.reset_s + patience.soft_reboot_s:
            return Wait(effort.reset_s + patience.soft_reboot_s, "the guest is rebooting")
    return CutPower()


def _spawn(order: Order, row: JournalRow, seen: Seen, effort: Effort, *, permitted: bool) -> Step:
    """The next step of booting a guest. All of them, at every start: each is idempotent, and a power cut takes the wires.

    Disks are made once in a placement's life. A start that finds them gone reports it: with fresh ones the server would come up empty, and
    look well.
    """
    for image in order.guest.images():
        is_needed = not (row.made and order.guest.standalone and image is order.guest.image)
        if is_needed and image.sha256 not in effort.images:
            return EnsureImage(image)
    if effort.files is None:
        files = EnsureFiles(made=row.made)
        return Prepare(files, Plug()) if effort.interfaces is None else files
    if not row.made:
        return MarkMade()
    if effort.interfaces is None:
        return Plug()
    if effort.volumes is None and order.guest.volumes:
        for each in order.guest.volume_images:
            if each.volume_id in seen.unmade and each.image.sha256 not in effort.images:
                return EnsureImage(each.image)
        return EnsureVolumes(makes=bool(seen.unmade))
    if not effort.is_defined:
        return Define(effort.files, effort.interfaces, effort.volumes or ())
    return Start() if permitted else Wait(None, "no permit to start guests")


def after(effort: Effort, step: Act, *, now_s: float) -> Effort:
    """The effort once a step has succeeded. What `EnsureFiles`, `Plug` and `Capture` brought is the caller's to add."""
    effort = replace(effort, failures=0, retry_s=0.0)
    match step:
        case EnsureImage(image):
            return replace(effort, images=effort.images | {image.sha256})
        case Define():
            return replace(effort, is_defined=True)
        case Start():
            return replace(effort, is_started=True)
        case PressPower():
            first = now_s if effort.first_press_s is None else effort.first_press_s
            return replace(effort, first_press_s=first, last_press_s=now_s)
        case PressReset():
            return replace(effort, reset_s=now_s)
        case CutPower():
            return replace(effort, is_cut=True)
        case Hold():
            return replace(effort, is_held=True)
        case GoOn():
            return replace(effort, has_gone_on=True)
        case Forget() | Unplug() | RemoveFiles():
            return replace(effort, let_go=effort.let_go | {type(step)})
        case ClearDisks():
            return replace(effort, is_cleared=True)
        case Capture(is_on=is_on):
            return replace(effort, was_captured_on=is_on)
        case HandIn():
            return replace(effort, is_handed_in=True)
        case DropCopies():
            return replace(effort, are_copies_dropped=True)
        case AttachDisk(volume):
            return replace(effort, pushed=effort.pushed | {volume.serial})
        case AttachInterface(interface):
            return replace(effort, pushed=effort.pushed | {interface.mac})
        case DetachDisk(name) | DetachInterface(name):
            first_s, _ = effort.pulled.get(name, (now_s, now_s))
            return replace(effort, pulled={**effort.pulled, name: (first_s, now_s)})
        case Rewire():
            return replace(effort, is_rewired=True)
        case EnsureFiles() | EnsureVolumes() | Plug():
            return effort


def after_failure(
    goal: Order | Release,
    effort: Effort,
    step: Act | Prepare | Stuck | None,
    fault: FaultCode,
    *,
    now_s: float,
    patience: Patience,
    is_made: bool = False,
    is_suspended: bool = False,
) -> tuple[Effort, Settled | None]:
    """The effort after a step (None: a measurement) has failed, and what to report of it, if anything.

    What is reported of an order to run or to stop ends the pass; of letting go it does not.
    Whose disks are made (`is_made`) lives here, and is as it was while it cannot be looked at: that is the host's health, and no end of
    an order. Told as one, it would have a guest that runs stopped, and one that a power cut ended never started.
    Buttons are pressed by courtesy: a guest without ACPI is one that does not answer, and so is one whose monitor hangs. Transient faults
    are tried again for as long as patience lasts. Who was to come back from being suspended (`is_suspended`) stays so. Letting go is tried
    for ever, because nobody else can, but its failure is reported once, so that people can help.
    """
    if isinstance(step, PressPower | PressReset) and fault not in _TRANSIENT - {FaultCode.HYPERVISOR_TIMEOUT}:
        return after(effort, step, now_s=now_s), None
    began_s = now_s if effort.failures == 0 else effort.began_s
    wait_s = min(patience.longest_retry_s, 0.5 * 2.0 ** min(effort.failures, 10))
    if isinstance(step, PressReset):
        effort = replace(effort, reset_s=None)
    retrying = replace(
        effort,
        began_s=began_s,
        failures=effort.failures + 1,
        retry_s=now_s + wait_s,
        let_go=frozenset(),
        is_cut=False,
    )
    longest_s = patience.hand_in_s if isinstance(step, HandIn) else patience.transient_s
    patient = fault in _TRANSIENT and now_s - began_s < longest_s
    if patient or (step is None and is_made and not looks_everywhere(goal)):
        return retrying, None
    if isinstance(step, Capture | HandIn):
        was_on = effort.was_captured_on or (isinstance(step, Capture) and step.is_on)
        return replace(effort, missed=effort.missed or fault, was_captured_on=was_on), None
    if isinstance(step, DropCopies):
        # The next snapshot, or the end of the placement, removes them.
        return after(effort, step, now_s=now_s), None
    is_for_plug = isinstance(step, EnsureImage) and step.for_plug
    if is_for_plug or isinstance(step, AttachDisk | DetachDisk | Rewire | AttachInterface | DetachInterface):
        # The guest keeps the devices that it has.
        return replace(effort, misplugged=fault), None
    if isinstance(step, Hold | GoOn) or (is_suspended and isinstance(step, _BRINGS_BACK)):
        # The guest goes on as it is: to be measured, and told with the fault.
        return replace(effort, unable=fault), None
    if not looks_everywhere(goal):
        return effort, Settled(HostState.ERROR, fault=fault)
    if isinstance(goal, Release) or effort.told is fault:
        return retrying, None
    return replace(retrying, told=fault), Settled(HostState.ERROR, fault=fault)


def look_again_s(said: Settled) -> float | None:
    """How soon to look whether it is still so, where nobody may say that it is not."""
    return HELD_LOOK_S if said.fault is FaultCode.DEVICE_HELD else None


class Resume:
    """What was settled is true no more, and is to be made true again."""


def drift(order: Order, said: Settled, domain: Domain | None) -> Settled | Resume | None:
    """What a change that nobody ordered means (lifecycle.md, drift); None where nothing changed that matters.

    A guest that shut itself down stays down and is reported; one that runs although it is wanted off is stopped, and one that is there
    although it is wanted gone is let go of; one that was paused by hand, or let go on, is reported so. What vanished is reported: it is not
    made anew, because its disks may tell why.
    """
    if domain is not None and (not domain.ours or domain.placement_epoch != order.placement_epoch):
        return None
    if order.want is Want.ABSENT:
        return None if domain is None else Resume()
    power = domain.power if domain is not None else PowerState.NOSTATE
    now: Settled
    if power in RUNNING:
        if order.want is Want.STOP:
            return Resume()
        if said.state is word_of(power):
            if said.fault is FaultCode.DEVICE_HELD and domain is not None and is_plugged(order.guest, domain):
                # It has let go after all.
                return replace(said, power=power, fault=None)
            # The same as was told, with or without a fault.
            return None if said.power is power else replace(said, power=power)
        now = Settled(word_of(power), power)
    elif said.state is HostState.ERROR:
        return None
    elif domain is None:
        missed = said.power is not PowerState.NOSTATE
        now = Settled(HostState.ERROR, power, FaultCode.DOMAIN_MISSING) if missed else said
    elif said.state is HostState.STOPPED:
        now = said
    elif power is PowerState.CRASHED:
        now = Settled(HostState.ERROR, power, FaultCode.GUEST_CRASHED)
    else:
        now = Settled(HostState.STOPPED, power)
    return None if now == said else now
