"""Gives ports of tenant networks back that servers have let go of, or never came to have.

Every scheduler does this for every cell it reaches; each write compares what it read, so they do each other's work at most once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import structlog

from fabric.lifecycle.devices import tenant_ports_of
from fabric.model.instance import Instance, Location, PortLeft
from fabric.model.network import FloatingIp, NetworkPort
from fabric.network.core.releases import At, Release, floating_ip_keys, let_go
from fabric.scheduler.commits import commit, read, seen
from fabric.scheduler.core.port_ends import given_back, taken
from fabric.scheduler.core.saga import forget
from fabric.scheduler.errands import Errands
from fabric.scheduler.ports import Ports
from fabric.store import codec, keys
from fabric.store.base import Committed, Store
from fabric.store.picture import Held

log = structlog.get_logger()

V = TypeVar("V")

READ_TOGETHER = 100
"""Keys in one read: etcd takes 128 operations in a transaction."""


async def held_ports(
    store: Store, locations: Sequence[Location], *, timeout_s: float, now_ms: int
) -> dict[str, dict[str, Release]]:
    """How the ports that these servers hold are given back: by server, then by port. Raises Unavailable."""
    owners = {
        keys.PORT.at(each.project_id, port_id): each.instance_id
        for each in locations
        for port_id in each.port_ids
    }
    if not owners:
        return {}
    read_ports = await _all(store, list(owners), NetworkPort, timeout_s=timeout_s)
    ports = {key: at for key, at in read_ports.items() if at.value.instance_id == owners[key]}
    leading = await _all(
        store,
        [key for at in ports.values() if at.value.ends_with_instance for key in floating_ip_keys(at.value)],
        FloatingIp,
        timeout_s=timeout_s,
    )
    found: dict[str, dict[str, Release]] = {}
    for key, at in ports.items():
        mine = {each: leading[each] for each in floating_ip_keys(at.value) if each in leading}
        found.setdefault(owners[key], {})[at.value.id] = let_go(at, mine, now_ms=now_ms)
    return found


async def _all(store: Store, names: Sequence[str], kind: type[V], *, timeout_s: float) -> dict[str, At[V]]:
    """What is at these keys, in reads of a size that the store takes."""
    found: dict[str, At[V]] = {}
    for begin in range(0, len(names), READ_TOGETHER):
        part = names[begin : begin + READ_TOGETHER]
        snapshot = await read(store, *part, timeout_s=timeout_s)
        found |= {
            key: At(codec.decode(kind, entry.value), entry.mod_revision)
            for key, entry in snapshot.entries.items()
        }
    return found


class PortEnds:
    """The ports of one cell that are to be given back."""

    def __init__(self, cell: str, store: Store, global_store: Store, ports: Ports) -> None:
        self._cell, self._store, self._global = cell, store, global_store
        self._ports, self._clock = ports, ports.clock
        self._timeout_s = ports.settings.store_timeout_s
        self._errands: Errands[PortLeft] = Errands(
            "port", cell, store, keys.PORT_LEFT, ports, self._give_back
        )

    async def run(self) -> None:
        """Give them back, for ever."""
        await self._errands.run()

    async def _give_back(self, held: Held[PortLeft]) -> bool:
        """Give one back, unless its server has it; False where it is too early, or something has changed."""
        left = held.value
        now_ms = self._clock.now_ms()
        if now_ms < left.not_before_ms:
            return False
        location_key, instance_key = keys.LOCATION.at(left.instance_id), keys.INSTANCE.at(left.instance_id)
        work_key = keys.PORT_LEFT.at(left.port_id)
        books = await read(self._global, location_key, timeout_s=self._timeout_s)
        location = seen(books, location_key, Location)
        if location.value is not None:
            # Before the server is looked at: whoever plugs the port in meanwhile needs the work as it is, and this takes it over.
            done_revision = await self._taken_over(held)
            if not done_revision:
                return False
            record = await read(self._store, instance_key, timeout_s=self._timeout_s)
            instance = seen(record, instance_key, Instance).value
            if instance is not None and left.port_id not in tenant_ports_of(instance):
                releases = await held_ports(
                    self._global, [location.value], timeout_s=self._timeout_s, now_ms=now_ms
                )
                release = releases.get(left.instance_id, {}).get(left.port_id)
                change = given_back(location, left.port_id, release, op_id=self._ports.ids.new_id())
                outcome = await commit(self._global, change, timeout_s=self._timeout_s)
                if not isinstance(outcome, Committed):
                    return False
                await self._ports.failpoints.reach("scheduler.port.given_back")
                log.info("port.given_back", cell=self._cell, instance=left.instance_id, port=left.port_id)
        else:
            done_revision = held.mod_revision
        done = await commit(self._store, forget({work_key: done_revision}), timeout_s=self._timeout_s)
        return isinstance(done, Committed)

    async def _taken_over(self, held: Held[PortLeft]) -> int:
        """The revision of the work, from which on nobody plugs the port in by it; 0 where it has changed.

        By work that is for now nobody does: it is not written again, which would look like news and be done again at once.
        """
        if not held.value.not_before_ms:
            key = keys.PORT_LEFT.at(held.value.port_id)
            there = (await read(self._store, key, timeout_s=self._timeout_s)).seen(key)
            return held.mod_revision if there == held.mod_revision else 0
        mine = await commit(self._store, taken(held.value, held.mod_revision), timeout_s=self._timeout_s)
        return mine.revision if isinstance(mine, Committed) else 0
