"""What a conductor does in the store for a host whose session it holds: each write compares the session first (R1)."""

from __future__ import annotations

from dataclasses import replace

import structlog

from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.core import fence
from fabric.conductor.core.draft import Draft, ref
from fabric.conductor.core.repair import is_even, recounted
from fabric.errors import Bug
from fabric.ids import Ids
from fabric.model.host import SessionState, Use
from fabric.model.instance import Assignment
from fabric.store.base import Committed, Lease, Snapshot, Store, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import ALIVE, ASSIGNMENT, INSTANCE, SESSION, TOMBSTONE, USE

log = structlog.get_logger()

COMPARED_LIMIT = 100
"""Assignments compared one by one when a host's book is made anew; the store compares 128 keys at once."""


def orders_of(host: str) -> tuple[str, str]:
    """The prefixes of everything a host is told."""
    return (ASSIGNMENT.under(host), TOMBSTONE.under(host))


class Upkeep:
    """Every method raises Unavailable while the store is away; None means that the session is lost."""

    def __init__(self, store: Store, *, clock: Clock, ids: Ids) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids

    async def orders(self, host: str, epoch: int) -> Snapshot | None:
        """Everything the host is to be told, read under its fence; and on the way, whether its book is even."""
        while True:
            draft = Draft(await records.read(self._store, [ref(SESSION, host)]))
            if not fence.holds(draft.get(SESSION, host), epoch):
                return None
            draft.rely_on(SESSION, host)
            outcome = await self._store.commit(
                Txn(unchanged=dict(draft.unchanged), reads=(USE.at(host),), read_prefixes=orders_of(host))
            )
            if isinstance(outcome, Committed):
                try:
                    await self._audit(host, outcome.read)
                except Bug as broken:
                    log.error("books.undecodable", host=host, why=broken.message)
                return outcome.read

    async def _audit(self, host: str, found: Snapshot) -> None:
        """Make the host's book of claims anew where it is not the sum of its assignments, which never happens."""
        assignments = {
            key: decode(Assignment, entry.value)
            for key, entry in found.entries.items()
            if key.startswith(ASSIGNMENT.under(host))
        }
        book = found.value(USE.at(host))
        use = None if book is None else decode(Use, book)
        if is_even(use, assignments.values()):
            return
        seen = Draft(
            await records.read(
                self._store, [ref(INSTANCE, each.instance_id) for each in assignments.values()]
            )
        )
        instances = [seen.get(INSTANCE, each.instance_id) for each in assignments.values()]
        made = recounted(
            host,
            assignments.values(),
            [each for each in instances if each],
            op_id=self._ids.new_id(),
            volumes_gib=0 if use is None else use.volumes_gib,
        )
        if use is not None and replace(made, op_id=use.op_id) == use:
            # Only a guest that has not let go of an interface yet.
            return
        # Whoever assigns or lets go changes the book too, so comparing the book compares all of them; and the first hundred besides.
        outcome = await self._store.commit(
            Txn(
                unchanged={
                    USE.at(host): found.seen(USE.at(host)),
                    **{key: found.seen(key) for key in list(assignments)[:COMPARED_LIMIT]},
                },
                put={USE.at(host): encode(made)},
            )
        )
        if isinstance(outcome, Committed):
            log.error("books.recounted", host=host, assignments=len(assignments), was=use, book=made)

    async def alive_again(self, host: str, epoch: int, lease_s: float) -> Lease | None:
        """Put the host's sign of life under a new lease, the old one being lost. Raises NotFound when that one is gone too."""
        while True:
            draft = Draft(await records.read(self._store, [ref(SESSION, host)]))
            if not fence.holds(draft.get(SESSION, host), epoch):
                return None
            draft.rely_on(SESSION, host)
            lease, alive = await self._store.grant(lease_s), ALIVE.at(host)
            outcome = await self._store.commit(
                Txn(
                    unchanged=dict(draft.unchanged),
                    put={alive: encode(str(epoch))},
                    leases={alive: lease.id},
                )
            )
            if isinstance(outcome, Committed):
                return lease

    async def settle_in(self, host: str, epoch: int) -> SessionState | None:
        """Move the host to UP or DRAIN, once it has forgotten all it must (R8); else leave it in JOIN.

        No tombstone can come between the list and the write: whoever puts one compares the session, in a state that is not JOIN, or is
        this conductor answering this host.
        """
        while True:
            left = await self._store.list(TOMBSTONE.under(host))
            draft = Draft(await records.read(self._store, fence.join_reads(host)))
            session = draft.get(SESSION, host)
            if not fence.holds(session, epoch):
                return None
            if left.entries and session is not None and session.state is SessionState.JOIN:
                return SessionState.JOIN
            state = fence.settle_in(draft, host, epoch, now_ms=self._clock.now_ms(), op_id=self._ids.new_id())
            if await records.commit(self._store, draft):
                return state
