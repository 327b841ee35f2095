"""Every instance's worker: orders in, one serial queue each, nothing lost between sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import structlog

from fabric.model.instance import Guest
from fabric.model.session import HostState, Order, Release, StatusAck
from hostd.commands.journal import JournalRow
from hostd.commands.site import Site
from hostd.commands.worker import Worker
from hostd.core import reconcile
from hostd.driver.base import REBOOTED, Domain, DomainEvent

_log = structlog.get_logger(__name__)


class Queues:
    """The workers of a host, made when first asked for."""

    def __init__(self, site: Site) -> None:
        self._rows: dict[str, JournalRow] = {}
        self._site = site
        self._tasks: asyncio.TaskGroup | None = None
        self._workers: dict[str, Worker] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._is_trusted = True

    def begin(
        self, rows: Mapping[str, JournalRow], tasks: asyncio.TaskGroup, *, is_trusted: bool = True
    ) -> None:
        """Go on from what the journal says, or where that is lost, from what the first snapshot will say.

        `tasks` owns the workers: they end with it, and not before.
        """
        self._rows.update(rows)
        self._tasks = tasks
        self._is_trusted = is_trusted

    def snapshot_taken(self) -> None:
        """Everything that a whole snapshot has told is in the journal now."""
        if not self._is_trusted:
            self._site.journal.trust()
            self._is_trusted = True

    def orders(self) -> dict[str, Order]:
        """The latest order of each instance."""
        return {
            instance_id: worker.order
            for instance_id, worker in self._workers.items()
            if worker.order is not None
        }

    def guests(self) -> dict[str, Guest]:
        """The guests that are ordered here."""
        return {instance_id: order.guest for instance_id, order in self.orders().items()}

    def take(self, releases: Iterable[Release], orders: Iterable[Order]) -> None:
        """Accept releases and orders, as journalled; what is too old is refused with a line in the log (R2)."""
        for release in releases:
            self._worker(release.instance_id).take_release(release)
        for order in orders:
            refusal = self._worker(order.guest.id).take_order(order, presume_made=not self._is_trusted)
            if refusal is not None:
                _log.warning(
                    "order.refused",
                    instance=order.guest.id,
                    placement_epoch=order.placement_epoch,
                    generation=order.generation,
                    reason=refusal.value,
                )
                self._retire(order.guest.id)

    def bury(self, mentioned: frozenset[str]) -> None:
        """Drop the tombstones that a new session's first snapshot no longer mentions.

        That snapshot was read in the transaction that granted the session (R11), so no order older than it can come any more. A tombstone
        made in this session stays until the next one.
        """
        for instance_id, worker in list(self._workers.items()):
            if instance_id not in mentioned and worker.is_idle:
                self._retire(instance_id)
        for instance_id, row in list(self._rows.items()):
            if row.released and instance_id not in mentioned and instance_id not in self._workers:
                self._site.journal.erase(instance_id)
                del self._rows[instance_id]

    def acked(self, ack: StatusAck) -> None:
        """A status was dealt with. An end that was accepted needs no worker any more; its tombstone stays."""
        if ack.state is HostState.ABSENT and ack.accepted:
            self._retire(ack.instance_id)

    def release_acked(self, instance_id: str) -> None:
        """A release was dealt with."""
        self._retire(instance_id)

    def wake(self) -> None:
        """The permit is back: what waited for it may go on."""
        for worker in self._workers.values():
            worker.wake()

    def noticed(self, event: DomainEvent) -> None:
        """The hypervisor says that something changed; whose it is looks for itself."""
        worker = self._workers.get(event.instance_id)
        if worker is not None:
            worker.look(rebooted=event.detail == REBOOTED)

    def compare(self, domains: Sequence[Domain]) -> None:
        """Let those look again whose domain is not as they left it: events may have been lost.

        The list is older than what workers may know by now, so it is only a hint.
        """
        seen = {domain.instance_id: domain for domain in domains if domain.ours}
        for instance_id, worker in self._workers.items():
            order, settled = worker.order, worker.settled
            if order is None or settled is None:
                continue
            if reconcile.drift(order, settled, seen.get(instance_id)) is not None:
                worker.look()

    def _worker(self, instance_id: str) -> Worker:
        worker = self._workers.get(instance_id)
        if worker is None:
            assert self._tasks is not None, "the queues have not begun"
            worker = Worker(instance_id, self._rows.get(instance_id), self._site)
            self._workers[instance_id] = worker
            self._running[instance_id] = self._tasks.create_task(worker.run(), name=f"worker/{instance_id}")
        return worker

    def _retire(self, instance_id: str) -> None:
        """Let a worker go that has nothing left to do; what it promised stays in the journal."""
        worker = self._workers.get(instance_id)
        if worker is None or not worker.is_idle:
            return
        if worker.row is not None:
            self._rows[instance_id] = worker.row
        self._running.pop(instance_id).cancel()
        del self._workers[instance_id]
