"""The scheduler as a process: pictures of every store, one worker and one reconciler per cell, and what they share.

Keeps nothing: killed at any point and started anew, or run several times over, it ends in the same place. Made of ports only, so
the simulation runs this very code on a virtual clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote

import structlog

from fabric.clock import Clock
from fabric.errors import FabricError
from fabric.ids import Ids
from fabric.model.host import Cell, CellCapacity, Host, Use
from fabric.model.instance import Build, Refund
from fabric.scheduler.cell import CellBuilds
from fabric.scheduler.commits import commit
from fabric.scheduler.core.capacity import publishable
from fabric.scheduler.core.picture import HostPicture, Seen
from fabric.scheduler.reconciler import Reconciler
from fabric.scheduler.removal import Removal
from fabric.scheduler.settings import SchedulerSettings
from fabric.store import codec, keys
from fabric.store.base import Store
from fabric.store.picture import Change, Pace, Picture

log = structlog.get_logger()

V = TypeVar("V")

CONTACT_LOOK_S = 0.25
"""How often it is looked whether cells can be reached; the pictures ask them less often."""

QUIET = Pace(contact_s=15.0)
"""For pictures beside one that asks its store often enough for all of them."""


@dataclass(frozen=True, slots=True)
class _Sized:
    """A build with the size of its record, which decides how many share a transaction."""

    build: Build
    bytes: int


class _CellFeed:
    """The pictures of one cell's hosts, poured into the columns; and whether the cell can be reached."""

    def __init__(self, cell: str, store: Store, hosts: HostPicture, clock: Clock) -> None:
        self._cell, self._hosts, self._clock = cell, hosts, clock
        self._tripped_boot_s = float("-inf")
        # Sessions are what decisions hang on most, so theirs is the picture that tells whether the store is there.
        self._sessions = self._picture(store, keys.SESSION, hosts.set_session, Pace())
        self._others: tuple[Picture[Host] | Picture[Use] | Picture[str], ...] = (
            self._picture(store, keys.HOST, hosts.set_host, QUIET),
            self._picture(store, keys.USE, hosts.set_use, QUIET),
            Picture(
                store,
                keys.ALIVE.under(),
                lambda _, data: codec.decode(str, data),
                clock=clock,
                on_change=self._on_alive,
                pace=QUIET,
            ),
        )

    def _picture(
        self, store: Store, row: keys.Key[V], take: Callable[[str, str, Seen[V]], bool], pace: Pace
    ) -> Picture[V]:
        def decode(_key: str, data: bytes) -> V:
            return codec.decode(row.record, data)

        def on_change(changes: Sequence[Change[V]]) -> None:
            for change in changes:
                name = _last_field(change.key)
                if change.after is not None:
                    held = change.after
                    take(self._cell, name, Seen(held.value, held.mod_revision, held.mod_revision))
                elif change.before is not None:
                    # When exactly it was deleted is not told; it was after this.
                    take(self._cell, name, Seen(known=change.before.mod_revision + 1))

        return Picture(store, row.under(), decode, clock=self._clock, on_change=on_change, pace=pace)

    def _on_alive(self, changes: Sequence[Change[str]]) -> None:
        for change in changes:
            self._hosts.set_alive(self._cell, _last_field(change.key), is_alive=change.after is not None)

    def trip(self) -> None:
        """A request to the store failed: it counts as unreachable until it answers one sent after now."""
        self._tripped_boot_s = self._clock.boot_s()
        self._hosts.set_cell(self._cell, is_reachable=False)

    @property
    def is_reachable(self) -> bool:
        """Whether the hosts are known, and the store answers."""
        return (
            self._sessions.is_fresh
            and self._sessions.contact_boot_s > self._tripped_boot_s
            and all(picture.revision > 0 for picture in self._others)
        )

    async def run(self) -> None:
        """Keep the pictures."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sessions.run())
            for picture in self._others:
                tasks.create_task(picture.run())


class SchedulerService:
    """Give it the stores and `run` it. Any number may run at once."""

    def __init__(
        self,
        global_store: Store,
        cells: Mapping[str, Store],
        *,
        settings: SchedulerSettings,
        clock: Clock,
        ids: Ids,
        jitter: Callable[[], float],
    ) -> None:
        self._global, self._settings, self._clock = global_store, settings, clock
        self._hosts = HostPicture()
        self._removal = Removal(global_store, settings, jitter)
        self._builds = Picture(
            global_store,
            keys.BUILD.under(),
            lambda _, data: _Sized(codec.decode(Build, data), len(data)),
            clock=clock,
            on_change=self._on_builds,
            pace=Pace(reread_s=settings.reread_s),
        )
        self._cells_known = Picture(
            global_store,
            keys.CELL.under(),
            lambda _, data: codec.decode(Cell, data),
            clock=clock,
            on_change=self._on_cells,
            pace=QUIET,
        )
        self._capacity = Picture(
            global_store,
            keys.CAPACITY.under(),
            lambda _, data: codec.decode(CellCapacity, data),
            clock=clock,
            pace=QUIET,
        )
        self._feeds = {name: _CellFeed(name, store, self._hosts, clock) for name, store in cells.items()}
        self._workers = {
            name: CellBuilds(
                name,
                store,
                global_store,
                self._hosts,
                self._removal,
                settings=settings,
                clock=clock,
                ids=ids,
                jitter=jitter,
                on_trouble=self._feeds[name].trip,
            )
            for name, store in cells.items()
        }
        self._reconcilers = [
            Reconciler(
                name,
                store,
                global_store,
                building=self._workers[name].building,
                decode=lambda _, data: codec.decode(Refund, data),
                settings=settings,
                clock=clock,
                ids=ids,
                jitter=jitter,
            )
            for name, store in cells.items()
        ]
        for name in cells:
            self._hosts.set_cell(name, is_reachable=False)

    @property
    def hosts(self) -> HostPicture:
        """The picture decisions are made on, for asking "what if" (`core.place.decide`) and "why not" (`core.explain.why_not`)."""
        return self._hosts

    @property
    def is_ready(self) -> bool:
        """Whether the builds are known and at least one cell can be claimed from."""
        return self._builds.is_fresh and any(feed.is_reachable for feed in self._feeds.values())

    async def run(self) -> None:
        """Schedule until cancelled. Survives every store being away, for as long as it is."""
        async with asyncio.TaskGroup() as tasks:
            for feed in self._feeds.values():
                tasks.create_task(feed.run())
            tasks.create_task(self._cells_known.run())
            tasks.create_task(self._capacity.run())
            tasks.create_task(self._builds.run())
            tasks.create_task(self._removal.run())
            tasks.create_task(self._keep_looking())
            for worker in self._workers.values():
                tasks.create_task(worker.run())
            for reconciler in self._reconcilers:
                tasks.create_task(reconciler.run())
            for name in self._feeds:
                tasks.create_task(self._keep_publishing(name))

    # ------------------------------------------------------------------ news

    def _on_builds(self, changes: Sequence[Change[_Sized]]) -> None:
        for change in changes:
            held = change.after or change.before
            if held is None:
                continue
            worker = self._workers.get(held.value.build.cell)
            if worker is None:
                log.error("build.homeless", key=change.key, cell=held.value.build.cell)
            elif change.after is None:
                worker.withdraw(held.value.build.instance_id)
            else:
                worker.offer(held.value.build, held.mod_revision, held.value.bytes)

    def _on_cells(self, changes: Sequence[Change[Cell]]) -> None:
        for change in changes:
            cell = change.after.value if change.after is not None else None
            self._hosts.set_cell(_last_field(change.key), is_enabled=cell is not None and cell.enabled)

    async def _keep_looking(self) -> None:
        """Tell the workers when their cells come and go."""
        while True:
            for name, feed in self._feeds.items():
                # Before it is known which cells are open, every one of them would look closed.
                is_reachable = feed.is_reachable and self._cells_known.revision > 0
                if is_reachable != self._hosts.is_reachable(name):
                    log.info("cell.reachable" if is_reachable else "cell.away", cell=name)
                    self._hosts.set_cell(name, is_reachable=is_reachable)
                    self._workers[name].wake()
            await asyncio.sleep(CONTACT_LOOK_S)

    # ------------------------------------------------------------------ capacity

    async def _keep_publishing(self, cell: str) -> None:
        """Publish what the cell can take, when that changed: a hint for the front door."""
        while True:
            await asyncio.sleep(self._settings.capacity_s)
            if not (self._hosts.is_reachable(cell) and self._capacity.is_fresh):
                continue
            held = self._capacity.entries.get(keys.CAPACITY.at(cell))
            change = publishable(
                self._hosts.capacity(cell, now_ms=self._clock.now_ms()),
                Seen() if held is None else Seen(held.value, held.mod_revision, held.mod_revision),
                settings=self._settings,
            )
            if change is None:
                continue
            try:
                await commit(self._global, change, timeout_s=self._settings.store_timeout_s)
            except FabricError as trouble:
                log.info("capacity.unpublished", cell=cell, why=trouble.message)


def _last_field(key: str) -> str:
    """The last field of a key, as it was before it was escaped."""
    return unquote(key.rpartition("/")[2])
