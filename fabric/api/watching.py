"""Every change of servers, as it happens, to everybody who watches.

The changes are those of the pictures that the server keeps anyhow, so a watcher costs no read of a store. They go into one bounded log;
a watcher is a place in it. One that falls behind the log is sent away, and one that comes back with what it was told last is told what
it has missed, or, where that is forgotten, that everything is to be read anew.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from fabric.api.catalogue import Catalogue
from fabric.api.cells import Cells, CellView
from fabric.api.core.change_log import ChangeLog, Entry
from fabric.api.instance_view import from_build, from_location
from fabric.api.shelf import Shelf
from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import InvalidRequest, PermissionDenied, Reason, TooMuch, Unavailable
from fabric.lifecycle.table import shown
from fabric.model.identity import Principal
from fabric.model.instance import Build, Instance, Location
from fabric.model.states import TaskState, VmState
from fabric.pb.compute.v1 import instance_event_service_pb2 as pb
from fabric.pb.compute.v1 import instance_service_pb2 as instance_pb
from fabric.store.keys import INSTANCE
from fabric.store.picture import Change, Held

LOG_LIMIT: Final = 4096
"""Changes remembered: at a hundred a second, forty seconds of being away or slow."""

WATCHES_LIMIT: Final = 500
"""Watchers of one server at a time."""

LIFETIME_S: Final = 300.0
"""After so long the caller is asked to call again: another server may take it on, and its roles are looked at anew."""

LOOK_S: Final = 1.0
"""How often it is looked whether cells can be reached."""

MARK_S: Final = 10.0
"""How long after a mark there is another although nothing was told, so that what is resumed from stays young."""

INDEX: Final = "index"
BUILDS: Final = "builds"

View = Callable[[CellView, Instance, int, Principal], instance_pb.Instance]


@dataclass(frozen=True, slots=True)
class Seen:
    """A server that was made or has changed, as its cell has it."""

    cell: str
    held: Held[Instance]

    @property
    def project_id(self) -> str:
        return self.held.value.request.guest.project_id


@dataclass(frozen=True, slots=True)
class Waiting:
    """A server that was accepted, and has no host yet."""

    build: Build

    @property
    def project_id(self) -> str:
        return self.build.project_id


@dataclass(frozen=True, slots=True)
class Ended:
    """A server that is gone, as it was last: by its cell, or where it never had a record there, by the index."""

    cell: str
    last: Held[Instance] | Location

    @property
    def project_id(self) -> str:
        last = self.last
        return last.project_id if isinstance(last, Location) else last.value.request.guest.project_id


@dataclass(frozen=True, slots=True)
class Listed:
    """A cell was listed for the first time: all its servers are news."""

    cell: str


News = Seen | Waiting | Ended | Listed


class Bearers(Protocol):
    """What is known of tokens that were good when a watch began."""

    @property
    def hearings(self) -> int:
        """How often the watch on tokens began anew: of what ended in between it tells nothing."""
        ...

    def has_ended(self, token_id: str) -> bool:
        """Whether the watch has told of a token's end lately."""
        ...

    async def stands(self, token_id: str) -> bool:
        """Whether a token is good still, as the store has it. A store that does not answer says nothing against it."""
        ...


class Watching:
    """The log, and everybody who reads it. `view` shows a record of a cell's to somebody."""

    def __init__(
        self, *, catalogue: Catalogue, cells: Cells, view: View, tokens: Bearers, clock: Clock
    ) -> None:
        self.tokens = tokens
        self._catalogue = catalogue
        self._cells = cells
        self._view = view
        self._clock = clock
        self._log: ChangeLog[News] = ChangeLog(LOG_LIMIT)
        self._moved = asyncio.Event()
        self._watchers = 0
        # Servers whose end their cells have told: the index tells it again.
        self._ended: OrderedDict[str, None] = OrderedDict()
        catalogue.builds.listeners.append(self._builds_changed)
        catalogue.locations.listeners.append(self._index_changed)
        for name, view_of in cells.by_name.items():
            view_of.instances.listeners.append(partial(self._cell_changed, name))

    # ---------------------------------------------------------------- what comes in

    def _cell_changed(self, cell: str, changes: Sequence[Change[Instance]]) -> None:
        revision = self._cells[cell].instances.picture.revision
        source = cell_source(cell)
        if self._is_first(source, revision):
            self._take(source, revision, [Listed(cell)])
            return
        news: list[News] = []
        for change in changes:
            if change.after is not None:
                news.append(Seen(cell, change.after))
            elif change.before is not None:
                news.append(Ended(cell, change.before))
                self._ended[change.before.value.id] = None
        while len(self._ended) > LOG_LIMIT:
            self._ended.popitem(last=False)
        self._take(source, revision, news)

    def _builds_changed(self, changes: Sequence[Change[Build]]) -> None:
        revision = self._catalogue.builds.picture.revision
        self._is_first(BUILDS, revision)
        # One that goes has been claimed, or moved, or has ended: others tell.
        news = [Waiting(each.after.value) for each in changes if each.after is not None]
        self._take(BUILDS, revision, [each for each in news if not self._is_claimed(each.build)])

    def _index_changed(self, changes: Sequence[Change[Location]]) -> None:
        revision = self._catalogue.locations.picture.revision
        self._is_first(INDEX, revision)
        gone = [each.before.value for each in changes if each.after is None and each.before is not None]
        self._take(INDEX, revision, [Ended(each.cell, each) for each in gone if self._ends_unseen(each)])

    def _is_first(self, source: str, revision: int) -> bool:
        """Whether a source is heard of for the first time, or is not the one any more that it was."""
        known = self._log.position.get(source)
        if known is None or revision < known:
            self._log.begin(source, revision)
            return True
        return False

    def _take(self, source: str, revision: int, news: Iterable[News]) -> None:
        self._log.add(source, revision, news)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _is_claimed(self, build: Build) -> bool:
        view = self._cells.by_name.get(build.cell)
        return view is not None and INSTANCE.at(build.instance_id) in view.instances.entries

    def _ends_unseen(self, location: Location) -> bool:
        """Whether nobody but the index tells of a server's end: it never had a record in its cell."""
        view = self._cells.by_name.get(location.cell)
        in_cell = view is not None and INSTANCE.at(location.instance_id) in view.instances.entries
        return not in_cell and location.instance_id not in self._ended

    # ---------------------------------------------------------------- what goes out

    async def news(
        self, request: pb.WatchInstancesRequest, principal: Principal
    ) -> AsyncIterator[pb.WatchInstancesResponse]:
        """Everything new, until it is time to call again.

        Raises:
            PermissionDenied: every project's servers, asked for by somebody else than an administrator.
            InvalidRequest: the token is none of ours.
            TooMuch: there are too many watchers, or this one is too slow.
        """
        if request.all_projects and not principal.system_admin:
            raise PermissionDenied(
                "only system administrators watch every project's servers", needed="system"
            )
        position = _read(request.resume_token)
        if self._watchers >= WATCHES_LIMIT:
            raise TooMuch(f"{WATCHES_LIMIT} are watching already; try another server", retry_after_s=10.0)
        self._watchers += 1
        try:
            watcher = _Watcher(self, request, principal, clock=self._clock)
            async for message in watcher.messages(position):
                yield message
        finally:
            self._watchers -= 1

    async def known_after(self, position: Mapping[str, int]) -> list[Entry[News]] | None:
        """Every change after a position, once our pictures are as new as it; None where they are not all known."""
        known = self.position()
        for source, revision in position.items():
            shelf = self._shelves().get(source)
            if shelf is not None and known.get(source, 0) < revision:
                # It is of another server of ours, which was ahead; or made up: so to what the store has, and not to what it says.
                with contextlib.suppress(Unavailable):
                    await shelf.catch_up()
        self.position()
        return self._log.after(position)

    def position(self) -> Mapping[str, int]:
        """Up to where everything is known now: a picture's revision moves on without a change of what is in it."""
        for source, shelf in self._shelves().items():
            picture = shelf.picture
            known = self._log.position.get(source)
            if picture.revision and known is None:
                self._log.begin(source, picture.revision)
            elif known is not None and picture.revision > known:
                self._log.add(source, picture.revision, ())
        return self._log.position

    @property
    def place(self) -> int:
        """The place after the last change."""
        return self._log.end

    def since(self, place: int) -> list[Entry[News]] | None:
        """Every change from a place on; None where some are forgotten."""
        return self._log.since(place)

    async def moved(self) -> None:
        """Wait for a change, or for a while."""
        moved = self._moved
        with contextlib.suppress(TimeoutError):
            async with within(LOOK_S):
                await moved.wait()

    def away(self) -> Mapping[str, str]:
        """Why the cells cannot be reached that cannot."""
        return {
            name: view.away().message
            for name, view in self._cells.by_name.items()
            if not view.instances.picture.is_fresh
        }

    def everything(self) -> Iterator[News]:
        """All servers there are, as of now."""
        for name, view in self._cells.by_name.items():
            for held in list(view.instances.entries.values()):
                yield Seen(name, held)
        for build in list(self._catalogue.builds.values()):
            if not self._is_claimed(build):
                yield Waiting(build)

    def message(
        self, news: Seen | Waiting | Ended, kind: pb.ChangeKind.ValueType, principal: Principal
    ) -> pb.WatchInstancesResponse:
        """One server, as the principal may see it."""
        instance = self._shown(news, principal)
        if isinstance(news, Ended):
            instance.status.state = shown(VmState.DELETED, TaskState.NONE)
            instance.status.task_state = ""
        return pb.WatchInstancesResponse(change=pb.InstanceChange(kind=kind, instance=instance))

    def _shown(self, news: Seen | Waiting | Ended, principal: Principal) -> instance_pb.Instance:
        if isinstance(news, Waiting):
            return from_build(news.build)
        held = news.held if isinstance(news, Seen) else news.last
        if isinstance(held, Location):
            return from_location(held, reason="")
        return self._view(self._cells[news.cell], held.value, held.mod_revision, principal)

    def _shelves(self) -> Mapping[str, Shelf[Any]]:
        return {
            BUILDS: self._catalogue.builds,
            INDEX: self._catalogue.locations,
            **{cell_source(name): view.instances for name, view in self._cells.by_name.items()},
        }


class _Watcher:
    """One call: what it has told, and what it has still to tell."""

    def __init__(
        self, watching: Watching, request: pb.WatchInstancesRequest, principal: Principal, *, clock: Clock
    ) -> None:
        self._watching = watching
        self._principal = principal
        self._of_all = request.all_projects
        self._clock = clock
        self._place = watching.place
        self._away: dict[str, str] = {}
        self._hearings = watching.tokens.hearings

    async def messages(self, position: Mapping[str, int] | None) -> AsyncIterator[pb.WatchInstancesResponse]:
        """Everything, as `Watching.news` has it."""
        watching, begun_s = self._watching, self._clock.boot_s()
        missed = None if position is None else await watching.known_after(position)
        # What comes while these are told is told after them.
        self._place, told = watching.place, watching.position()
        for message in self._cells():
            yield message
        if missed is None:
            if position is not None:
                yield _resync("what was missed is not known any more")
            for message in self._present():
                yield message
        for message in self._told(missed or ()):
            yield message
        yield _mark(told)
        marked_s = self._clock.boot_s()
        while not await self._is_over(begun_s):
            for message in self._cells():
                yield message
            entries = watching.since(self._place)
            if entries is None:
                raise TooMuch(
                    f"you are more than {LOG_LIMIT} changes behind; call again with your resume token",
                    reason=Reason.WATCH_TOO_SLOW,
                    retry_after_s=1.0,
                )
            is_due = self._clock.boot_s() - marked_s >= MARK_S
            if not entries and not is_due:
                await watching.moved()
                continue
            # Before anything is told: while it is, more may come, which this mark must not claim.
            self._place, told = self._place + len(entries), watching.position()
            for message in self._news_in(entries):
                is_due = True
                yield message
            if is_due:
                # Not for what is others': who sees nothing of it is not woken by it.
                yield _mark(told)
                marked_s = self._clock.boot_s()

    def _news_in(self, entries: list[Entry[News]]) -> Iterator[pb.WatchInstancesResponse]:
        if any(isinstance(each.news, Listed) for each in entries):
            yield _resync("a cell's servers have become known")
            yield from self._present()
        else:
            yield from self._told(entries)

    async def _is_over(self, begun_s: float) -> bool:
        """Whether it is time to call again, if only to be refused: a revoked token ends what it has begun within two seconds, too."""
        who, tokens = self._principal, self._watching.tokens
        is_expired = 0 < who.expire_time_ms <= self._clock.now_ms()
        if is_expired or self._clock.boot_s() - begun_s >= LIFETIME_S or tokens.has_ended(who.token_id):
            return True
        if tokens.hearings == self._hearings:
            return False
        self._hearings = tokens.hearings
        return not await tokens.stands(who.token_id)

    def _cells(self) -> Iterator[pb.WatchInstancesResponse]:
        """Which cells have gone away, and which have come back, since this was asked last."""
        before, self._away = self._away, dict(self._watching.away())
        for cell in sorted(before.keys() - self._away.keys()):
            yield pb.WatchInstancesResponse(cell_back=pb.CellBack(cell=cell))
        for cell in sorted(self._away.keys() - before.keys()):
            away = instance_pb.UnreachableCell(cell=cell, reason=self._away[cell])
            yield pb.WatchInstancesResponse(cell_away=away)

    def _present(self) -> Iterator[pb.WatchInstancesResponse]:
        # All at one instant: what changes while they are told is told afterwards.
        for news in list(self._watching.everything()):
            if not isinstance(news, Listed) and self._may_see(news):
                yield self._watching.message(news, pb.CHANGE_KIND_PRESENT, self._principal)

    def _told(self, entries: Iterable[Entry[News]]) -> Iterator[pb.WatchInstancesResponse]:
        for entry in entries:
            news = entry.news
            if isinstance(news, Listed) or not self._may_see(news):
                continue
            kind = pb.CHANGE_KIND_DELETED if isinstance(news, Ended) else pb.CHANGE_KIND_CHANGED
            yield self._watching.message(news, kind, self._principal)

    def _may_see(self, news: Seen | Waiting | Ended) -> bool:
        return self._of_all or news.project_id == self._principal.project_id


def cell_source(cell: str) -> str:
    """What a cell's servers are called among the sources."""
    return f"cell/{cell}"


def _mark(position: Mapping[str, int]) -> pb.WatchInstancesResponse:
    data = json.dumps(position, separators=(",", ":"), sort_keys=True).encode()
    token = base64.urlsafe_b64encode(data).decode().rstrip("=")
    return pb.WatchInstancesResponse(mark=pb.WatchMark(resume_token=token))


def _read(token: str) -> Mapping[str, int] | None:
    """What a mark said; None for no token. Raises InvalidRequest for one that is none of ours."""
    if not token:
        return None
    try:
        position = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        position = None
    if not isinstance(position, dict) or not all(
        isinstance(revision, int) and revision >= 0 for revision in position.values()
    ):
        raise InvalidRequest(
            "the resume token is none of ours; leave it out to begin anew",
            field="resume_token",
            reason=Reason.PAGE_TOKEN_INVALID,
        )
    return position


def _resync(reason: str) -> pb.WatchInstancesResponse:
    return pb.WatchInstancesResponse(resync=pb.WatchResync(reason=reason))
