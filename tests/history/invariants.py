"""What may never happen, asserted event by event (the invariants of the failure model, by their numbers there).

- I1 one running domain for a server, cloud-wide, and a record that names one place
- I2 never over a host's capacity, and its claims equal its assignments
- I3 quota never over its limit, and equal to the servers charged
- I4 one request_id, one server
- I5 only transitions the lifecycle knows; I6 what was asked for never changes by what a host says; I15 generations never go back
- I8 nothing destroyed that its record still wants there, and no server that has run given an empty disk for its own
- I11 what was acknowledged is there; I12 reads after an acknowledged write see it
- I16 what was not acknowledged may have happened, or not
- R1 what a host said is written by the conductor that holds its session, and by no other
- R5 no guest starts on a host whose permit has run out: what will make it safe to start its servers elsewhere
- I1 again: what a host has given up on it does not start in that session, for it may be another host's by then
- V1 a volume has one server at most, as its own record and the server's say; V2 and is on its host; V3 what is in it is there until it is
  deleted
- P1 a port holds what its record says, and nothing more; P2 it is bound to the server whose index row names it, and to no other; P3 a
  server has only ports that are its own
- R8 nothing is placed on a host that is not UP, or is disabled; and none is UP that has not let go of what it must

I7, I9 and I10 are about the end of a run: `tests/history/settled.py`.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field

from fabric.model.host import Host, Resources, Session, SessionState, Use
from fabric.model.image import Image
from fabric.model.instance import Assignment, Instance, Location, OneShot, Tombstone
from fabric.model.network import NO_SLOT
from fabric.model.quota import Charge, Quota
from fabric.model.states import TaskState, VmState, Want
from fabric.model.volume import VolumeEntry
from fabric.store import codec
from tests.history import moves, ports, volumes
from tests.history.events import (
    Called,
    Destroyed,
    Event,
    Made,
    PowerLost,
    Returned,
    Started,
    Stopped,
    VolumeMade,
    VolumeRemoved,
    Wrote,
)


class Violation(AssertionError):
    """Something happened that may never happen."""


GLOBAL = "global"

_NEXT: Mapping[VmState, str] = {
    VmState.BUILDING: "ACTIVE ERROR",
    VmState.ACTIVE: "STOPPED PAUSED SUSPENDED RESCUED RESIZED SHELVED SOFT_DELETED ERROR",
    VmState.STOPPED: "ACTIVE RESCUED RESIZED SHELVED SOFT_DELETED ERROR",
    VmState.PAUSED: "ACTIVE STOPPED SHELVED SOFT_DELETED ERROR",
    VmState.SUSPENDED: "ACTIVE STOPPED SHELVED SOFT_DELETED ERROR",
    VmState.RESCUED: "ACTIVE STOPPED SOFT_DELETED ERROR",
    VmState.RESIZED: "ACTIVE STOPPED ERROR",
    VmState.SHELVED: "ACTIVE SHELVED_OFFLOADED ERROR",
    VmState.SHELVED_OFFLOADED: "ACTIVE ERROR",
    VmState.SOFT_DELETED: "ACTIVE RESCUED ERROR",
    # What was given up may come about late: a suspend, too. One that failed where it was resized to is RESIZED while it is reverted.
    VmState.ERROR: "ACTIVE STOPPED SUSPENDED RESCUED RESIZED SOFT_DELETED",
}

_LEGAL_VM: frozenset[tuple[VmState | None, VmState | None]] = frozenset(
    {
        (None, VmState.BUILDING),
        (None, VmState.ERROR),
        *((state, None) for state in _NEXT),
        *((state, VmState[word]) for state, words in _NEXT.items() for word in words.split()),
    }
)
"""Written by hand from lifecycle.md, not from our table: a checker that reads what it checks would agree with any mistake."""


_LIVE = frozenset({SessionState.JOIN, SessionState.UP, SessionState.DRAIN})


@dataclass(slots=True)
class _Books:
    """One cell, added up as it changes."""

    hosts: dict[str, Host] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    uses: dict[str, Use] = field(default_factory=dict)
    assigned: dict[str, dict[str, Assignment]] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    tombstones: dict[tuple[str, str], int] = field(default_factory=dict)
    owed: dict[str, set[str]] = field(default_factory=dict)
    volumes: volumes.CellVolumes = field(default_factory=volumes.CellVolumes)


@dataclass(slots=True)
class _Run:
    host: str
    placement_epoch: int


class Checker:
    """Fed with events in order; raises Violation at the first that breaks an invariant.

    Writes of one revision belong together: they are checked as a whole when the next event (or `end_of_revision`) comes.

    Args:
        permit_s: how old a permit to start guests may get on a host (R5), with what a start itself may take.
        is_one_clock: whether events of different stores come in the order in which they happened. Told store by store, afterwards,
            what holds between stores cannot be judged.
    """

    def __init__(self, *, permit_s: float = float("inf"), is_one_clock: bool = False) -> None:
        self._permit_s = permit_s
        self._is_one_clock = is_one_clock
        self.cells: dict[str, _Books] = {}
        self.quotas: dict[str, Quota] = {}
        self.locations: dict[str, Location] = {}
        self.running: dict[str, _Run] = {}
        self.by_request: dict[tuple[str, str], str] = {}
        self.accepted: set[str] = set()
        self.deleting: set[str] = set()
        self.deleted: set[str] = set()
        self.restored: set[str] = set()
        """Asked to be brought back, or not kept because that failed: what was deleted softly may be there again."""
        self.keeps = False
        """Whether deleted servers are kept for a while in this world, and end by themselves within the time it is given to rest."""
        self._have_run: set[tuple[str, str, int]] = set()
        self._open: dict[int, Called] = {}
        self._pending: tuple[str, int] | None = None
        self._touched_hosts: set[tuple[str, str]] = set()
        self._touched_projects: set[str] = set()
        self._touched_instances: set[tuple[str, str]] = set()
        self.images: dict[str, Image] = {}
        self.volumes: dict[str, VolumeEntry] = {}
        self._touched_volumes: set[str] = set()
        self.ports = ports.Ports()

    def take(self, event: Event) -> None:
        """The next event. Raises Violation."""
        if not (isinstance(event, Wrote) and self._pending == (event.store, event.revision)):
            self.end_of_revision()
        match event:
            case Wrote():
                self._pending = (event.store, event.revision)
                self._wrote(event)
            case Started():
                self._started(event)
            case Stopped():
                if (run := self.running.get(event.instance_id)) is not None and run.host == event.host:
                    del self.running[event.instance_id]
            case Destroyed():
                self._destroyed(event)
            case Made(host, instance_id, placement_epoch):
                if (host, instance_id, placement_epoch) in self._have_run:
                    raise Violation(f"I8 {host} gave {instance_id}, which has run there, an empty disk")
            case VolumeMade(host, volume_id):
                self._accept(self._cell_with(host).volumes.was_made(host, volume_id))
            case VolumeRemoved(host, volume_id):
                self._accept(self._cell_with(host).volumes.was_removed(host, volume_id))
            case PowerLost():
                self.running = {each: run for each, run in self.running.items() if run.host != event.host}
            case Called():
                self._open[event.call] = event
                if event.method == "delete":
                    self.deleting.add(event.instance_id)
                if event.method == "restore":
                    self.restored.add(event.instance_id)
            case Returned():
                self._returned(event)

    def _cell_with(self, host: str) -> _Books:
        return next(books for books in self.cells.values() if host in books.hosts)

    @staticmethod
    def _accept(wrong: str | None) -> None:
        if wrong is not None:
            raise Violation(wrong)

    def end_of_revision(self) -> None:
        """Check what only has to hold when a whole revision has been seen."""
        self._pending = None
        for cell, host in self._touched_hosts:
            self._check_host(cell, host)
        for project in self._touched_projects:
            self._check_quota(project)
        for cell, instance_id in self._touched_instances:
            self._check_places(self.cells[cell], instance_id)
        for cell in self._touched_volumes:
            wrong = self.cells[cell].volumes.wrong(self.cells[cell].instances)
            if wrong is not None:
                raise Violation(wrong)
        wrong = self.ports.wrong(self.locations, self.records() if self._is_one_clock else None)
        if wrong is not None:
            raise Violation(wrong)
        self._touched_volumes.clear()
        self._touched_hosts.clear()
        self._touched_projects.clear()
        self._touched_instances.clear()

    # ---------------------------------------------------------------- stores

    def _wrote(self, event: Wrote) -> None:
        kind, _, rest = event.key.partition("/")
        if event.store == GLOBAL:
            self.ports.wrote(event.key, event.after)
            if kind == "quota":
                self._touched_projects.add(rest)
                if event.after is None:
                    raise Violation(f"I3 the quota of {rest} was removed")
                self.quotas[rest] = codec.decode(Quota, event.after)
            elif kind == "location":
                self._located(rest, event)
            elif kind == "volume":
                project, _, volume_id = rest.partition("/")
                self.volumes.pop(volume_id, None)
                if event.after is not None:
                    self.volumes[volume_id] = codec.decode(VolumeEntry, event.after)
                self._touched_projects.add(project)
            elif kind == "image":
                self.images.pop(rest, None)
                if event.after is not None:
                    self.images[rest] = codec.decode(Image, event.after)
            return
        books = self.cells.setdefault(event.store, _Books())
        if kind == "host" and event.after is not None:
            books.hosts[rest] = codec.decode(Host, event.after)
        elif kind == "session" and event.after is not None:
            self._joined(books, rest, codec.decode(Session, event.after))
        elif kind == "use":
            books.uses[rest] = codec.decode(Use, event.after) if event.after is not None else Use(host=rest)
            self._touched_hosts.add((event.store, rest))
        elif kind == "assignment":
            self._assigned(event.store, books, rest, event.after)
        elif kind == "tombstone":
            host, _, instance_id = rest.partition("/")
            if event.after is None:
                books.tombstones.pop((host, instance_id), None)
            else:
                books.tombstones[host, instance_id] = codec.decode(Tombstone, event.after).placement_epoch
            self._touched_instances.add((event.store, instance_id))
        elif kind == "volume":
            books.volumes.wrote(rest, event.after)
            self._touched_volumes.add(event.store)
        elif kind == "instance":
            self._instance(books, rest, event)
            self._touched_volumes.add(event.store)

    def records(self) -> Mapping[str, Instance]:
        """The servers of all cells."""
        return ChainMap(*(books.instances for books in self.cells.values()))

    def _located(self, instance_id: str, event: Wrote) -> None:
        before = self.locations.pop(instance_id, None)
        if event.after is None:
            for cell in self._cells_with(instance_id):
                raise Violation(f"I3 {instance_id} is charged no more, and still there in {cell}")
        else:
            self.locations[instance_id] = codec.decode(Location, event.after)
            self._touched_projects.add(self.locations[instance_id].project_id)
        if before is not None:
            self._touched_projects.add(before.project_id)

    def _cells_with(self, instance_id: str) -> list[str]:
        """The cells that have a record of the server, where that can be judged."""
        return [
            cell
            for cell, books in self.cells.items()
            if self._is_one_clock and instance_id in books.instances
        ]

    def _joined(self, books: _Books, host: str, session: Session) -> None:
        """The barrier is about what was to be let go of when the session began: what its host gives up in it is no news to anybody."""
        before = books.sessions.get(host)
        books.sessions[host] = session
        if session.state is SessionState.JOIN and (before is None or before.epoch != session.epoch):
            books.owed[host] = {each for of, each in books.tombstones if of == host}
        held = {each for each in books.owed.get(host, ()) if (host, each) in books.tombstones}
        if session.state is SessionState.UP and held:
            raise Violation(f"R8 {host} is UP, and is yet to let go of {', '.join(sorted(held))}")

    def _assigned(self, cell: str, books: _Books, rest: str, after: bytes | None) -> None:
        host, _, instance_id = rest.partition("/")
        of_host = books.assigned.setdefault(host, {})
        if after is not None and instance_id not in of_host:
            session, inventory = books.sessions.get(host), books.hosts.get(host)
            if session is not None and session.state is not SessionState.UP:
                raise Violation(f"R8 {instance_id} was placed on {host}, which is {session.state.name}")
            if inventory is not None and not inventory.enabled:
                raise Violation(f"R8 {instance_id} was placed on {host}, which is disabled")
        if after is None:
            of_host.pop(instance_id, None)
        else:
            of_host[instance_id] = codec.decode(Assignment, after)
        self._touched_hosts.add((cell, host))
        self._touched_instances.add((cell, instance_id))

    def _instance(self, books: _Books, instance_id: str, event: Wrote) -> None:
        before = books.instances.pop(instance_id, None)
        after = codec.decode(Instance, event.after) if event.after is not None else None
        self._touched_instances.add((event.store, instance_id))
        states = (before.vm_state if before else None, after.vm_state if after else None)
        if states[0] is not states[1] and states not in _LEGAL_VM:
            raise Violation(f"I5 {instance_id} went from {states[0]} to {states[1]}")
        if after is None:
            return
        books.instances[instance_id] = after
        self.ports.has_record(after)
        if before is None:
            cells = self._cells_with(instance_id)
            if len(cells) > 1:
                raise Violation(f"I1 {instance_id} has a record in {' and in '.join(cells)}")
            return
        if after.action.kind is OneShot.REBUILD and after.action.seq != before.action.seq:
            # Its owner has given the disk up: from here on it may be lost, until it has run on another.
            self._have_run.discard((after.host, instance_id, after.placement_epoch))
        if before.task is TaskState.SOFT_DELETING and after.vm_state is VmState.ERROR:
            # It could not be powered off, and says so: what becomes of it is its owner's to say again.
            self.restored.add(instance_id)
        if after.generation < before.generation:
            raise Violation(f"I15 {instance_id} went back: {before.generation} to {after.generation}")
        if after.observed_generation > after.generation:
            raise Violation(f"I15 {instance_id} was observed ahead of what was asked")
        run = self.running.get(instance_id)
        wrong = moves.wrong_place(before, after, None if run is None else run.host)
        if wrong is not None:
            raise Violation(wrong)
        is_word = after.power_seen_ms != before.power_seen_ms
        if is_word and before.host == after.host and not volumes.is_asked_still(before, after):
            raise Violation(f"I6 what was asked of {instance_id} was changed by what its host said")
        self._said(books, event.by, before, after)
        has_gone = moves.here(before) != moves.here(after)
        if before.want is Want.ABSENT and after.want is not Want.ABSENT and not has_gone:
            raise Violation(f"I5 {instance_id} was to be gone, and is wanted again")

    @staticmethod
    def _said(books: _Books, by: str, before: Instance, after: Instance) -> None:
        """What a host's word has changed."""
        has_ended = before.task is not TaskState.NONE and after.task is TaskState.NONE and after.fault is None
        # What has gone off by itself when it had arrived is then wanted off, which is a newer intent.
        is_newer = after.want is not before.want and after.observed_generation == before.generation
        if has_ended and after.observed_generation != after.generation and not is_newer:
            raise Violation(
                f"I5 {before.task.name} of {after.id} was ended by a word about generation "
                f"{after.observed_generation} of {after.generation}"
            )
        session = books.sessions.get(before.host)
        is_word = after.power_seen_ms != before.power_seen_ms
        if not is_word or not by or session is None:
            return
        if session.conductor != by or session.state not in _LIVE:
            raise Violation(
                f"R1 {by} wrote what {before.host} said of {after.id}, "
                f"whose session is {session.state.name} with {session.conductor}"
            )

    def _check_host(self, cell: str, name: str) -> None:
        books = self.cells[cell]
        claimed = sum((each.guest.resources() for each in books.assigned.get(name, {}).values()), Resources())
        use = books.uses.get(name, Use(host=name))
        held = len(books.assigned.get(name, {}))
        placed = sum(_has_slot(books.instances.get(each), name) for each in books.assigned.get(name, {}))
        slots = placed + volumes.slots_of(books.instances, name)
        if (
            use.claimed != claimed
            or use.instances != held
            or len(use.slots) != slots
            or len(set(use.slots)) != slots
            or use.volumes_gib != books.volumes.gib_on(name)
        ):
            raise Violation(
                f"I2 the claims of {name} differ from its assignments: {use} for {held} of {claimed}"
            )
        host = books.hosts.get(name)
        if host is not None and not host.capacity.covers(use.taken):
            raise Violation(f"I2 {name} is over its capacity: {use.claimed} of {host.capacity}")

    def _check_places(self, books: _Books, instance_id: str) -> None:
        record = books.instances.get(instance_id)
        ordered = {
            host: each[instance_id].placement_epoch
            for host, each in books.assigned.items()
            if instance_id in each
        }
        buried = {host: epoch for (host, each), epoch in books.tombstones.items() if each == instance_id}
        wrong = moves.wrong_orders(record, ordered, buried)
        location = self.locations.get(instance_id)
        if wrong is None and self._is_one_clock and record is not None and location is not None:
            wrong = moves.undercharged(record, location)
        if wrong is not None:
            raise Violation(f"{wrong} ({instance_id})")

    def _check_quota(self, project: str) -> None:
        quota = self.quotas.get(project)
        if quota is None:
            return
        charged = sum(
            (each.charge for each in self.locations.values() if each.project_id == project), Charge()
        )
        charged += volumes.charged(self.volumes, project)
        if charged != quota.used:
            raise Violation(
                f"I3 {project} is charged {quota.used} for servers and volumes that cost {charged}"
            )
        over = (
            quota.used.instances > quota.limit.instances
            or quota.used.vcpus > quota.limit.vcpus
            or quota.used.ram_mib > quota.limit.ram_mib
            or quota.used.volumes > quota.limit.volumes
            or quota.used.volume_gib > quota.limit.volume_gib
        )
        if over:
            raise Violation(f"I3 {project} is over its quota: {quota.used} of {quota.limit}")

    # ---------------------------------------------------------------- hosts

    def _started(self, event: Started) -> None:
        if event.permit_age_s is not None and event.permit_age_s > self._permit_s:
            raise Violation(
                f"R5 {event.host} started {event.instance_id} on a permit {event.permit_age_s:.1f} s old"
            )
        if event.has_given_up:
            raise Violation(f"I1 {event.host} started {event.instance_id}, which it had given up on")
        other = self.running.get(event.instance_id)
        if other is not None and other.host != event.host:
            raise Violation(f"I1 {event.instance_id} runs on {other.host} and on {event.host}")
        self.running[event.instance_id] = _Run(event.host, event.placement_epoch)
        self._have_run.add((event.host, event.instance_id, event.placement_epoch))
        on_host = [each for each, run in self.running.items() if run.host == event.host]
        for books in self.cells.values():
            host = books.hosts.get(event.host)
            if host is None:
                continue
            known = [
                books.instances[each].request.guest.resources() for each in on_host if each in books.instances
            ]
            if not host.capacity.covers(sum(known, Resources())):
                raise Violation(f"I2 {event.host} runs more than it has: {', '.join(sorted(on_host))}")

    def _destroyed(self, event: Destroyed) -> None:
        run = self.running.get(event.instance_id)
        if run is not None and run.host == event.host and run.placement_epoch <= event.placement_epoch:
            del self.running[event.instance_id]
        for books in self.cells.values():
            record = books.instances.get(event.instance_id)
            if record is None or moves.named(record).get(event.host) != event.placement_epoch:
                continue
            is_other = moves.here(record) != (event.host, event.placement_epoch)
            what = (event.host, event.instance_id, event.placement_epoch)
            is_done = record.observed_action >= record.action.seq
            if record.action.kind is OneShot.REBUILD and not (is_done and what in self._have_run):
                # Its disks are made anew: that is what was asked for, and may be tried again after it failed, until it has run on them.
                self._have_run.discard(what)
                continue
            if record.want is not Want.ABSENT or (is_other and record.task is not TaskState.DELETING):
                raise Violation(
                    f"I8 {event.host} destroyed {event.instance_id}, which its record wants there"
                )

    # ---------------------------------------------------------------- clients

    def _returned(self, event: Returned) -> None:
        call = self._open.pop(event.call)
        if event.error:
            return
        if call.method == "create":
            owner = (call.project_id, call.request_id)
            known = self.by_request.setdefault(owner, event.instance_id)
            if known != event.instance_id:
                raise Violation(f"I4 request {owner} made both {known} and {event.instance_id}")
            self.accepted.add(event.instance_id)
            if event.instance_id not in self.locations and event.instance_id not in self.deleting:
                raise Violation(f"I11 {event.instance_id} was acknowledged, and is not there")
        elif call.method == "delete":
            self.deleted.add(call.instance_id)
        elif call.method == "get" and event.instance_id == "" and self._must_exist(call.instance_id):
            raise Violation(f"I12 {call.instance_id} was acknowledged, and a read does not see it")

    def _must_exist(self, instance_id: str) -> bool:
        return instance_id in self.accepted and instance_id not in self.deleting


def is_at_rest(record: Instance) -> bool:
    """Whether nothing more is going to happen to a server by itself (I7): settled, or failed with a reason."""
    if record.task is not TaskState.NONE:
        return False
    if record.vm_state is VmState.ERROR:
        return record.fault is not None and bool(record.fault.code) and bool(record.fault.message)
    # One that is on no host has nobody to say anything of it.
    is_told = record.observed_generation == record.generation or not record.host
    return record.vm_state is not VmState.BUILDING and is_told


def books_of(checker: Checker) -> Mapping[str, _Books]:
    """Every cell's books, for the checks at the end of a run."""
    return checker.cells


def _has_slot(record: Instance | None, host: str) -> bool:
    """Whether the server's place on a host has an address of the host's own."""
    if record is None:
        return True
    if record.host == host:
        return record.slot != NO_SLOT
    return record.move is None or record.move.other.slot != NO_SLOT
