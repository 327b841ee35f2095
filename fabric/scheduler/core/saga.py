"""What becomes of a build: a create is accepted in one store and placed in another, and no transaction spans both.

What makes it exactly once, whatever dies or repeats in between:

- A server exists in a cell only by a transaction that compares its absence *and* the absence of `over/<u>`.
- A build leaves a cell only after `over/<u>` was written there (`leave`): so no scheduler that still believes in the old cell can raise
  the server in it, and a build never returns to a cell it has left.
- Whoever finds `over/<u>` without `refund/<u>` and the build unchanged knows that it was left, not deleted: a deletion's refund is only
  taken away after the transaction that takes the build away (`settle_refunds`), which `move` would notice.
- A charge is given back by the transaction that removes the server's location, hence once.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fabric.lifecycle.core import begin
from fabric.lifecycle.events import accepted, cancelled, closed, left_behind, slot
from fabric.model.event import Event, Outcome
from fabric.model.instance import Assignment, Build, Instance, Location, Over, Refund
from fabric.model.placement import Decision
from fabric.model.quota import Charge, Quota
from fabric.model.states import Action, Want
from fabric.network.core.releases import Release
from fabric.scheduler.core.change import Change
from fabric.scheduler.core.picture import HostPicture, Seen
from fabric.scheduler.settings import SchedulerSettings
from fabric.store import keys

NO_VALID_HOST = "NO_VALID_HOST"
"""The fault of a server that no host takes (the reference's word)."""

BUILD_TIMEOUT = "BUILD_TIMEOUT"
"""The fault of a server whose cell could not be reached for so long that nobody waits for it any more."""


class Turn(enum.Enum):
    """What a build is waiting for."""

    PLACE = enum.auto()
    CANCEL = enum.auto()
    EXPIRE = enum.auto()


def turn(build: Build, *, now_ms: int, settings: SchedulerSettings) -> Turn:
    """What to do with a build now."""
    if build.cancelled:
        return Turn.CANCEL
    if now_ms - build.create_time_ms >= settings.build_timeout_s * 1000:
        return Turn.EXPIRE
    return Turn.PLACE


# ---------------------------------------------------------------------- no room


@dataclass(frozen=True, slots=True)
class Move:
    """Send the server to this cell."""

    cell: str


class Stay(enum.Enum):
    """It stays in its cell: to wait for cells that cannot be reached, or to end in ERROR."""

    WAIT = enum.auto()
    FAIL = enum.auto()


def without_room(
    build: Build,
    anywhere: Decision,
    hosts: HostPicture,
    *,
    is_provisional: bool,
    waited_s: float,
    settings: SchedulerSettings,
) -> Move | Stay:
    """What becomes of a build whose own cell has no room.

    Args:
        build: the build.
        anywhere: the decision over all cells it may still go to.
        hosts: which cells are open, and which can be reached.
        is_provisional: the decision counts on others of its batch going where they were sent, which they may not need:
            no ground to give up.
        waited_s: how long this scheduler has known the build: one that has just started may not have reached all cells yet.
        settings: how long to wait for them.
    """
    if anywhere.host:
        return Move(anywhere.cell)
    out_of_reach = any(not hosts.is_reachable(cell) for cell in _open_cells(build, hosts))
    if is_provisional or (waited_s < settings.patience_s and out_of_reach):
        return Stay.WAIT
    return Stay.FAIL


def onwards(build: Build, anywhere: Decision, hosts: HostPicture) -> Move | Stay:
    """Where a build goes that has left its cell but not arrived: with room if possible, else where its end can be recorded."""
    if anywhere.host:
        return Move(anywhere.cell)
    reachable = [cell for cell in _open_cells(build, hosts) if hosts.is_reachable(cell)]
    return Move(reachable[0]) if reachable else Stay.WAIT


def _open_cells(build: Build, hosts: HostPicture) -> list[str]:
    """The cells the build could still go to, by name."""
    return [
        cell
        for cell in hosts.cells
        if cell != build.cell and cell not in build.tried_cells and hosts.is_enabled(cell)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What a cell knows of one server, read at one revision."""

    instance: Seen[Instance]
    over: Seen[Over]
    refund: Seen[Refund]


class Found(enum.Enum):
    """What the traces say of a build."""

    NOTHING = enum.auto()
    """Nobody has claimed it."""
    PLACED = enum.auto()
    """It has a record: the build is done with."""
    LEFT = enum.auto()
    """It has left this cell and is to go on."""
    ENDED = enum.auto()
    """It was deleted: the reconciler takes the build away with the charge."""


def found(traces: Traces) -> Found:
    """What the cell knows, for a build that is still there unchanged when what follows from this is committed."""
    if traces.instance.value is not None:
        return Found.PLACED
    if traces.refund.value is not None:
        return Found.ENDED
    return Found.NOTHING if traces.over.value is None else Found.LEFT


def leave(build: Build, *, now_ms: int) -> Change:
    """In the build's own cell: nobody may raise the server here any more."""
    return Change(
        unchanged={keys.INSTANCE.at(build.instance_id): 0, keys.OVER.at(build.instance_id): 0},
        put={keys.OVER.at(build.instance_id): Over(instance_id=build.instance_id, over_time_ms=now_ms)},
    )


def move(build: Seen[Build], location: Seen[Location], to_cell: str, *, op_id: str) -> Change | None:
    """In the global store: the server lives in another cell from now on. None when it is not there to be moved any more."""
    if build.value is None or location.value is None or location.value.cell != build.value.cell:
        return None
    old, instance = build.value, build.value.instance_id
    return Change(
        unchanged={
            keys.BUILD.at(old.cell, instance): build.revision,
            keys.BUILD.at(to_cell, instance): 0,
            keys.LOCATION.at(instance): location.revision,
        },
        put={
            keys.BUILD.at(to_cell, instance): replace(
                old, cell=to_cell, tried_cells=(*old.tried_cells, old.cell), op_id=op_id
            ),
            keys.LOCATION.at(instance): replace(location.value, cell=to_cell, op_id=op_id),
        },
        delete=(keys.BUILD.at(old.cell, instance),),
    )


# ---------------------------------------------------------------------- cancelled


def cancel(
    build: Build, traces: Traces, assignment: Seen[Assignment], *, now_ms: int, op_id: str
) -> Change | None:
    """In the build's cell: end the server, wherever its claim has got to. None when its end is under way already.

    Args:
        build: the build, cancelled.
        traces: what the cell knows of the server.
        assignment: the order to the host that the record names; absent where it names none.
        now_ms: the time.
        op_id: names the write.
    """
    key, instance = build.instance_id, traces.instance.value
    if instance is None:
        return None if traces.refund.value is not None else _end(build, traces, now_ms=now_ms)
    if instance.want is Want.ABSENT:
        return None
    if not instance.host:
        return _end(build, traces, now_ms=now_ms)
    after = begin(
        instance,
        Action.DELETE,
        now_ms=now_ms,
        op_id=op_id,
        request_id=build.cancel_request_id,
        user_id=build.cancelled_by,
        is_admin=True,
    )
    order_key = keys.ASSIGNMENT.at(instance.host, key)
    put: dict[str, object] = {
        keys.INSTANCE.at(key): after,
        **_kept(*left_behind(instance, after, now_ms=now_ms)),
    }
    if assignment.value is not None:
        put[order_key] = replace(
            assignment.value, want=after.want, generation=after.generation, action=after.action
        )
    return Change(
        unchanged={keys.INSTANCE.at(key): traces.instance.revision, order_key: assignment.revision}, put=put
    )


def _kept(*events: Event) -> dict[str, object]:
    return {keys.EVENT.at(each.instance_id, slot(each)): each for each in events}


def _end(build: Build, traces: Traces, *, now_ms: int) -> Change:
    """The server has no host, so its end is a matter of records: it is over, and its charge is owed."""
    key = build.instance_id
    instance = traces.instance.value
    create = accepted(build) if instance is None or instance.event is None else instance.event
    put: dict[str, object] = {
        keys.REFUND.at(key): Refund(instance_id=key, project_id=build.project_id),
        **_kept(closed(create, now_ms=now_ms, outcome=Outcome.SUPERSEDED)),
        **_kept(cancelled(build, create, now_ms=now_ms)),
    }
    if traces.over.value is None:
        put[keys.OVER.at(key)] = Over(instance_id=key, over_time_ms=now_ms)
    return Change(
        unchanged={
            keys.INSTANCE.at(key): traces.instance.revision,
            keys.OVER.at(key): traces.over.revision,
            keys.REFUND.at(key): 0,
        },
        put=put,
        delete=(keys.INSTANCE.at(key),) if traces.instance.value is not None else (),
    )


# ---------------------------------------------------------------------- the end


OPERATIONS = 110
"""At most so many compares, and so many writes, in a transaction that settles refunds: etcd takes 128 of either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """A refund, and what the global store knows of its server. `ports` are those that the server still holds, as they are given back."""

    refund: Refund
    location: Seen[Location]
    build: Seen[Build]
    ports: Mapping[str, Release] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settled:
    """What to commit in the global store, and of which servers nothing is owed any more then."""

    change: Change
    instances: frozenset[str]


def settle_refunds(
    cell: str, owed: Iterable[Owed], quotas: Mapping[str, Seen[Quota]], *, op_id: str
) -> Settled:
    """In the global store: give charges and ports back, and forget the servers they were for; as many as fit into one transaction.

    A server without a location has been paid back already; one that lives in another cell is charged for living there. One that holds
    more than fits lets go of some of its ports first.
    """
    release = Release()
    settled: set[str] = set()
    back: dict[str, Charge] = {}
    for each in owed:
        location = each.location.value
        if location is None or location.cell != cell:
            settled.add(each.refund.instance_id)
            continue
        whole = sum(each.ports.values(), release + _forgotten(cell, each))
        if whole.size + len(back.keys() | {location.project_id}) <= OPERATIONS:
            release = whole
            settled.add(location.instance_id)
            back[location.project_id] = back.get(location.project_id, Charge()) + location.charge
        elif not back:
            change = _some_ports(each, location, op_id=op_id)
            return Settled(change, frozenset(settled))
    put = dict(release.put)
    unchanged = dict(release.unchanged)
    for project, charge in back.items():
        quota = quotas[project]
        unchanged[keys.QUOTA.at(project)] = quota.revision
        if quota.value is not None:
            put[keys.QUOTA.at(project)] = replace(quota.value, used=quota.value.used - charge, op_id=op_id)
    return Settled(Change(unchanged=unchanged, put=put, delete=release.delete), frozenset(settled))


def _forgotten(cell: str, owed: Owed) -> Release:
    """The server's index row goes, and its build if it is still there."""
    instance = owed.refund.instance_id
    location_key, build_key = keys.LOCATION.at(instance), keys.BUILD.at(cell, instance)
    return Release(
        unchanged={location_key: owed.location.revision, build_key: owed.build.revision},
        delete=(location_key,) if owed.build.value is None else (location_key, build_key),
    )


def _some_ports(owed: Owed, location: Location, *, op_id: str) -> Change:
    """As many ports as fit are given back; the index row keeps the others, and the charge."""
    key = keys.LOCATION.at(location.instance_id)
    release = Release(unchanged={key: owed.location.revision}, put={key: location})
    gone: set[str] = set()
    for port_id, each in owed.ports.items():
        if (release + each).size > OPERATIONS:
            break
        release += each
        gone.add(port_id)
    rest = tuple(each for each in location.port_ids if each not in gone)
    put = {**release.put, key: replace(location, port_ids=rest, op_id=op_id)}
    return Change(unchanged=release.unchanged, put=put, delete=release.delete)


def forget(settled: Mapping[str, int]) -> Change:
    """Take keys away that have been dealt with, by the revisions at which they were."""
    return Change(unchanged=dict(settled), delete=tuple(settled))


def sweepable(
    overs: Sequence[Seen[Over]], building: Collection[str], *, now_ms: int, settings: SchedulerSettings
) -> list[Seen[Over]]:
    """Servers that are over for so long that no claim of them can still be on its way, and that nobody wants to build."""
    oldest_ms = now_ms - settings.over_ttl_s * 1000
    return [
        over
        for over in overs
        if over.value is not None
        and over.value.over_time_ms <= oldest_ms
        and over.value.instance_id not in building
    ]
