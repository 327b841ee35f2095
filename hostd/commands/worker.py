"""One instance's worker: carries out one step at a time, or two that go together, of the latest order only (R14).

A worker outlives sessions: an order of a new session waits for the step that an old one began, and then the world is measured anew.
What to do is `hostd.core.reconcile`'s to decide; here it is only done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from fabric.deadlines import within
from fabric.errors import FabricError
from fabric.model.instance import Guest
from fabric.model.session import HostState, Order, Progress, Release, Released, Status
from fabric.model.states import PowerState, Want
from fabric.model.volume import VOLUME_EPOCH, GuestVolume
from hostd.commands import snapshots
from hostd.commands.journal import JournalRow
from hostd.commands.site import Site
from hostd.core import fencing, reconcile
from hostd.core.faults import FaultCode, as_fault_code, fault_text
from hostd.core.reconcile import Resume, Seen
from hostd.core.step_log import StepLog
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
    Mark,
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
from hostd.driver.base import DiskFile, DomainSpec, DriverError
from hostd.images.base import DiskError
from hostd.network.base import NetworkError, Wiring
from hostd.volumes.absent import NOT_SHARED
from hostd.volumes.base import VolumeError, Volumes

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_AT_ONCE = 0.0
_AFTER_A_BUG_S = 5.0


class Superseded(Exception):
    """Something else is wanted since a step was decided: decide again."""


class Fenced(Exception):
    """What permits a step is gone since it was decided. The next session's snapshot, or the next beat, brings it back."""


def fault_of(error: Exception) -> FaultCode:
    """The word for a failure of a port. What we have no word for is a failure of the host."""
    if isinstance(error, DriverError | DiskError | NetworkError | VolumeError):
        return as_fault_code(error.code)
    return FaultCode.IMAGE_UNAVAILABLE if isinstance(error, FabricError) else FaultCode.HOST_FAILED


def _aims(goal: Order | Release) -> tuple[int, ...]:
    """What is asked, whoever's session asks it: two goals alike in this are one."""
    if isinstance(goal, Release):
        return (goal.placement_epoch,)
    return (goal.placement_epoch, goal.generation, goal.want, goal.action_seq, goal.action)


def _spec(order: Order, step: Define) -> DomainSpec:
    return DomainSpec(
        guest=order.guest.booted(),
        placement_epoch=order.placement_epoch,
        generation=order.generation,
        disks=_in_order(order.guest, step),
        interfaces=step.interfaces,
        kernel_path=step.files.kernel_path,
        ramdisk_path=step.files.ramdisk_path,
        console_log_path=step.files.console_log_path,
    )


def _in_order(guest: Guest, step: Define) -> tuple[DiskFile, ...]:
    """The disks as the guest finds them: what it boots from first. A volume that is the root disk stands where a root disk does, which is
    after the disk that a guest is rescued with.
    """
    root = guest.root_volume
    roots = [each for each in step.volumes if root is not None and each.serial == root.serial]
    first = 1 if roots and guest.rescue is not None else 0
    own, others = step.files.disks, (each for each in step.volumes if each not in roots)
    return (*own[:first], *roots, *own[first:], *others)


class Worker:
    """Makes one instance's latest order true. `order` and `release` replace what was asked before; nothing is queued behind it."""

    def __init__(self, instance_id: str, row: JournalRow | None, site: Site) -> None:
        self.instance_id = instance_id
        self.row = row
        self.order: Order | None = None
        self.settled: Settled | None = None
        self._release: Release | None = None
        self._site = site
        self._effort = Effort(began_s=0.0)
        self._log = StepLog()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._is_looking = False
        self._told_guest: Guest | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do and nothing to watch over: its row in the journal is all that is left."""
        gone = self.settled is not None and self.settled.state is HostState.ABSENT
        return self._release is None and (self.order is None or gone)

    # ------------------------------------------------------------ what is asked

    def take_order(self, order: Order, *, presume_made: bool = False) -> fencing.Refusal | None:
        """Accept an order, journalled before this returns (R3). The same order again costs nothing, but tells its end again."""
        accepted = fencing.accept(self.row, order, presume_made=presume_made)
        if isinstance(accepted, fencing.Refusal):
            return accepted
        row_before = self.row
        self._write(accepted)
        before, self.order = self.order, order
        if before is not None and _aims(before) == _aims(order):
            if self.settled is not None and self.settled.state is HostState.ABSENT:
                self._say(order, self.settled)
            self._wake.set()
            return None
        self.settled = None
        self._site.mouth.unsay(self.instance_id)
        self._begin(row_before)
        return None

    def take_release(self, release: Release) -> None:
        """Accept a release, journalled before this returns: no order of those placements counts any more."""
        self._write(fencing.accept_release(self.row, release))
        if self.order is not None and self.order.placement_epoch <= release.placement_epoch:
            self.order = None
            self.settled = None
            self._site.mouth.unsay(self.instance_id)
        again = self._release is not None and self._release.placement_epoch == release.placement_epoch
        self._release = release
        if again:
            self._wake.set()
        else:
            self._begin()

    def look(self, *, rebooted: bool = False) -> None:
        """Something may have changed by itself: look. `rebooted`: the hypervisor says that the guest has rebooted."""
        if rebooted and self._effort.reset_s is not None:
            self._effort = replace(self._effort, is_rebooted=True)
        self._is_looking = True
        self._wake.set()

    def wake(self) -> None:
        """The fence moved, or the hypervisor is back: what waited may go on."""
        self._wake.set()

    def _begin(self, row_before: JournalRow | None = None) -> None:
        now_s = self._site.clock.boot_s()
        self._log = StepLog()
        self._effort = Effort(began_s=now_s)
        if self.row is not None:
            self._effort = reconcile.begun(row_before, self.row, now_s=now_s)
        self._changed.set()
        self._wake.set()

    def _write(self, row: JournalRow) -> None:
        if row != self.row:
            self._site.journal.write(row)
            self.row = row

    # ------------------------------------------------------------ what is done

    async def run(self) -> None:
        """Work for ever. Whatever fails is reported or tried again; nothing of one instance ends the daemon."""
        while True:
            self._wake.clear()
            try:
                wait_s = await self._advance()
            except Superseded:
                wait_s = _AT_ONCE
            except Fenced:
                wait_s = None
            except Exception:  # noqa: BLE001 - logged, and nothing of one instance may end the daemon
                # The journal cannot be written, or we broke a rule of our own.
                _log.exception("worker.failed", instance=self.instance_id)
                wait_s = _AFTER_A_BUG_S
            if wait_s != _AT_ONCE:
                try:
                    async with within(wait_s):
                        await self._wake.wait()
                except TimeoutError:
                    # Where all is done, it was time to look; else there is something to try again.
                    self._is_looking = self._is_looking or self.settled is not None

    async def _advance(self) -> float | None:
        """Take one step. Returns how long to wait for a change before the next: None is for as long as it takes."""
        goal = self._release or self.order
        if goal is None or self.row is None:
            return None
        if self._release is None and self.settled is not None:
            return await self._watch_over(self._order(), self.settled)
        now_s = self._site.clock.boot_s()
        if reconcile.resting(self._effort, now_s=now_s) is not None:
            return max(0.001, self._effort.retry_s - now_s)
        self._changed.clear()
        seen = Seen()
        step: Act | Prepare | None = None
        try:
            seen = await self._measure(goal)
            self._must_be_wanted(goal)
            decided = self._decide(goal, self.row, seen)
            match decided:
                case Wait(until_s=until_s):
                    return None if until_s is None else max(0.001, until_s - self._site.clock.boot_s())
                case MarkStarted() | MarkDone() | MarkMade():
                    await self._mark(decided)
                case LetGo(placement_epoch):
                    self._released(placement_epoch)
                case Settled():
                    await self._tell()
                    self._must_be_wanted(goal)
                    self._settle(self._order(), decided)
                case Stuck(fault):
                    self._failed(goal, seen, decided, fault)
                case Prepare(files, wires):
                    step = decided
                    await self._do_both(goal, files, wires)
                case _:
                    step = decided
                    await self._do(goal, step)
        except (Superseded, Fenced):
            raise
        except Exception as error:  # noqa: BLE001 - what has no word is a failure of the host, and reported as one
            fault = fault_of(error)
            _log.warning(
                "step.failed",
                instance=self.instance_id,
                step=type(step).__name__,
                fault=fault,
                reason=str(error),
                exc_info=fault is FaultCode.HOST_FAILED,
            )
            self._must_be_wanted(goal)
            self._failed(goal, seen, step, fault)
        return _AT_ONCE

    def _decide(self, goal: Order | Release, row: JournalRow, seen: Seen) -> Step:
        now_s = self._site.clock.boot_s()
        return reconcile.next_step(
            goal,
            row,
            seen,
            self._effort,
            now_s=now_s,
            permitted=self._site.fence().permits_start(now_s),
            patience=self._site.patience,
        )

    async def _measure(self, goal: Order | Release) -> Seen:
        domain = await self._site.driver.observe(self.instance_id)
        if not reconcile.looks_everywhere(goal):
            unmade = await self._unless_changed(self._unmade(goal))
            return Seen(domain=domain, macs=await self._site.wires.wired(self.instance_id), unmade=unmade)
        held = await self._site.disks.held()
        wired = await self._site.wires.plugged()
        files = {one.placement_epoch for one in held if one.instance_id == self.instance_id}
        if isinstance(goal, Release) and self.instance_id in await self._volumes(goal.directory).held():
            # It is a volume that is let go of.
            files.add(VOLUME_EPOCH)
        return Seen(
            domain=domain,
            files=frozenset(files),
            wired=wired.get(self.instance_id),
        )

    async def _unmade(self, goal: Order | Release) -> frozenset[str]:
        """Which of the guest's volumes are still to be made of an image. Few have any."""
        if isinstance(goal, Release) or goal.want is Want.STOP:
            return frozenset()
        guest = goal.guest
        asked = [each for each in guest.volumes if guest.image_of(each.id) is not None]
        return frozenset(
            [each.id for each in asked if await self._volumes(each.directory).is_unmade(each.id)]
        )

    def _must_be_wanted(self, goal: Order | Release) -> None:
        """Raise Superseded unless this is still the latest thing asked for (the same order under a newer epoch is)."""
        current = self._release or self.order
        if current is None or type(current) is not type(goal) or _aims(current) != _aims(goal):
            raise Superseded

    def _must_be_permitted(self, goal: Order | Release, step: Act) -> None:
        """R2, immediately before a step: the session's epoch, the newest placement and generation, and, to start, the permit."""
        self._must_be_wanted(goal)
        current = self._release or self.order
        fence = self._site.fence()
        if current is None or self.row is None or not fence.hears(current.epoch):
            raise Fenced
        if isinstance(current, Order) and not fencing.is_newest(self.row, current):
            raise Fenced
        if isinstance(step, Start | GoOn) and not fence.permits_start(self._site.clock.boot_s()):
            raise Fenced

    async def _do(self, goal: Order | Release, step: Act) -> None:
        volumes = goal.guest.volumes if isinstance(goal, Order) else ()
        slots = self._site.slots_for(step, frozenset(each.directory for each in volumes if each.directory))
        if slots is None:
            await self._timed(goal, step)
        else:
            await self._unless_changed(slots.acquire())
            try:
                await self._timed(goal, step)
            finally:
                slots.release()
        await self._site.failpoints.reach(step.reached)

    async def _do_both(self, goal: Order | Release, *steps: Act) -> None:
        """Do steps side by side, each to its end whatever becomes of the others. Raises what the first of them in this order raised."""
        ends = await asyncio.gather(*(self._do(goal, step) for step in steps), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    async def _timed(self, goal: Order | Release, step: Act) -> None:
        """Do a step, and note when, and how it ended, unless it is not wanted any more."""
        clock = self._site.clock
        began_s = clock.boot_s()
        try:
            await self._act(goal, step)
        except (Superseded, Fenced):
            raise
        except Exception as error:
            self._log = self._log.took(step, began_s=began_s, ended_s=clock.boot_s(), fault=fault_of(error))
            raise
        self._log = self._log.took(step, began_s=began_s, ended_s=clock.boot_s())

    async def _act(self, goal: Order | Release, step: Act) -> None:
        self._must_be_permitted(goal, step)
        found: dict[str, Any] = {}
        driver = self._site.driver
        match step:
            case EnsureImage(image):
                self._show(goal, "image", 0)
                fetching = self._site.disks.ensure_image(
                    image, self._site.fetch, lambda percent: self._show(goal, "image", percent)
                )
                await self._unless_changed(fetching)
            case EnsureFiles(made):
                order = self._order()
                found["files"] = await self._site.disks.ensure_guest(
                    order.guest, order.placement_epoch, made=made
                )
            case EnsureVolumes():
                # A shared directory may be out of reach for hours.
                found["volumes"] = await self._unless_changed(self._ensured(*self._order().guest.volumes))
            case Plug() | Rewire():
                order = self._order()
                self._show(goal, "networking", 0)
                wiring = Wiring(guest=order.guest.booted(), placement_epoch=order.placement_epoch)
                # A plan for its ports on tenant networks may be long in coming.
                found["interfaces"] = await self._unless_changed(self._site.wires.plug(wiring))
            case Define():
                self._show(goal, "spawning", 0)
                await driver.define(_spec(self._order(), step))
            case Start():
                await driver.start(self.instance_id)
            case PressPower():
                await driver.press_power_button(self.instance_id)
            case PressReset():
                # Before the call: the guest may have rebooted by the time it returns.
                self._effort = reconcile.after(self._effort, step, now_s=self._site.clock.boot_s())
                await driver.press_reset_button(self.instance_id)
            case CutPower():
                await driver.cut_power(self.instance_id)
            case Hold(power):
                await driver.hold(self.instance_id, power)
            case GoOn():
                await driver.go_on(self.instance_id)
            case AttachDisk(volume):
                (disk,) = await self._unless_changed(self._ensured(volume))
                await driver.attach_disk(self.instance_id, disk)
            case DetachDisk(serial):
                await driver.detach_disk(self.instance_id, serial)
            case AttachInterface(interface):
                await driver.attach_interface(self.instance_id, interface)
            case DetachInterface(mac):
                await driver.detach_interface(self.instance_id, mac)
            case Forget():
                await driver.forget(self.instance_id)
            case Unplug(placement_epoch):
                await self._site.wires.unplug(self.instance_id, placement_epoch)
            case RemoveFiles(placement_epoch) | ClearDisks(placement_epoch):
                await self._site.disks.remove(self.instance_id, placement_epoch)
                if isinstance(goal, Release):
                    await self._volumes(goal.directory).remove(self.instance_id)
            case Capture():
                self._show(goal, "image_snapshot", 0)
                found["copy"] = await self._unless_changed(snapshots.capture(self._site, self._order(), step))
            case HandIn():
                handing_in = snapshots.hand_in(
                    self._site,
                    self._order(),
                    step,
                    lambda percent: self._show(goal, "image_uploading", percent),
                )
                await self._unless_changed(handing_in)
            case DropCopies():
                await self._site.disks.drop_copies(self.instance_id, goal.placement_epoch)
        self._must_be_wanted(goal)
        if not isinstance(step, PressReset):
            effort = reconcile.after(self._effort, step, now_s=self._site.clock.boot_s())
            self._effort = replace(effort, **found)

    async def _ensured(self, *volumes: GuestVolume) -> tuple[DiskFile, ...]:
        """The disks of volumes of the guest, for whoever its own disks belong to."""
        order, disks = self._order(), self._site.disks
        owner = await disks.owner(self.instance_id, order.placement_epoch)
        made = []
        for volume in volumes:
            image = order.guest.image_of(volume.id)
            source = None if image is None else disks.image_file(image)
            made.append(await self._volumes(volume.directory).ensure(volume, owner, source))
        return tuple(made)

    def _volumes(self, directory: str) -> Volumes:
        """The volumes of a directory that hosts share; the host's own, for none. One that is not shared here is out of reach."""
        if not directory:
            return self._site.volumes
        return self._site.shared.get(directory, NOT_SHARED)

    async def _unless_changed(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what may be left undone: give it up when something else is wanted."""
        doing = asyncio.create_task(work)
        changing = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({doing, changing}, return_when=asyncio.FIRST_COMPLETED)
            superseded = not doing.done()
        finally:
            doing.cancel()
            changing.cancel()
        if superseded:
            await asyncio.wait({doing})
            raise Superseded
        return doing.result()

    async def _mark(self, mark: Mark) -> None:
        assert self.row is not None
        match mark:
            case MarkStarted(action_seq, unmakes):
                made = self.row.made and not unmakes
                self._write(replace(self.row, action_started=action_seq, made=made))
            case MarkDone(action_seq):
                self._write(replace(self.row, action_done=action_seq))
            case MarkMade():
                self._write(replace(self.row, made=True))
        await self._site.failpoints.reach(mark.reached)

    async def _watch_over(self, order: Order, settled: Settled) -> float | None:
        """Nothing is to be done but to see whether it stays so."""
        if not self._is_looking:
            return reconcile.look_again_s(settled)
        self._is_looking = False
        try:
            domain = await self._site.driver.observe(self.instance_id)
        except DriverError as error:
            # The daemon's own watch over the hypervisor reports that; what was true is not known to have changed.
            _log.info("drift.unseen", instance=self.instance_id, reason=error.message)
            return None
        if self.order is not order or self.settled is not settled:
            return _AT_ONCE
        change = reconcile.drift(order, settled, domain)
        if isinstance(change, Resume):
            _log.warning("drift.undone", instance=self.instance_id, want=order.want.name)
            self.settled = None
            self._begin()
        elif change is not None:
            _log.warning(
                "drift.adopted", instance=self.instance_id, state=change.state.name, power=change.power.name
            )
            self._settle(order, change)
        return _AT_ONCE

    # ------------------------------------------------------------ what is told

    def _failed(
        self, goal: Order | Release, seen: Seen, step: Act | Prepare | Stuck | None, fault: FaultCode
    ) -> None:
        self._effort, told = reconcile.after_failure(
            goal,
            self._effort,
            step,
            fault,
            now_s=self._site.clock.boot_s(),
            patience=self._site.patience,
            is_made=self.row is not None and self.row.made,
            is_suspended=seen.domain is not None and seen.domain.power is PowerState.SUSPENDED,
        )
        if told is None or isinstance(goal, Release):
            return
        if goal.want is Want.ABSENT:
            self._say(goal, told)
        else:
            self._settle(goal, told)

    async def _tell(self) -> None:
        """Let a guest that goes on read what has changed of it: its metadata is served from what its wires were told last."""
        order = self._order()
        if order.want is Want.ABSENT or order.guest == self._told_guest:
            return
        try:
            await self._site.wires.tell(
                Wiring(guest=order.guest.booted(), placement_epoch=order.placement_epoch)
            )
        except NetworkError as error:
            # What it reads is old until the next order; that it is as wanted is true all the same.
            _log.warning("metadata.old", instance=self.instance_id, reason=error.message)
        else:
            self._told_guest = order.guest

    def _settle(self, order: Order, settled: Settled) -> None:
        self.settled = settled
        self._say(order, settled)

    def _say(self, order: Order, settled: Settled) -> None:
        self._site.mouth.say(
            Status(
                epoch=0,
                instance_id=self.instance_id,
                placement_epoch=order.placement_epoch,
                generation=order.generation,
                action_seq=order.action_seq,
                state=settled.state,
                power=settled.power,
                fault_code=settled.fault or "",
                fault_message=fault_text(settled.fault) if settled.fault else "",
                steps=self._log.told(self._site.clock.boot_s()),
            )
        )

    def _released(self, placement_epoch: int) -> None:
        self._release = None
        self._site.mouth.released(
            Released(epoch=0, instance_id=self.instance_id, placement_epoch=placement_epoch)
        )
        if self.order is not None:
            self._begin()

    def _show(self, goal: Order | Release, step: str, percent: int) -> None:
        self._site.mouth.show(
            Progress(
                epoch=0,
                instance_id=self.instance_id,
                placement_epoch=goal.placement_epoch,
                step=step,
                percent=max(0, min(100, percent)),
            )
        )

    def _order(self) -> Order:
        assert self.order is not None
        return self.order
