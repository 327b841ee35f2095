"""Charging projects for what they ask, together with the writes that make it so, in one transaction.

A project's quota record is the one point that all its creates compare, so creates that come together would refuse each other one by
one. Here those of one project that wait at the same moment are written in one transaction: each is charged, or refused, by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fabric.errors import Conflict, FabricError, NotFound, Unavailable
from fabric.ids import Ids
from fabric.model.quota import Quota
from fabric.observability.failpoints import NO_FAILPOINTS, Failpoints
from fabric.quota.core import Admission, charge
from fabric.store.base import Committed, Refused, Snapshot, Store, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import QUOTA
from fabric.store.settle import commit_settled

V = TypeVar("V")

TOGETHER = 24
"""At most so many in one transaction."""

OPERATIONS = 100
"""At most so many compares, and so many writes, in a transaction of several: etcd takes 128 of either. Most creates have four."""

TOGETHER_BYTES = 1_000_000

PATIENCE_S = 1.5
"""How long a lost answer is looked for: callers are told within 2 s that the store is away."""

ATTEMPTS = 8
PAUSE_S = 0.05


@dataclass(slots=True, eq=False)
class _Waiting:
    admission: Admission
    put: Mapping[str, bytes]
    outcome: asyncio.Future[Committed | Refused]

    @property
    def size_bytes(self) -> int:
        return sum(len(key) + len(value) for key, value in self.put.items())


class Ledger:
    """The quota records of every project, as one API server writes them."""

    def __init__(
        self,
        store: Store,
        *,
        ids: Ids,
        jitter: Callable[[], float],
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> None:
        self._store = store
        self._ids = ids
        self._jitter = jitter
        self._failpoints = failpoints
        self._waiting: dict[str, deque[_Waiting]] = {}
        self._writers: dict[str, asyncio.Task[None]] = {}

    async def admit(self, project_id: str, admission: Admission) -> Committed | Refused:
        """Charge and write.

        Returns:
            Committed, or Refused where a key that the admission itself compares has changed: decide again.

        Raises:
            QuotaExceeded: the project's limit.
            NotFound: the project has no quota record.
            Conflict: others were faster, again and again.
            Ambiguous: it may have been written. The same request_id tells.
            Unavailable: it was not.
        """
        put = {key: encode(value) for key, value in admission.put.items()} | dict(admission.encoded)
        waiting = _Waiting(admission, put, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(project_id, deque()).append(waiting)
        if project_id not in self._writers:
            # A task of its own: the caller who happens to come first may hang up, and the others must not notice.
            self._writers[project_id] = asyncio.create_task(
                self._write(project_id), name=f"quota {project_id}"
            )
        return await waiting.outcome

    async def _write(self, project_id: str) -> None:
        """Write everything that waits, then end."""
        queue = self._waiting[project_id]
        group: list[_Waiting] = []
        try:
            while queue:
                group = _next_group(queue)
                await self._settle(project_id, group)
        except BaseException as broken:
            # Nobody may wait for ever, whatever happened here.
            for each in [*group, *queue]:
                _fail(
                    each, broken if isinstance(broken, FabricError) else Unavailable("the server is stopping")
                )
            if not isinstance(broken, FabricError):
                raise
        finally:
            del self._waiting[project_id]
            del self._writers[project_id]

    async def _settle(self, project_id: str, group: list[_Waiting]) -> None:
        for attempt in range(ATTEMPTS):
            group = [each for each in group if not each.outcome.done()]
            if not group:
                return
            if attempt:
                await asyncio.sleep(PAUSE_S * attempt * (0.5 + self._jitter()))
            try:
                await self._try(project_id, group)
            except (NotFound, Unavailable) as error:
                for each in group:
                    _fail(each, error)
                return
        for each in group:
            _fail(each, Conflict("the project's quota keeps changing; try again"))

    async def _try(self, project_id: str, group: list[_Waiting]) -> None:
        """One transaction for all of the group that still fit. Those whose fate it decides are told."""
        key = QUOTA.at(project_id)
        seen = await self._store.get(key, *_merged(each.admission.unchanged for each in group))
        stored = seen.value(key)
        if stored is None:
            raise NotFound("the project has no quota: it does not exist any more")
        quota = decode(Quota, stored)
        charged: list[_Waiting] = []
        for each in group:
            if _moved(each.admission, seen):
                _tell(each, Refused(seen))
                continue
            try:
                quota = charge(quota, each.admission.charge, op_id=self._ids.new_id())
            except FabricError as refused:
                _fail(each, refused)
                continue
            charged.append(each)
        if not charged:
            return
        await self._failpoints.reach("api.create.decided")
        txn = Txn(
            unchanged={key: seen.seen(key)} | _merged(each.admission.unchanged for each in charged),
            put={key: encode(quota)} | _merged(each.put for each in charged),
        )
        outcome = await commit_settled(
            self._store, txn, mark=charged[0].admission.mark, patience_s=PATIENCE_S
        )
        if isinstance(outcome, Committed):
            await self._failpoints.reach("api.create.accepted")
            for each in charged:
                _tell(each, outcome)


def _next_group(queue: deque[_Waiting]) -> list[_Waiting]:
    """The next ones that fit into one transaction. Two that write one key are one request sent twice, or want the same thing, such as an
    address: one after the other.
    """
    group = [queue.popleft()]
    size, written = group[0].size_bytes, set(group[0].put)
    # What several compare, such as the flavor of all of them, is one compare.
    compared = set(group[0].admission.unchanged)
    while queue and len(group) < TOGETHER:
        following = queue[0]
        size += following.size_bytes
        compared |= following.admission.unchanged.keys()
        operations = max(len(compared), len(written) + len(following.put))
        if size > TOGETHER_BYTES or operations > OPERATIONS or not written.isdisjoint(following.put):
            break
        written |= following.put.keys()
        group.append(queue.popleft())
    return group


def _moved(admission: Admission, seen: Snapshot) -> bool:
    return any(seen.seen(key) != revision for key, revision in admission.unchanged.items())


def _merged(parts: Iterable[Mapping[str, V]]) -> dict[str, V]:
    return {key: value for part in parts for key, value in part.items()}


def _tell(waiting: _Waiting, outcome: Committed | Refused) -> None:
    if not waiting.outcome.done():  # else its caller has hung up
        waiting.outcome.set_result(outcome)


def _fail(waiting: _Waiting, error: FabricError) -> None:
    if not waiting.outcome.done():
        waiting.outcome.set_exception(error)
