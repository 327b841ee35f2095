"""Bugs put into the protocol on purpose: what the simulation is worth is told by how soon it finds them.

python -m tests.sim.mutants                     every mutant that is found, each for as long as it may take
python -m tests.sim.mutants 300 claim_without_use_compare

A mutant is the smallest change that takes one rule away. It is put in by replacing names of the shipped modules while its schedules run,
and taken out again. One that is not found within its schedules is a finding: of a checker that is blind, of faults that are too tame, or
of a rule that something else upholds too; docs/concepts/simulation.md says which.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, cast

import fabric.api.instances as api_instances
import fabric.scheduler.cell as scheduler_cell
from fabric.api.core import intent
from fabric.conductor import records, sessions, sweeper, upkeep, writer
from fabric.conductor.core import fence, flow, permit
from fabric.conductor.core.draft import Draft, Ref, ref
from fabric.lifecycle import core as lifecycle
from fabric.lifecycle.core import failed
from fabric.model.instance import Fault, Instance, Refund
from fabric.model.session import HostState, Order, Release, Snapshot, Status
from fabric.model.states import Action, PowerState, Want
from fabric.quota import ledger
from fabric.scheduler import reconciler
from fabric.store import keys, settle
from fabric.store.base import Batch, Committed, Compacted, Refused, Store, Txn
from fabric.store.picture import Picture
from hostd.commands import worker
from hostd.core import fencing, reconcile
from hostd.core.outbox import Outbox
from hostd.core.steps import Settled, Start
from hostd.driver.fake import FakeMachine
from hostd.session import Session
from tests.sim.mutant import Mutant, Swap, committing, less
from tests.sim.mutants_of_moves import MOVE_MUTANTS
from tests.sim.mutants_of_ports import PORT_MUTANTS
from tests.sim.mutants_of_volumes import VOLUME_MUTANTS
from tests.sim.network import SimStore
from tests.sim.run import run


@contextlib.contextmanager
def put_in(mutant: Mutant) -> Iterator[None]:
    """The code with the bug in it, for as long as this lasts."""
    # Shipped code has no seam for being wrong, so its names are replaced, as unittest.mock would.
    swaps = [(owner, name, getattr(owner, name), new) for owner, name, new in mutant.swaps()]
    for owner, name, _, new in swaps:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, old, _ in reversed(swaps):
            setattr(owner, name, old)


def hunt(mutant: Mutant, *, first: int = 0, most: int | None = None) -> tuple[int, str] | None:
    """How many schedules it took to find the mutant, and by what; None when it was not found within `most` (else its own number)."""
    with put_in(mutant):
        for number in range(most or mutant.within):
            outcome = run(first + number)
            if outcome.violation:
                return number + 1, outcome.violation
    return None


# ---------------------------------------------------------------------- transactions without a compare


def _quota_without_compare() -> tuple[Swap, ...]:
    settled = settle.commit_settled

    async def careless(store: Store, txn: Txn, **options: Any) -> Committed | Refused:
        return await settled(store, less(txn, keys.QUOTA.under()), **options)

    return ((ledger, "commit_settled", careless),)


def _no_request_record() -> tuple[Swap, ...]:
    async def forgetful(store: Store, txn: Txn, **_: Any) -> Committed | Refused:
        put = {key: value for key, value in txn.put.items() if not key.startswith(keys.ANSWERED.under())}
        return await store.commit(replace(less(txn, keys.ANSWERED.under()), put=put))

    return ((ledger, "commit_settled", forgetful),)


class _Fenceless:
    """`records` as the writer of statuses sees it, less the fence in its transactions."""

    read = staticmethod(records.read)

    @staticmethod
    async def commit(store: Store, draft: Draft) -> bool:
        if not draft:
            return True
        txn = less(records.transaction(draft), keys.SESSION.under())
        return isinstance(await store.commit(txn), Committed)


def _no_session_fence() -> tuple[Swap, ...]:
    return ((writer, "records", _Fenceless), (flow, "holds", lambda _session, _epoch: True))


# ---------------------------------------------------------------------- the API and the reconciler


def _refund_before_confirmed() -> tuple[Swap, ...]:
    right = intent.written

    def hasty(seen: Any, instance: Instance, *rest: Any, **named: Any) -> intent.Written:
        made = right(seen, instance, *rest, **named)
        asked = cast("intent.Intent", rest[1])
        if asked.action is not Action.DELETE or made.after is None:
            return made
        refund = Refund(instance_id=instance.id, project_id=instance.request.guest.project_id)
        return replace(
            made, write=replace(made.write, put={**made.write.put, keys.REFUND.at(instance.id): refund})
        )

    return ((intent, "written", hasty), (api_instances, "written", hasty))


def _refund_twice() -> tuple[Swap, ...]:
    return committing(reconciler, keys.LOCATION.under(), keys.QUOTA.under())()


# ---------------------------------------------------------------------- the conductor


def _believing(*disbelief: lifecycle.Refused) -> Callable[[], tuple[Swap, ...]]:
    """A lifecycle that does not refuse for these reasons what a host says."""

    def swaps() -> tuple[Swap, ...]:
        right = lifecycle._refusal

        def credulous(now: Instance, said: lifecycle.Said) -> lifecycle.Refused | None:
            refusal = right(now, said)
            return None if refusal in disbelief else refusal

        return ((lifecycle, "_refusal", credulous),)

    return swaps


def _move_without_tombstone() -> tuple[Swap, ...]:
    right = flow._move

    def careless(draft: Draft, instance: Instance, *rest: Any, **named: Any) -> None:
        right(draft, instance, *rest, **named)
        draft._puts.pop(keys.TOMBSTONE.at(instance.host, instance.id), None)

    return ((flow, "_move", careless),)


def _move_without_room() -> tuple[Swap, ...]:
    def generous(draft: Draft, _: Instance, name: str) -> int | None:
        use = draft.get(keys.USE, name)
        return use.free_slot(50) if use is not None else 0

    return ((flow, "_room", generous),)


def _move_from_the_silent() -> tuple[Swap, ...]:
    """A host that cannot be reached loses what it was to start, though it may have started it."""
    right = sweeper.Sweeper._mark_unreachable

    async def rash(self: sweeper.Sweeper, host: str) -> None:
        await right(self, host)
        for instance in [each for each in self._in_flight() if each.host == host]:
            refs: list[Ref] = [
                *flow.status_reads(host, _error_of(instance)),
                *(
                    each
                    for name in instance.alternates
                    for each in (ref(keys.SESSION, name), ref(keys.HOST, name), ref(keys.USE, name))
                ),
            ]
            draft = Draft(await records.read(self._store, refs))
            now = draft.get(keys.INSTANCE, instance.id)
            session = draft.get(keys.SESSION, host)
            if (
                now is None
                or session is None
                or session.state in fence.LIVE
                or not flow._is_being_placed(now)
            ):
                continue
            draft.rely_on(keys.SESSION, host)
            op_id, now_ms = self._ids.new_id(), self._clock.now_ms()
            fault = Fault(code="HOST_FAILED", message="the host is silent", host=host, time_ms=now_ms)
            after = replace(
                failed(now, fault, now_ms=now_ms, op_id=op_id), want=Want.STOP, generation=now.generation + 1
            )
            flow._place_again(draft, now, after, now_ms=now_ms, op_id=op_id)
            await records.commit(self._store, draft)

    return ((sweeper.Sweeper, "_mark_unreachable", rash),)


def _error_of(instance: Instance) -> Status:
    return Status(
        epoch=0,
        instance_id=instance.id,
        placement_epoch=instance.placement_epoch,
        generation=instance.generation,
        action_seq=0,
        state=HostState.ERROR,
        power=PowerState.NOSTATE,
    )


def _acknowledge_before_writing() -> tuple[Swap, ...]:
    right = sessions.HostSession._take

    def hasty(self: sessions.HostSession, word: writer.Word) -> None:
        right(self, word)
        self.answer(word, flow.ACCEPTED)

    return ((sessions.HostSession, "_take", hasty),)


def _up_before_released() -> tuple[Swap, ...]:
    """No barrier (R8), and nothing said of releases either: a host may be given work while it holds what it must forget."""

    async def eager(self: upkeep.Upkeep, host: str, epoch: int) -> Any:
        while True:
            draft = Draft(await records.read(self._store, fence.join_reads(host)))
            state = fence.settle_in(draft, host, epoch, now_ms=self._clock.now_ms(), op_id=self._ids.new_id())
            if state is None or await records.commit(self._store, draft):
                return state

    return ((upkeep.Upkeep, "settle_in", eager),)


def _beats_acknowledged_without_proof() -> tuple[Swap, ...]:
    return ((permit, "may_acknowledge", lambda _proof_s, _now_s: True),)


def _no_second_look(*, also_resync: bool, also_reread: bool) -> tuple[Swap, ...]:
    """Watches that end where history was compacted are begun again from now on, as if nothing had been missed."""
    right = SimStore.watch

    async def forgetful(self: SimStore, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        revision = after
        while True:
            try:
                async for batch in right(self, prefix, after=revision):
                    revision = batch.revision
                    yield batch
            except Compacted as gone:
                if not prefix.startswith((keys.ASSIGNMENT.under(), keys.TOMBSTONE.under())):
                    raise
                revision = gone.revision

    async def never(_: object) -> None:
        await asyncio.Event().wait()

    swaps: list[Swap] = [(SimStore, "watch", forgetful)]
    if also_resync:
        swaps.append((sessions.HostSession, "_tell_again", never))
    if also_reread:
        swaps.append((Picture, "_keep_rereading", never))
    return tuple(swaps)


# ---------------------------------------------------------------------- the host


def _delete_by_absence() -> tuple[Swap, ...]:
    """What a snapshot does not mention is taken to be unwanted."""
    right = Session._hear_part

    def sweeping(self: Session, part: Snapshot) -> None:
        mentioned = {order.guest.id for each in (*self._parts, part) for order in each.orders}
        right(self, part)
        queues = self._desk.queues
        for instance_id, order in queues.orders().items():
            if part.last and instance_id not in mentioned and order.want is not Want.ABSENT:
                gone = Release(
                    epoch=order.epoch, instance_id=instance_id, placement_epoch=order.placement_epoch
                )
                queues.take([gone], [])

    return ((Session, "_hear_part", sweeping),)


def _permit_from_the_answer() -> tuple[Swap, ...]:
    right = Session._renew

    def generous(self: Session, seq: int) -> None:
        if seq in self._beats:
            self._beats[seq] = self._desk.clock.boot_s()
        right(self, seq)

    return ((Session, "_renew", generous),)


def _no_permit() -> tuple[Swap, ...]:
    return ((fencing.Fence, "permits_start", lambda _self, _now_s: True),)


def _no_order_check() -> tuple[Swap, ...]:
    """hostd takes every order for the newest, whatever it has promised before."""
    right = fencing.accept

    def trusting(_row: object, order: Order) -> Any:
        return right(None, order)

    return ((fencing, "accept", trusting), (fencing, "is_newest", lambda _row, _order: True))


def _start_after_error() -> tuple[Swap, ...]:
    """A start that has failed is reported, and tried again all the same."""
    right = reconcile.after_failure

    def stubborn(goal: Any, effort: Any, step: Any, fault: Any, **named: Any) -> Any:
        after, told = right(goal, effort, step, fault, **named)
        if not isinstance(step, Start) or told is None:
            return after, told
        return replace(effort, retry_s=named["now_s"] + 0.5), told

    settle = worker.Worker._settle

    def unsettled(self: worker.Worker, order: Order, settled: Settled) -> None:
        settle(self, order, settled)
        if settled.state is HostState.ERROR and order.want is Want.RUN:
            self.settled = None

    return ((reconcile, "after_failure", stubborn), (worker.Worker, "_settle", unsettled))


def _autostart() -> tuple[Swap, ...]:
    """A machine that comes back starts what ran when it went."""
    lose, restore = FakeMachine.lose_power, FakeMachine.restore_power
    ran: dict[int, list[str]] = {}

    def remember(self: FakeMachine) -> None:
        ran[id(self)] = sorted(self.running())
        lose(self)

    def autostart(self: FakeMachine) -> None:
        restore(self)
        for instance_id in ran.pop(id(self), ()):
            if instance_id in self.domains:
                self.start(instance_id)

    return ((FakeMachine, "lose_power", remember), (FakeMachine, "restore_power", autostart))


def _told_once() -> tuple[Swap, ...]:
    """Statuses are forgotten as they are sent, acknowledged or not."""
    right = Outbox.due

    def once(self: Outbox, now_s: float) -> Any:
        out = right(self, now_s)
        self._statuses.clear()
        return out

    return ((Outbox, "due", once),)


# ---------------------------------------------------------------------- all of them

MUTANTS: Final = (
    Mutant(
        name="quota_without_compare",
        without="creates compare the project's quota",
        within=400,
        swaps=_quota_without_compare,
    ),
    Mutant(
        name="no_request_record",
        without="the answer to a request_id is written with its effect",
        within=20,
        swaps=_no_request_record,
    ),
    Mutant(
        name="claim_without_use_compare",
        without="claims compare what is claimed of the host",
        within=60,
        swaps=committing(scheduler_cell, keys.USE.under()),
    ),
    Mutant(
        name="claim_without_instance_absent",
        without="claims compare that the server has no record",
        within=60,
        swaps=committing(scheduler_cell, keys.INSTANCE.under()),
    ),
    Mutant(
        name="claim_without_over_absent",
        without="claims compare that the server is not over (`over/`)",
        within=1000,
        swaps=committing(scheduler_cell, keys.OVER.under()),
    ),
    Mutant(
        name="claim_without_session_compare",
        without="claims compare the host's session (R8)",
        within=0,
        upheld_by="a scheduler claims only while its picture of the cell is fresh",
        swaps=committing(scheduler_cell, keys.SESSION.under(), keys.HOST.under()),
    ),
    Mutant(
        name="refund_before_confirmed",
        without="a charge is given back when the host has confirmed the end, not when it was asked for",
        within=20,
        swaps=_refund_before_confirmed,
    ),
    Mutant(
        name="refund_without_compare",
        without="a refund compares the server's location and the quota",
        within=300,
        swaps=_refund_twice,
    ),
    Mutant(
        name="no_session_fence",
        without="statuses are written under the host's session (R1)",
        within=0,
        upheld_by="who takes over hears the same word again; an older word is of an older generation",
        swaps=_no_session_fence,
    ),
    Mutant(
        name="no_placement_check",
        without="a host's word is of its own placement",
        within=0,
        upheld_by="what moves a placement raises the generation: an old placement's word is old by that too",
        swaps=_believing(lifecycle.Refused.NOT_YOURS),
    ),
    Mutant(
        name="no_generation_check",
        without="a host's word is of the newest intent",
        within=60,
        swaps=_believing(lifecycle.Refused.STALE),
    ),
    Mutant(
        name="no_transition_table",
        without="a host may only say what the table allows (R9)",
        within=0,
        upheld_by="an honest host says nothing that the table forbids (tests/unit/conductor/test_hostile.py)",
        swaps=_believing(lifecycle.Refused.ILLEGAL),
    ),
    Mutant(
        name="move_without_tombstone",
        without="a placement that is left leaves a tombstone",
        within=60,
        swaps=_move_without_tombstone,
    ),
    Mutant(
        name="move_without_room",
        without="a move claims only what the next host has",
        within=150,
        swaps=_move_without_room,
    ),
    Mutant(
        name="move_from_the_silent",
        without="only a host's own word leads to a move",
        within=300,
        swaps=_move_from_the_silent,
    ),
    Mutant(
        name="acknowledge_before_writing",
        without="a status is acknowledged when it is written",
        within=150,
        swaps=_acknowledge_before_writing,
    ),
    Mutant(
        name="up_before_released",
        without="a host is UP only when it has let go of what it must (R8)",
        within=150,
        swaps=_up_before_released,
    ),
    Mutant(
        name="beats_without_proof",
        without="a beat is acknowledged on proof that the session stands (R5)",
        within=0,
        upheld_by="nothing is moved from a host that is declared dead yet: it starts what is its own",
        swaps=_beats_acknowledged_without_proof,
    ),
    Mutant(
        name="no_relist",
        without="a watch over compacted history lists again",
        within=0,
        upheld_by="everything is told again every resync, and pictures are read anew",
        swaps=lambda: _no_second_look(also_resync=False, also_reread=False),
    ),
    Mutant(
        name="no_relist_no_resync_no_reread",
        without="a watch over compacted history lists again, and hosts are told everything now and then",
        within=300,
        swaps=lambda: _no_second_look(also_resync=True, also_reread=True),
    ),
    Mutant(
        name="delete_by_absence",
        without="nothing is destroyed because it is missing from a list (R4)",
        within=0,
        upheld_by="snapshots are read in a transaction, and what comes before the first waits for it",
        swaps=_delete_by_absence,
    ),
    Mutant(
        name="permit_from_the_answer",
        without="a permit counts from when the beat was sent (R5)",
        within=0,
        upheld_by="an answer old enough to matter finds its session over: silence ends it after 10 s",
        swaps=_permit_from_the_answer,
    ),
    *MOVE_MUTANTS,
    *VOLUME_MUTANTS,
    *PORT_MUTANTS,
    Mutant(
        name="no_permit", without="guests are started under a permit only (R5)", within=60, swaps=_no_permit
    ),
    Mutant(
        name="no_order_check",
        without="hostd refuses orders that are not newer (R2)",
        within=60,
        swaps=_no_order_check,
    ),
    Mutant(
        name="start_after_error",
        without="what a host has given up on it does not start any more",
        within=150,
        swaps=_start_after_error,
    ),
    Mutant(
        name="autostart",
        without="nothing starts by itself after a power loss (R5)",
        within=60,
        swaps=_autostart,
    ),
    Mutant(
        name="told_once",
        without="a host repeats what is not acknowledged",
        within=60,
        swaps=_told_once,
    ),
)

BY_NAME: Final[Mapping[str, Mutant]] = {each.name: each for each in MUTANTS}


def main(arguments: list[str]) -> int:
    """Hunt mutants; the exit code is 1 when one that should be found is not."""
    most = int(arguments[0]) if arguments else None
    survivors = 0
    for name in arguments[1:] or [each.name for each in MUTANTS if most or each.within]:
        mutant = BY_NAME[name]
        found = hunt(mutant, most=most)
        if found is None:
            survivors += mutant.within > 0
            print(f"{name}: NOT FOUND in {most or mutant.within} schedules", flush=True)
        else:
            print(f"{name}: {found[0]} schedules: {found[1]}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
