"""The builds of one cell, on their way to a host: decide, claim, and deal with whatever came in between.

One worker per cell, each with its own tasks: a cell whose store hangs holds up nobody else's builds. Within a cell one transaction
is under way at a time, and what arrives meanwhile is taken together with the next: alone, a build is claimed at once; under
load, batches form by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog

from fabric.deadlines import within
from fabric.errors import FabricError, Unavailable
from fabric.model.host import Host, Session, Use
from fabric.model.instance import Assignment, Build, Instance, Location, Over, Refund
from fabric.model.placement import Decision
from fabric.scheduler.boot_volumes import BootVolumes, Roots
from fabric.scheduler.commits import commit, read, seen
from fabric.scheduler.core import saga
from fabric.scheduler.core.ask import ask_of
from fabric.scheduler.core.boot_volumes import VOLUME_UNAVAILABLE, asked, unavailable
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.claim import Chosen, claim, never_placed
from fabric.scheduler.core.picture import HostPicture, HostRow, Seen
from fabric.scheduler.core.place import Wanted, decide
from fabric.scheduler.ports import Ports
from fabric.scheduler.removal import Removal
from fabric.store import keys
from fabric.store.base import Committed, Refused, Snapshot, Store

log = structlog.get_logger()


@dataclass(slots=True)
class Pending:
    """A build that is here, since when, and how far it has got. `bytes` is the size of its record."""

    build: Build
    revision: int
    bytes: int
    since_s: float
    failures: int = 0
    not_before_s: float = 0.0
    is_done: bool = False

    @property
    def id(self) -> str:
        return self.build.instance_id

    @property
    def key(self) -> str:
        return keys.BUILD.at(self.build.cell, self.build.instance_id)


@dataclass(frozen=True, slots=True)
class Round:
    """What a claim came to: who is left to be decided again, and whether all went as decided."""

    left: list[Pending]
    is_as_decided: bool


class CellBuilds:
    """Places the builds of one cell. `offer` and `withdraw` say which there are; `run` does the work."""

    def __init__(
        self,
        cell: str,
        store: Store,
        global_store: Store,
        hosts: HostPicture,
        removal: Removal,
        ports: Ports,
        *,
        is_fresh: Callable[[], bool],
        on_trouble: Callable[[], None],
    ) -> None:
        self._cell, self._store, self._global = cell, store, global_store
        self._hosts, self._removal = hosts, removal
        self._ports, self._settings, self._clock, self._ids = ports, ports.settings, ports.clock, ports.ids
        self._is_fresh, self._on_trouble = is_fresh, on_trouble
        self._volumes = BootVolumes(cell, store, global_store, ports)
        self._pending: dict[str, Pending] = {}
        self._news = asyncio.Event()

    def offer(self, build: Build, revision: int, size: int) -> None:
        """There is such a build, or it has changed."""
        known = self._pending.get(build.instance_id)
        if known is None or known.revision < revision:
            self._pending[build.instance_id] = Pending(build, revision, size, self._clock.boot_s())
            self._news.set()

    def withdraw(self, instance_id: str) -> None:
        """The build is gone."""
        self._pending.pop(instance_id, None)

    def wake(self) -> None:
        """Look again at what is due: the cell may be reachable now."""
        self._news.set()

    def building(self) -> frozenset[str]:
        """Whose builds are here."""
        return frozenset(self._pending)

    async def run(self) -> None:
        """Place what is offered, for ever."""
        while True:
            due = self._due()
            if not due:
                await self._rest()
                continue
            if await self._served(due) or len(due) == 1:
                continue
            # One of them is broken. Each by itself, so that it holds up no other.
            for each in due:
                await self._served([each])

    async def _served(self, due: Sequence[Pending]) -> bool:
        """Serve these; False when one of them breaks a rule of ours, which none of them is to be delayed for but itself."""
        try:
            await self._serve(due)
        except Unavailable as away:
            log.warning("builds.delayed", cell=self._cell, builds=len(due), why=away.message)
        except FabricError as broken:
            log.error(
                "build.broken", cell=self._cell, instances=[each.id for each in due], why=broken.message
            )
            if len(due) > 1:
                return False
        else:
            return True
        for each in due:
            self._later(each)
        return True

    # ------------------------------------------------------------------ when

    @property
    def _is_open(self) -> bool:
        """Whether the cell can be worked in: known to be reachable, and asked just now, for this process may have slept since."""
        return self._hosts.is_reachable(self._cell) and self._is_fresh()

    def _due(self) -> list[Pending]:
        """Builds to look at now, oldest first."""
        if not self._is_open:
            return []
        now_s = self._clock.boot_s()
        due = [each for each in self._pending.values() if not each.is_done and each.not_before_s <= now_s]
        due.sort(key=lambda each: (each.build.create_time_ms, each.id))
        return due[: self._settings.batch_builds]

    async def _rest(self) -> None:
        """Sleep until there is news, or something is due again."""
        self._news.clear()
        waiting = [each.not_before_s for each in self._pending.values() if not each.is_done]
        longest_s = self._settings.longest_backoff_s
        if waiting and self._is_open:
            longest_s = min(longest_s, max(0.0, min(waiting) - self._clock.boot_s()))
        elif waiting:
            longest_s = min(longest_s, self._settings.backoff_s)
        try:
            async with within(longest_s):
                await self._news.wait()
        except TimeoutError:
            return

    def _later(self, each: Pending) -> None:
        """Look at it again after a while, longer each time, and not when everybody else does."""
        if not each.is_done:
            pause_s = min(
                self._settings.backoff_s * 2 ** min(each.failures, 10), self._settings.longest_backoff_s
            )
            each.failures += 1
            each.not_before_s = self._clock.boot_s() + self._ports.jittered_s(pause_s)

    def _done(self, each: Pending) -> None:
        """Nothing is left to do for it but to take it away."""
        each.is_done = True
        self._removal.remove(each.key, each.revision)

    # ------------------------------------------------------------------ what

    async def _serve(self, due: Sequence[Pending]) -> None:
        now_ms = self._clock.now_ms()
        turns = [(each, saga.turn(each.build, now_ms=now_ms, settings=self._settings)) for each in due]
        homeless = await self._place([each for each, turn in turns if turn is saga.Turn.PLACE])
        is_any_moving = any(decision.host for _, decision in homeless)
        for each, decision in homeless:
            await self._without_room(each, decision, is_provisional=is_any_moving)
        for each, turn in turns:
            if turn is saga.Turn.CANCEL:
                await self._cancel(each)
            elif turn is saga.Turn.EXPIRE:
                await self._fail(
                    each, saga.BUILD_TIMEOUT, "no host was found in time: the server's cell was away", None
                )

    async def _place(self, builds: Sequence[Pending]) -> list[tuple[Pending, Decision]]:
        """Claim hosts in this cell; returns whom it has no room for, with the decision over all cells."""
        left = list(builds)
        for _ in range(self._settings.tries):
            if not self._is_open:
                # Lost meanwhile: its hosts would look full, and the builds be sent away for nothing.
                break
            roots = await self._roots(left)
            left = [each for each in left if await self._has_its_volume(each, roots)]
            chosen, homeless = self._decide(left, roots)
            if not chosen:
                return homeless
            bound = [each for each in chosen if await self._is_bound(each[0], roots)]
            rounds = [await self._claim(chunk, roots) for chunk in self._chunks(bound)]
            if len(bound) == len(chosen) and all(each.is_as_decided for each in rounds):
                return homeless
            # Whoever found no room counted on those claims; they went otherwise, and some of them may have left room.
            left = [*(each for lost in rounds for each in lost.left), *(each for each, _ in homeless)]
        for each in left:
            log.info("claim.put_off", cell=self._cell, instance=each.id)
            self._later(each)
        return []

    async def _roots(self, builds: Sequence[Pending]) -> Roots:
        """The volumes of those that boot from one; none while they cannot be read, which holds up nobody else."""
        try:
            return await self._volumes.look(each.build for each in builds)
        except Unavailable as away:
            log.info("volumes.unread", cell=self._cell, why=away.message)
            return {}

    async def _has_its_volume(self, each: Pending, roots: Roots) -> bool:
        """Whether it may go on: it boots from an image, or from a volume that can be had. Where that cannot, the server ends in ERROR."""
        if each.build.request.guest.root_volume is None:
            return True
        root = roots.get(each.id)
        why = "" if root is None else unavailable(root, self._cell)
        if root is None:
            self._later(each)
        elif why:
            await self._fail(each, VOLUME_UNAVAILABLE, why, None)
        return root is not None and not why

    async def _is_bound(self, each: Pending, roots: Roots) -> bool:
        """Whether the volume that it boots from, if it does, belongs to this cell now. Where it does not, it is looked at again later."""
        if each.id not in roots:
            return True
        try:
            is_bound = await self._volumes.bind(roots[each.id])
        except Unavailable:
            is_bound = False
        if not is_bound:
            self._later(each)
        return is_bound

    def _decide(
        self, builds: Sequence[Pending], roots: Roots
    ) -> tuple[list[tuple[Pending, Decision]], list[tuple[Pending, Decision]]]:
        """Decisions in this cell first; for those it has no room for, over every cell they have not left yet."""
        touched: dict[int, HostRow] = {}
        here = self._decisions(builds, self._cell, touched, roots)
        chosen = [(each, decision) for each, decision in here if decision.host]
        full = [each for each, decision in here if not decision.host]
        return chosen, self._decisions(full, "", touched, roots)

    def _decisions(
        self,
        builds: Sequence[Pending],
        cell: str,
        touched: dict[int, HostRow],
        roots: Roots,
        *,
        closed: tuple[str, ...] = (),
    ) -> list[tuple[Pending, Decision]]:
        wanted: list[Wanted] = []
        for each in builds:
            ask = ask_of(each.build.request, cell=cell, tried_cells=(*each.build.tried_cells, *closed))
            root = roots.get(each.id)
            wanted.append(Wanted(instance_id=each.id, ask=ask if root is None else asked(ask, root)))
        decisions = decide(
            self._hosts, wanted, self._settings.placement, now_ms=self._clock.now_ms(), touched=touched
        )
        return list(zip(builds, decisions, strict=True))

    def _chunks(self, chosen: Sequence[tuple[Pending, Decision]]) -> Iterator[list[tuple[Pending, Decision]]]:
        """Parts that fit into one transaction each. The request is written twice: in the record and in the order."""
        chunk: list[tuple[Pending, Decision]] = []
        size = 0
        for each, decision in chosen:
            wants = 2 * each.bytes + 2048
            if chunk and (len(chunk) >= self._settings.txn_builds or size + wants > self._settings.txn_bytes):
                yield chunk
                chunk, size = [], 0
            chunk.append((each, decision))
            size += wants
        if chunk:
            yield chunk

    # ------------------------------------------------------------------ claims

    async def _claim(self, chunk: Sequence[tuple[Pending, Decision]], roots: Roots) -> Round:
        """Claim these together; those that lost a race are to be decided again, on the facts that the refusal brought."""
        by_id = {each.id: each for each, _ in chunk}
        wanted = claim(
            self._hosts,
            self._cell,
            [Chosen(build=each.build, decision=decision) for each, decision in chunk],
            now_ms=self._clock.now_ms(),
            op_id=self._ids.new_id(),
            deadline_s=self._settings.claim_deadline_s,
            roots=roots,
        )
        lost = [by_id[build.instance_id] for build in wanted.left]
        if not wanted.claimed:
            return Round(lost, is_as_decided=False)
        tried = [by_id[build.instance_id] for build in wanted.claimed]
        try:
            outcome = await commit(self._store, wanted.change, timeout_s=self._settings.store_timeout_s)
        except Unavailable:
            # It may have been applied (R12): what is there now tells, and every compare keeps a second claim from adding to it.
            current = await self._read(*wanted.change.unchanged)
        else:
            if isinstance(outcome, Committed):
                for name, use in wanted.uses.items():
                    self._hosts.set_use(self._cell, name, Seen(use, outcome.revision, outcome.revision))
                await self._ports.failpoints.reach("scheduler.claim.committed")
                for each in tried:
                    log.info("claim.made", cell=self._cell, instance=each.id, revision=outcome.revision)
                    self._done(each)
                return Round(lost, is_as_decided=not lost)
            current = outcome.current
        self._learn(current, wanted.uses)
        return Round([*lost, *await self._settle(tried, current)], is_as_decided=False)

    def _learn(self, current: Snapshot, names: Mapping[str, Use]) -> None:
        """Take in what the refusal said of the hosts: it is newer than what the decision was made on."""
        for name in names:
            self._hosts.set_host(self._cell, name, seen(current, keys.HOST.at(name), Host))
            self._hosts.set_session(self._cell, name, seen(current, keys.SESSION.at(name), Session))
            self._hosts.set_use(self._cell, name, seen(current, keys.USE.at(name), Use))

    async def _settle(self, tried: Sequence[Pending], current: Snapshot) -> list[Pending]:
        """Sort out who was claimed already, or is over here; returns the others."""
        open_builds: list[Pending] = []
        for each in tried:
            if current.seen(keys.INSTANCE.at(each.id)):
                self._done(each)
            elif current.seen(keys.OVER.at(each.id)):
                await self._go_on(each, await self._traces(each))
            else:
                open_builds.append(each)
        return open_builds

    # ------------------------------------------------------------------ everything else

    async def _without_room(self, each: Pending, decision: Decision, *, is_provisional: bool) -> None:
        """The cell is full: leave it for another, wait, or end in ERROR."""
        waited_s = self._clock.boot_s() - each.since_s
        verdict = saga.without_room(
            each.build,
            decision,
            self._hosts,
            is_provisional=is_provisional,
            waited_s=waited_s,
            settings=self._settings,
        )
        if verdict is saga.Stay.FAIL:
            await self._fail(each, saga.NO_VALID_HOST, decision.explain(), decision)
        elif verdict is saga.Stay.WAIT:
            self._later(each)
        else:
            outcome = await self._commit(saga.leave(each.build, now_ms=self._clock.now_ms()))
            traces = None if isinstance(outcome, Committed) else await self._traces(each)
            if traces is None:
                await self._ports.failpoints.reach("scheduler.cell.left")
                await self._move(each)
            else:
                await self._go_on(each, traces)

    async def _fail(self, each: Pending, code: str, message: str, decision: Decision | None) -> None:
        """End the server in ERROR, with the reason in its record."""
        outcome = await self._commit(
            never_placed(
                each.build,
                fault_code=code,
                message=message,
                decision=decision,
                now_ms=self._clock.now_ms(),
                op_id=self._ids.new_id(),
            )
        )
        if isinstance(outcome, Committed):
            log.warning("build.failed", cell=self._cell, instance=each.id, fault=code, why=message)
            self._done(each)
        else:
            await self._go_on(each, await self._traces(each))

    async def _cancel(self, each: Pending) -> None:
        """End a server whose build was cancelled, wherever its claim has got to."""
        traces = await self._traces(each)
        assignment: Seen[Assignment] = Seen()
        if traces.instance.value is not None and traces.instance.value.host:
            key = keys.ASSIGNMENT.at(traces.instance.value.host, each.id)
            assignment = seen(await self._read(key), key, Assignment)
        change = saga.cancel(
            each.build, traces, assignment, now_ms=self._clock.now_ms(), op_id=self._ids.new_id()
        )
        if change is None or isinstance(await self._commit(change), Committed):
            log.info("build.cancelled", cell=self._cell, instance=each.id)
            self._done(each)
        else:
            self._later(each)

    async def _go_on(self, each: Pending, traces: saga.Traces) -> None:
        """Do what follows from what the cell knows of the server."""
        match saga.found(traces):
            case saga.Found.PLACED:
                self._done(each)
            case saga.Found.LEFT:
                await self._move(each)
            case saga.Found.ENDED | saga.Found.NOTHING:
                # The reconciler takes it away; or it has just changed again, and is looked at again.
                self._later(each)

    async def _move(self, each: Pending) -> None:
        """Send a server that has left this cell to another."""
        roots = await self._volumes.look([each.build])
        ((_, decision),) = self._decisions([each], "", {}, roots, closed=(self._cell,))
        target = saga.onwards(each.build, decision, self._hosts)
        if not isinstance(target, saga.Move):
            self._later(each)
            return
        location_key = keys.LOCATION.at(each.id)
        now = await read(self._global, location_key, each.key, timeout_s=self._settings.store_timeout_s)
        location = seen(now, location_key, Location)
        change = saga.move(
            Seen(each.build, each.revision, each.revision), location, target.cell, op_id=self._ids.new_id()
        )
        if change is None:
            # Its location went away with its charge, or it lives elsewhere already: a leftover either way.
            self._done(each)
            return
        outcome = await commit(self._global, change, timeout_s=self._settings.store_timeout_s)
        if isinstance(outcome, Committed):
            log.info("build.moved", instance=each.id, cell=self._cell, to_cell=target.cell)
            each.is_done = True
        else:
            self._later(each)

    # ------------------------------------------------------------------ the cell's store

    async def _traces(self, each: Pending) -> saga.Traces:
        instance, over, refund = (row.at(each.id) for row in (keys.INSTANCE, keys.OVER, keys.REFUND))
        now = await self._read(instance, over, refund)
        return saga.Traces(
            instance=seen(now, instance, Instance),
            over=seen(now, over, Over),
            refund=seen(now, refund, Refund),
        )

    async def _read(self, *wanted: str) -> Snapshot:
        try:
            return await read(self._store, *wanted, timeout_s=self._settings.store_timeout_s)
        except Unavailable:
            self._on_trouble()
            raise

    async def _commit(self, change: Change) -> Committed | Refused:
        try:
            return await commit(self._store, change, timeout_s=self._settings.store_timeout_s)
        except Unavailable:
            self._on_trouble()
            raise
