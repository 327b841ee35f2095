"""A conductor's part in tenant networks, put together: the picture of them, hosts' plans, and where ports and gateways are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fabric.clock import Clock
from fabric.conductor.bindings import Bindings
from fabric.conductor.gateways import Gateways
from fabric.conductor.plans import Plans
from fabric.model.host import Host, Session
from fabric.network.core.picture import HostRef
from fabric.network.follower import NetworkFollower
from fabric.store.base import Store
from fabric.store.picture import Change, Picture
from fabric.store.schema import opened


class Networks:
    """`run` must be running. `on_touched` is told the names of this cell's hosts whose plans may have changed; it must not wait."""

    def __init__(
        self,
        cell: str,
        store: Store,
        global_store: Store,
        *,
        hosts: Picture[Host],
        sessions: Picture[Session],
        clock: Clock,
        jitter: Callable[[], float],
        on_touched: Callable[[Iterable[str]], None],
    ) -> None:
        self._cell = cell
        self._global = global_store
        self._on_touched = on_touched
        self._follower = NetworkFollower(global_store, clock=clock, on_change=self._moved)
        self.plans = Plans(self._follower, hosts, clock=clock)
        self.bindings = Bindings(cell, store, global_store, self._follower, hosts=hosts, jitter=jitter)
        self._gateways = Gateways(
            cell, global_store, self._follower, hosts=hosts, sessions=sessions, jitter=jitter
        )

    async def run(self) -> None:
        """Follow, and write what is this cell's to write, until cancelled. Raises WrongState for a store of another schema."""
        await opened(self._global)
        async with asyncio.TaskGroup() as tasks:
            for life in (self._follower, self.bindings, self._gateways):
                tasks.create_task(life.run(), name=type(life).__name__)

    def host_moved(self, host: str) -> None:
        """A host's inventory is another: perhaps where its tunnels end, or what it leads to."""
        self.bindings.host_moved(host)
        self._gateways.host_moved(host)

    def session_moved(self, host: str) -> None:
        """A host's session is another: perhaps it is lost, or there at last."""
        self._gateways.host_moved(host)

    def _moved(self, kind: type, changes: Sequence[Change[Any]], touched: Iterable[HostRef]) -> None:
        self.bindings.networks_moved(kind, changes)
        self._gateways.networks_moved(kind, changes)
        # In order, or a simulation could not be replayed.
        self._on_touched(sorted(each.name for each in touched if each.cell == self._cell))
