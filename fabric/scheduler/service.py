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
from fabric.deadlines import within
from fabric.errors import FabricError
from fabric.model.host import Cell, CellCapacity, Host, Use
from fabric.model.instance import Build
from fabric.scheduler.aftermath import Aftermath
from fabric.scheduler.cell import CellBuilds
from fabric.scheduler.commits import commit
from fabric.scheduler.core.capacity import publishable
from fabric.scheduler.core.picture import HostPicture, Seen
from fabric.scheduler.moves import CellMoves
from fabric.scheduler.port_ends import PortEnds
from fabric.scheduler.ports import Ports
from fabric.scheduler.reconciler import Reconciler
from fabric.scheduler.removal import Removal
from fabric.scheduler.renames import Renames
from fabric.scheduler.volume_ends import VolumeEnds
from fabric.store import codec, keys
from fabric.store.base import Store
from fabric.store.picture import Change, Pace, Picture
from fabric.store.schema import open_schema

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
                    # When exactly it was deleted is not told; it was after this, but in a store that was set back.
                    known = min(change.before.mod_revision + 1, made.revision)
                    take(self._cell, name, Seen(known=known))

        made = Picture(
            store,
            row.under(),
            decode,
            clock=self._clock,
            on_change=on_change,
            on_set_back=lambda: self._hosts.forget_order(self._cell),
            pace=pace,
        )
        return made

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


@dataclass(frozen=True, slots=True)
class _Parts:
    """Everything that works for one cell."""

    store: Store
    feed: _CellFeed
    builds: CellBuilds
    moves: CellMoves
    reconciler: Reconciler
    aftermath: Aftermath
    renames: Renames
    volume_ends: VolumeEnds
    port_ends: PortEnds


class SchedulerService:
    """Give it the stores and `run` it. Any number may run at once."""

    def __init__(self, global_store: Store, cells: Mapping[str, Store], ports: Ports) -> None:
        self._global, self._ports = global_store, ports
        self._hosts = HostPicture()
        self._removal = Removal(global_store, ports)
        self._builds = Picture(
            global_store,
            keys.BUILD.under(),
            lambda _, data: _Sized(codec.decode(Build, data), len(data)),
            clock=ports.clock,
            on_change=self._on_builds,
            pace=Pace(reread_s=ports.settings.reread_s),
        )
        self._cells_known = Picture(
            global_store,
            keys.CELL.under(),
            lambda _, data: codec.decode(Cell, data),
            clock=ports.clock,
            on_change=self._on_cells,
            pace=QUIET,
        )
        self._capacity = Picture(
            global_store,
            keys.CAPACITY.under(),
            lambda _, data: codec.decode(CellCapacity, data),
            clock=ports.clock,
            pace=QUIET,
        )
        self._cells = {name: self._cell(name, store) for name, store in cells.items()}

    def _cell(self, name: str, store: Store) -> _Parts:
        self._hosts.set_cell(name, is_reachable=False)
        feed = _CellFeed(name, store, self._hosts, self._ports.clock)
        builds = CellBuilds(
            name,
            store,
            self._global,
            self._hosts,
            self._removal,
            self._ports,
            is_fresh=lambda: feed.is_reachable,
            on_trouble=feed.trip,
        )

        def building() -> frozenset[str] | None:
            return builds.building() if self._builds.is_fresh else None

        reconciler = Reconciler(name, store, self._global, self._ports, building=building)
        renames = Renames(name, store, self._global, self._ports)
        moves = CellMoves(
            name, store, self._global, self._hosts, self._ports, is_fresh=lambda: feed.is_reachable
        )
        aftermath = Aftermath(name, store, self._global, self._ports)
        volume_ends = VolumeEnds(name, store, self._global, self._ports)
        port_ends = PortEnds(name, store, self._global, self._ports)
        return _Parts(store, feed, builds, moves, reconciler, aftermath, renames, volume_ends, port_ends)

    @property
    def hosts(self) -> HostPicture:
        """The picture decisions are made on, for asking "what if" (`core.place.decide`) and "why not" (`core.explain.why_not`)."""
        return self._hosts

    @property
    def is_ready(self) -> bool:
        """Whether the builds are known and at least one cell can be claimed from."""
        return self._builds.is_fresh and any(parts.feed.is_reachable for parts in self._cells.values())

    async def run(self) -> None:
        """Schedule until cancelled. Survives every store being away, for as long as it is."""
        await self._opened(self._global)
        async with asyncio.TaskGroup() as tasks:
            for picture in (self._cells_known, self._capacity, self._builds):
                tasks.create_task(picture.run())
            tasks.create_task(self._removal.run())
            tasks.create_task(self._keep_looking())
            for name, parts in self._cells.items():
                tasks.create_task(self._run_cell(name, parts))

    async def _run_cell(self, name: str, parts: _Parts) -> None:
        await self._opened(parts.store)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(parts.feed.run())
            tasks.create_task(parts.builds.run())
            tasks.create_task(parts.moves.run())
            tasks.create_task(parts.reconciler.run())
            tasks.create_task(parts.aftermath.run())
            tasks.create_task(parts.renames.run())
            tasks.create_task(parts.volume_ends.run())
            tasks.create_task(parts.port_ends.run())
            tasks.create_task(self._keep_publishing(name))

    async def _opened(self, store: Store) -> None:
        """Wait until the store is there and at a schema we know: one that is not must stop no other cell."""
        pause_s = self._ports.settings.backoff_s
        while True:
            try:
                async with within(self._ports.settings.store_timeout_s):
                    await open_schema(store)
            except TimeoutError:
                log.warning("store.away", store=store.name, why="it does not answer")
            except FabricError as trouble:
                log.warning("store.away", store=store.name, why=trouble.message)
            else:
                return
            await asyncio.sleep(self._ports.jittered_s(pause_s))
            pause_s = self._ports.longer_s(pause_s)

    # ------------------------------------------------------------------ news

    def _on_builds(self, changes: Sequence[Change[_Sized]]) -> None:
        for change in changes:
            held = change.after or change.before
            if held is None:
                continue
            parts = self._cells.get(held.value.build.cell)
            if parts is None:
                log.error("build.homeless", key=change.key, cell=held.value.build.cell)
            elif change.after is None:
                parts.builds.withdraw(held.value.build.instance_id)
            else:
                if change.before is not None and change.before.mod_revision > held.mod_revision:
                    # Of a store that was set back: by its revision it looks like old news.
                    parts.builds.withdraw(held.value.build.instance_id)
                parts.builds.offer(held.value.build, held.mod_revision, held.value.bytes)

    def _on_cells(self, changes: Sequence[Change[Cell]]) -> None:
        for change in changes:
            cell = change.after.value if change.after is not None else None
            self._hosts.set_cell(_last_field(change.key), is_enabled=cell is not None and cell.enabled)

    async def _keep_looking(self) -> None:
        """Tell the workers when their cells come and go."""
        while True:
            for name, parts in self._cells.items():
                # Before it is known which cells are open, every one of them would look closed.
                is_reachable = parts.feed.is_reachable and self._cells_known.revision > 0
                if is_reachable != self._hosts.is_reachable(name):
                    log.info("cell.turned", cell=name, is_reachable=is_reachable)
                    self._hosts.set_cell(name, is_reachable=is_reachable)
                    parts.builds.wake()
                    parts.moves.wake()
            await asyncio.sleep(CONTACT_LOOK_S)

    # ------------------------------------------------------------------ capacity

    async def _keep_publishing(self, cell: str) -> None:
        """Publish what the cell can take, when that changed: a hint for the front door."""
        while True:
            await asyncio.sleep(self._ports.settings.capacity_s)
            if not (self._hosts.is_reachable(cell) and self._capacity.is_fresh):
                continue
            held = self._capacity.entries.get(keys.CAPACITY.at(cell))
            change = publishable(
                self._hosts.capacity(cell, now_ms=self._ports.clock.now_ms()),
                Seen() if held is None else Seen(held.value, held.mod_revision, held.mod_revision),
                settings=self._ports.settings,
            )
            if change is None:
                continue
            try:
                await commit(self._global, change, timeout_s=self._ports.settings.store_timeout_s)
            except FabricError as trouble:
                log.info("capacity.unpublished", cell=cell, why=trouble.message)


def _last_field(key: str) -> str:
    """The last field of a key, as it was before it was escaped."""
    return unquote(key.rpartition("/")[2])
