"""The life of one host's session, from its hello to its end.

One task reads what the host says, one writes what is said to it, and a few keep what must go on: the lease, the barrier before UP, the
re-telling, the report. What is decided is decided in `core`; what is written for the host goes through `Writer` or compares the session
(R1). Nothing here survives the session but what is in the store.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.core import fence, guard, permit
from fabric.conductor.core.draft import Draft
from fabric.conductor.core.flow import Outcome, Verdict
from fabric.conductor.plans import Plans, PlanTelling
from fabric.conductor.proofs import Prover
from fabric.conductor.quarantine import Quarantines, Reputation
from fabric.conductor.questions import Questions
from fabric.conductor.reporter import Reporter
from fabric.conductor.settings import ConductorSettings
from fabric.conductor.telling import Change, Telling
from fabric.conductor.tunnels import Tunnels
from fabric.conductor.upkeep import Upkeep, orders_of
from fabric.conductor.writer import Word, Writer
from fabric.deadlines import within
from fabric.errors import FabricError, InvalidRequest, NotFound, Unavailable
from fabric.ids import Ids
from fabric.model.host import Host, Session, SessionState
from fabric.model.network_plan import PlanState
from fabric.model.session import (
    Beat,
    BeatAck,
    ConsoleLog,
    Diagnostics,
    FromHost,
    Goodbye,
    Granted,
    Hello,
    Inventory,
    PasswordSet,
    PlanFollowed,
    Progress,
    ReleaseAck,
    Released,
    Report,
    Status,
    StatusAck,
    TunnelRefused,
)
from fabric.rpc.session_codec import pack_from_conductor, unpack_from_host
from fabric.rpc.stream import Stream, StreamClosed
from fabric.store.base import Committed, Lease, Store, Txn
from fabric.store.codec import encode
from fabric.store.keys import ALIVE, HOST, SESSION

log = structlog.get_logger()

STRAYS_AGAIN_S: Final = 60.0
"""A host whose strays change all the time fills no log with them."""

STRAYS_NAMED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every session of a conductor shares."""

    settings: ConductorSettings
    store: Store
    clock: Clock
    ids: Ids
    jitter: Callable[[], float]
    writer: Writer
    prover: Prover
    upkeep: Upkeep
    reporter: Reporter
    reputation: Reputation
    quarantines: Quarantines
    plans: Plans | None = None


class HostSession:
    """See the module. Made when a host's stream is accepted; `run` is its whole life."""

    def __init__(self, around: Surroundings, host: str, cert_serial: str, stream: Stream) -> None:
        self.host = host
        self.epoch = 0
        self.progress: dict[str, str] = {}
        self._around = around
        self._cert_serial = cert_serial
        self._stream = stream
        self._telling = Telling(
            host,
            on_full=lambda: self.end("too slow: everything will be told anew", retry_after_ms=1000),
        )
        self.questions = Questions(host, ask=self._telling.say, patience_s=around.settings.console_s)
        self.tunnels = Tunnels(self.questions, self._strike)
        # None until the host has said that it follows plans.
        self._plans: PlanTelling | None = None
        self._over = asyncio.Event()
        self._farewell = Goodbye(reason="")
        self._proof_boot_s = float("-inf")
        self._beat: Beat | None = None
        self._allowance = guard.Allowance()
        self._shed = guard.Lines()
        self._faults = guard.Lines()
        self._refused = guard.Lines()
        self._inventory: Inventory | None = None
        self._strays: frozenset[str] = frozenset()
        self._strays_told_s = float("-inf")
        self._state = SessionState.JOIN
        self._settle = asyncio.Event()

    # ------------------------------------------------------------------ from outside

    def end(self, reason: str, *, retry_after_ms: int = 0) -> None:
        """End the session soon, telling the host why. The first reason counts."""
        if not self._over.is_set():
            self._farewell = Goodbye(reason=reason, retry_after_ms=retry_after_ms)
            self._over.set()

    def changed(self, change: Change) -> None:
        """An assignment or tombstone of this host is new."""
        self._telling.changed(change)

    def release_confirmed(self) -> None:
        """A tombstone of this host is gone: perhaps it was the last."""
        self._settle.set()

    def inventory_changed(self, host: Host | None) -> None:
        """What the admin approved has changed: another certificate ends the session at once, anything else may move UP or DRAIN."""
        if host is None or host.cert_serial != self._cert_serial:
            self.end("this host is not approved with this certificate", retry_after_ms=30_000)
        else:
            self._settle.set()
            self.plan_changed()

    def plan_changed(self) -> None:
        """What the host must have of tenant networks may be something else."""
        if self._plans is not None:
            self._plans.changed()

    def plan_state(self) -> PlanState | None:
        """How far the host has got with its plans; None where it is told none."""
        return None if self._plans is None else self._plans.state()

    def session_changed(self, session: Session | None, revision: int) -> None:
        """The fence has moved; perhaps not by us."""
        if self.epoch and revision > self._telling.revision and not fence.holds(session, self.epoch):
            self.lost("its session has gone to another conductor, or was ended")

    def proved(self, sent_boot_s: float) -> None:
        """The store knew the session when this read was sent."""
        self._proof_boot_s = max(self._proof_boot_s, sent_boot_s)
        self._acknowledge()

    def lost(self, why: str) -> None:
        """The session is not ours any more."""
        self.end(why)

    def answer(self, word: Word, outcome: Outcome) -> None:
        """What became of the host's word."""
        if outcome.verdict is Verdict.LOST:
            self.lost("its session has gone to another conductor, or was ended")
            return
        is_accepted = outcome.verdict is Verdict.ACCEPTED
        if not is_accepted:
            self._refused, count = self._refused.one_more(self._around.clock.boot_s())
            if count:
                log.info(
                    "host.refused", host=self.host, instance=word.instance_id, why=outcome.why, words=count
                )
        if isinstance(word, Released):
            if is_accepted:
                self._telling.say(
                    ReleaseAck(instance_id=word.instance_id, placement_epoch=word.placement_epoch)
                )
                self._settle.set()
            return
        if is_accepted:
            self.progress.pop(word.instance_id, None)
        self._telling.say(
            StatusAck(
                instance_id=word.instance_id,
                placement_epoch=word.placement_epoch,
                generation=word.generation,
                action_seq=word.action_seq,
                state=word.state,
                accepted=is_accepted,
            )
        )

    def is_by(self, cert_serial: str) -> bool:
        """Whether this is the session of the host with that certificate."""
        return self._cert_serial == cert_serial

    # ------------------------------------------------------------------ its life

    async def run(self, on_granted: Callable[[], None]) -> None:
        """Serve the host until either side ends it. `on_granted` is called once the epoch is the host's."""
        try:
            lease = await self._open()
            if lease is not None:
                on_granted()
                log.info("session.granted", host=self.host, epoch=self.epoch)
                await self._serve(lease)
        except StreamClosed:
            self.end("the stream is closed")
        finally:
            self._around.writer.forget(self)
            self._around.prover.forget(self)
            self.questions.fail()
            self.tunnels.lost.set()
            log.info("session.over", host=self.host, epoch=self.epoch, why=self._farewell.reason)
            await self._part()

    async def _serve(self, lease: Lease) -> None:
        lives: tuple[Callable[[], Awaitable[None]], ...] = (
            self._listen,
            self._speak,
            functools.partial(self._stay_alive, lease),
            self._come_up,
            self._tell_again,
            *(() if self._plans is None else (self._plans.run,)),
        )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._until_over(life)) for life in lives]
            await self._over.wait()
            for task in tasks:
                task.cancel()

    async def _until_over(self, life: Callable[[], Awaitable[None]]) -> None:
        try:
            await life()
        except StreamClosed:
            self.end("the stream is closed")
        except FabricError as broken:
            log.error("session.broken", host=self.host, error=type(broken).__name__, why=broken.message)
            self.end("the conductor has failed", retry_after_ms=5000)

    async def _part(self) -> None:
        try:
            async with within(1.0):
                await self._stream.send(pack_from_conductor(self._farewell))
        except (StreamClosed, TimeoutError):
            pass  # the host finds out by itself
        finally:
            await self._stream.close()

    # ------------------------------------------------------------------ opening

    async def _open(self) -> Lease | None:
        """Hear the hello and grant the session; None when the host is not let in."""
        wait_ms = self._around.reputation.must_wait_ms(self.host)
        if wait_ms:
            self.end("too many sessions, or too many bad messages", retry_after_ms=wait_ms)
            return None
        hello = await self._hello()
        if hello is None:
            return None
        try:
            return await self._join(hello)
        except FabricError as away:
            log.warning("session.not_granted", host=self.host, error=type(away).__name__, why=away.message)
            self.end("the cell's store cannot be reached", retry_after_ms=1000)
            return None

    async def _hello(self) -> Hello | None:
        try:
            async with within(self._around.settings.hello_s):
                data = await self._stream.receive()
        except TimeoutError:
            self.end("said no hello")
            return None
        hello = self._understood(data)
        if isinstance(hello, Hello):
            return hello
        if hello is not None:
            self._strike("message must begin with a hello")
        self.end("said no proper hello", retry_after_ms=5000)
        return None

    async def _join(self, hello: Hello) -> Lease | None:
        around = self._around
        lease: Lease | None = None
        while True:
            sent_boot_s = around.clock.boot_s()
            draft = Draft(await records.read(around.store, fence.join_reads(self.host)))
            is_duel = fence.is_another_machine(draft.get(SESSION, self.host), hello)
            if is_duel and around.reputation.is_one_duel_too_many(self.host):
                self._shun("two machines use this host's certificate at once")
                return None
            joined = fence.join(
                draft,
                self.host,
                hello,
                cert_serial=self._cert_serial,
                conductor=around.settings.endpoint,
                now_ms=around.clock.now_ms(),
                op_id=around.ids.new_id(),
            )
            inventory = draft.get(HOST, self.host)
            if isinstance(joined, fence.No) or inventory is None:
                refusal = joined if isinstance(joined, fence.No) else fence.No("unknown host")
                self.end(refusal.reason, retry_after_ms=refusal.retry_after_ms)
                return None
            # Only now: who is not let in must not cost the store a write.
            lease = lease or await around.store.grant(around.settings.lease_s)
            outcome = await around.store.commit(self._join_txn(draft, joined, lease))
            if isinstance(outcome, Committed):
                break
        self.epoch = self._telling.epoch = joined.epoch
        around.reputation.joined(self.host, is_duel=is_duel)
        self._proof_boot_s = sent_boot_s
        self._telling.say(
            Granted(
                epoch=self.epoch,
                permit_ms=int(around.settings.permit_s * 1000),
                host=self.host,
                guest_cidr=inventory.guest_cidr,
                zone=inventory.zone,
            )
        )
        if around.plans is not None and hello.follows_plans:
            # Before the orders: what they want to be plugged is filtered by it.
            self._plans = PlanTelling(around.plans, self.host, self._telling.say)
            self._plans.begin(self.epoch)
        self._telling.everything(outcome.read, outcome.revision)
        return lease

    def _join_txn(self, draft: Draft, joined: Session, lease: Lease) -> Txn:
        """The one transaction that grants: what the host is to do is read inside it (R11)."""
        fenced, alive = records.transaction(draft), ALIVE.at(self.host)
        return Txn(
            unchanged=fenced.unchanged,
            put={**fenced.put, alive: encode(str(joined.epoch))},
            leases={alive: lease.id},
            read_prefixes=orders_of(self.host),
        )

    # ------------------------------------------------------------------ speaking

    async def _speak(self) -> None:
        while True:
            await self._stream.send(await self._telling.next())

    async def _tell_again(self) -> None:
        """Say everything again now and then: nothing may hang on a watch's delivery, or on what a host has kept (level trigger)."""
        around = self._around
        while True:
            await asyncio.sleep(around.settings.resync_s * (0.75 + 0.5 * around.jitter()))
            sent_boot_s = around.clock.boot_s()
            try:
                found = await around.upkeep.orders(self.host, self.epoch)
            except Unavailable:
                continue
            if found is None:
                self.lost("its session has gone to another conductor, or was ended")
                return
            self.proved(sent_boot_s)
            self._telling.everything(found, found.revision)
            self._settle.set()
            self.plan_changed()

    # ------------------------------------------------------------------ listening

    async def _listen(self) -> None:
        while True:
            try:
                async with within(self._around.settings.silence_s):
                    data = await self._stream.receive()
            except TimeoutError:
                self.end("silent for too long")
                return
            message = self._understood(data)
            if message is not None:
                self._hear(message)
            # A host with a full pipe would never let anybody else run.
            await asyncio.sleep(0)

    def _understood(self, data: bytes) -> FromHost | None:
        """The message, if it is well formed; else a strike."""
        try:
            message = unpack_from_host(data)
        except InvalidRequest as malformed:
            self._strike(f"message {malformed.message}")
            return None
        if self.epoch and guard.epoch_of(message) not in {None, self.epoch}:
            return None  # late, from an earlier session: neither right nor wrong (R1)
        wrong = guard.breach(message)
        if wrong is not None:
            self._strike(str(wrong))
            return None
        return message

    def _strike(self, rule: str) -> None:
        log.warning("guard.refused", host=self.host, epoch=self.epoch, rule=rule)
        if self._around.reputation.is_out(self.host, self._cert_serial):
            self._shun(f"sent {guard.STRIKES_LIMIT} bad messages within a minute, the last: {rule}")

    def _shun(self, why: str) -> None:
        # Written by the conductor, not by this session: hanging up must not save a host from it.
        self._around.quarantines.put(self.host, self._cert_serial, why)
        self.end("quarantined: " + why, retry_after_ms=60_000)

    def _hear(self, message: FromHost) -> None:
        match message:
            case Hello():
                self._strike("a session has one hello")
            case Beat():
                self._beat = message
                self._acknowledge()
                if permit.wants_proof(self._proof_boot_s, self._around.clock.boot_s()):
                    self._around.prover.want(self)
            case Status() | Released():
                self._take(message)
            case Report():
                self._around.reporter.tell(self.host, self.epoch, message)
            case ConsoleLog() | Diagnostics() | PasswordSet() | TunnelRefused():
                self.questions.answered(message)
            case Progress():
                if self._telling.placements.get(message.instance_id) == message.placement_epoch:
                    self.progress[message.instance_id] = f"{message.step} {message.percent} %"
            case Inventory():
                self._name_strays(message)
                self._inventory = message
                self._settle.set()
            case PlanFollowed():
                if self._plans is None or not self._plans.heard(message):
                    self._strike("plan_followed names a plan that was never told")

    def _name_strays(self, told: Inventory) -> None:
        """Say what runs on the host and is none of ours (R4): its own log is on the machine that is not trusted. Now and then at most."""
        now_s = self._around.clock.boot_s()
        if set(told.strays) <= self._strays or now_s - self._strays_told_s < STRAYS_AGAIN_S:
            return
        self._strays, self._strays_told_s = frozenset(told.strays), now_s
        log.warning(
            "host.strays", host=self.host, count=len(told.strays), names=list(told.strays[:STRAYS_NAMED])
        )

    def _acknowledge(self) -> None:
        """Answer the latest beat, if the store has lately said that the session is ours (R5)."""
        if self._beat is not None and permit.may_acknowledge(self._proof_boot_s, self._around.clock.boot_s()):
            self._telling.say(BeatAck(seq=self._beat.seq, epoch=self.epoch))
            self._beat = None

    def _take(self, word: Word) -> None:
        self._allowance, is_within = self._allowance.spend(self._around.clock.boot_s())
        if not is_within or not self._around.writer.submit(self, word):
            self._shed, count = self._shed.one_more(self._around.clock.boot_s())
            if count:
                log.info("host.shed", host=self.host, instance=word.instance_id, words=count)
            return
        if isinstance(word, Status) and word.fault_code:
            self._faults, count = self._faults.one_more(self._around.clock.boot_s())
            if count:
                log.info(
                    "host.fault",
                    host=self.host,
                    instance=word.instance_id,
                    code=word.fault_code,
                    words=word.fault_message,
                    faults=count,
                )

    # ------------------------------------------------------------------ what goes on

    async def _stay_alive(self, lease: Lease) -> None:
        """Keep the lease under `alive`; one that was lost while the session was not is replaced."""
        around = self._around
        while True:
            await around.store.keep_alive(lease)
            try:
                renewed = await around.upkeep.alive_again(self.host, self.epoch, around.settings.lease_s)
            except (Unavailable, NotFound):
                await asyncio.sleep(0.2 + 0.8 * around.jitter())
                continue
            if renewed is None:
                self.lost("its session has gone to another conductor, or was ended")
                return
            lease = renewed

    async def _come_up(self) -> None:
        """Lift the barrier when the host has said what it holds and has forgotten what it must (R8); follow the admin from then on."""
        around = self._around
        while True:
            await self._settle.wait()
            self._settle.clear()
            if self._inventory is None:
                continue
            try:
                state = await around.upkeep.settle_in(self.host, self.epoch)
            except Unavailable:
                await asyncio.sleep(0.2 + 0.8 * around.jitter())
                self._settle.set()
                continue
            if state is None:
                self.lost("its session has gone to another conductor, or was ended")
                return
            if state is not self._state:
                self._state = state
                log.info("session.state", host=self.host, epoch=self.epoch, state=state.name)
