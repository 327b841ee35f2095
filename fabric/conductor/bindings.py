"""Keeps the global store's word of where ports are true to the records of this cell's servers (level-triggered).

What has moved is only a hint of where to look. What is written is decided on records read for it, of both stores, and compares them; so
any number of conductors may do this, and a write whose answer was lost is simply looked at again (R12).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from fabric.conductor import records
from fabric.conductor.core import bindings
from fabric.conductor.core.bindings import Placed, Read, Write
from fabric.conductor.core.draft import Found, Ref, ref
from fabric.errors import FabricError, Unavailable
from fabric.model.binding import PortBinding
from fabric.model.host import Host
from fabric.model.instance import Instance
from fabric.model.network import NetworkPort
from fabric.network.follower import NetworkFollower
from fabric.store.base import Committed, Store, Txn
from fabric.store.codec import encode
from fabric.store.keys import HOST, INSTANCE, PORT, PORT_BINDING
from fabric.store.picture import Change, Picture

log = structlog.get_logger()

V = TypeVar("V")

AT_ONCE: Final = 32
"""Ports of one transaction: each compares and writes two keys at most, and the store's limit is 128."""

EVERYTHING_S: Final = 30.0
"""How often everything that is known is compared, whatever was noticed; nothing is read where it is as it should be."""


class _Work(NamedTuple):
    """A port to look at: which keys are its own, and which servers may have it. `project_id` is empty where its record was not seen."""

    port_id: str
    network_id: str
    project_id: str
    instance_ids: tuple[str, ...]


class Bindings:
    """See the module. Told of changes by whoever keeps the pictures; `run` does the work."""

    def __init__(
        self,
        cell: str,
        store: Store,
        global_store: Store,
        follower: NetworkFollower,
        *,
        hosts: Picture[Host],
        jitter: Callable[[], float],
    ) -> None:
        self._cell = cell
        self._store = store
        self._global = global_store
        self._follower = follower
        self._hosts = hosts
        self._jitter = jitter
        self._placed: dict[str, Placed] = {}
        # Which servers' records have a port; one, but for a moment.
        self._having: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._waiting: dict[str, None] = {}
        self._news = asyncio.Event()

    # ------------------------------------------------------------------ what is noticed

    def instance_moved(self, instance_id: str, after: Placed | None) -> None:
        """A server's record is another."""
        before = self._placed.pop(instance_id, None)
        if after is not None:
            self._placed[instance_id] = after
        if before == after:
            return
        for _, port_id in () if before is None else before.ports:
            self._having[port_id].pop(instance_id, None)
            if not self._having[port_id]:
                del self._having[port_id]
            self._look_at(port_id)
        for _, port_id in () if after is None else after.ports:
            self._having[port_id][instance_id] = None
            self._look_at(port_id)

    def host_moved(self, host: str) -> None:
        """A host's inventory is another: perhaps its tunnels end elsewhere."""
        for each in list(self._placed.values()):
            if each.host == host:
                for _, port_id in each.ports:
                    self._look_at(port_id)

    def networks_moved(self, kind: type, changes: Sequence[Change[Any]]) -> None:
        """Ports or bindings are others."""
        if kind is NetworkPort or kind is PortBinding:
            for change in changes:
                held = change.after or change.before
                if held is not None:
                    self._moved(held.value)

    def _moved(self, record: NetworkPort | PortBinding) -> None:
        port_id = record.id if isinstance(record, NetworkPort) else record.port_id
        is_ours = isinstance(record, PortBinding) and record.cell == self._cell
        if is_ours or port_id in self._having:
            self._look_at(port_id)

    def _look_at(self, port_id: str) -> None:
        self._waiting[port_id] = None
        self._news.set()

    # ------------------------------------------------------------------ what is done

    async def run(self) -> None:
        """Write for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_comparing())
            tasks.create_task(self._keep_writing())

    async def _keep_comparing(self) -> None:
        while True:
            await asyncio.sleep(EVERYTHING_S * (0.75 + 0.5 * self._jitter()))
            known = self._follower.picture.of(PortBinding)
            for port_id in self._having:
                if self._wanted(port_id) != known.get(port_id):
                    self._look_at(port_id)
            for binding in list(known.values()):
                if binding.cell == self._cell and binding.port_id not in self._having:
                    self._look_at(binding.port_id)

    def _wanted(self, port_id: str) -> PortBinding | None:
        """What the pictures say that a port's binding should be, where a server has it: a hint of whether to read about it."""
        port = self._follower.picture.get(NetworkPort, port_id)
        placed = None if port is None else self._placed.get(port.instance_id)
        held = None if placed is None else self._hosts.entries.get(HOST.at(placed.host))
        if port is None or placed is None or held is None or (port.network_id, port_id) not in placed.ports:
            return None
        return bindings.binding_of(placed, port.network_id, port_id, held.value)

    async def _keep_writing(self) -> None:
        while True:
            await self._news.wait()
            some = list(self._waiting)[:AT_ONCE]
            for port_id in some:
                del self._waiting[port_id]
            if not self._waiting:
                self._news.clear()
            try:
                await self._write(some)
            except Unavailable as away:
                log.warning("bindings.store_away", ports=len(some), why=away.message)
                await self._later(some)

    async def _later(self, port_ids: Iterable[str]) -> None:
        for port_id in port_ids:
            self._look_at(port_id)
        await asyncio.sleep(0.2 + 0.8 * self._jitter())

    async def _write(self, port_ids: Sequence[str]) -> None:
        """Write what is to be written of these; together, or each by itself where somebody was faster, or where a record does not parse.

        Raises Unavailable.
        """
        try:
            writes = await self._decide(port_ids)
            if not writes or await self._commit(writes):
                return
        except Unavailable:
            raise
        except FabricError as broken:
            log.warning("bindings.apart", ports=len(port_ids), why=broken.message)
        for port_id in port_ids:
            await self._write_alone(port_id)

    async def _write_alone(self, port_id: str) -> None:
        try:
            mine = await self._decide((port_id,))
            if mine and not await self._commit(mine):
                # The watch will bring what was faster, and then it is looked at again; if not that, the next comparison.
                log.info("binding.contended", port=port_id)
                self._look_at(port_id)
                await asyncio.sleep(0.02 * self._jitter())
        except Unavailable:
            raise
        except FabricError as broken:
            log.error("binding.broken", port=port_id, why=broken.message)

    async def _commit(self, writes: Sequence[Write]) -> bool:
        txn = Txn(
            unchanged={key: seen for each in writes for key, seen in each.unchanged.items()},
            put={each.key: encode(each.binding) for each in writes if each.binding is not None},
            delete=[each.key for each in writes if each.binding is None],
        )
        is_written = isinstance(await self._global.commit(txn), Committed)
        if is_written:
            log.info("bindings.written", put=len(txn.put), deleted=len(txn.delete))
        return is_written

    async def _decide(self, port_ids: Sequence[str]) -> list[Write]:
        works = [each for each in map(self._work, port_ids) if each is not None]
        if not works:
            return []
        found = await records.read(self._global, (each for work in works for each in _global_refs(work)))
        servers = sorted({each for work in works for each in work.instance_ids})
        cell = await records.read(self._store, (ref(INSTANCE, each) for each in servers))
        instances = {each.id: each for each in _values(Instance, cell.values())}
        names = sorted({each.host for each in instances.values() if each.host})
        hosts = await records.read(self._store, (ref(HOST, each) for each in names))
        by_name = {each.name: each for each in _values(Host, hosts.values())}
        writes = (
            bindings.write_of(
                Read(
                    cell=self._cell,
                    port_id=work.port_id,
                    binding_key=PORT_BINDING.at(work.network_id, work.port_id),
                    binding=found[PORT_BINDING.at(work.network_id, work.port_id)],
                    port_key=PORT.at(work.project_id, work.port_id),
                    port=found[PORT.at(work.project_id, work.port_id)] if work.project_id else None,
                    instances=tuple(instances[each] for each in work.instance_ids if each in instances),
                    hosts=by_name,
                )
            )
            for work in works
        )
        return [each for each in writes if each is not None]

    def _work(self, port_id: str) -> _Work | None:
        """What to read for a port; None where nothing is known to write about."""
        picture = self._follower.picture
        binding, port = picture.get(PortBinding, port_id), picture.get(NetworkPort, port_id)
        having = dict(self._having.get(port_id, ()))
        if binding is not None and binding.cell == self._cell:
            having[binding.instance_id] = None
        if port is None and binding is None:
            return None  # it comes again when its record is seen
        return _Work(
            port_id=port_id,
            network_id=port.network_id if port is not None else binding.network_id if binding else "",
            project_id="" if port is None else port.project_id,
            instance_ids=tuple(having),
        )


def _global_refs(work: _Work) -> tuple[Ref, ...]:
    binding = ref(PORT_BINDING, work.network_id, work.port_id)
    return (binding, ref(PORT, work.project_id, work.port_id)) if work.project_id else (binding,)


def _values(kind: type[V], found: Iterable[Found]) -> list[V]:
    return [each.value for each in found if isinstance(each.value, kind)]
