"""The store port over etcd's v3 API. Tries members in turn; knows which errors leave a write's fate open (R12)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

import grpc.aio
import structlog
from google.protobuf.message import Message

from fabric.clock import Clock, SystemClock
from fabric.errors import Ambiguous, NotFound, Unavailable
from fabric.pb.etcd.v3 import wire_pb2 as pb
from fabric.store import rules
from fabric.store.base import Batch, Committed, Compacted, Entry, Lease, Refused, Snapshot, Txn
from fabric.store.etcd.endpoints import Endpoints, HungUp
from fabric.store.etcd.faults import Fate, fate, refusal
from fabric.store.etcd.lease import Leases
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.translate import Namespace
from fabric.store.etcd.watch import follow
from fabric.store.etcd.wire import COMPACT, LEASE_GRANT, LEASE_REVOKE, RANGE, TXN, Method

log = structlog.get_logger()

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

SHORTEST_TRY_S = 0.2
RETRY_S = (0.05, 0.4)
LIST_ATTEMPTS = 3


class EtcdStore:
    """One etcd cluster. Make it anywhere; it connects when first used and belongs to that event loop until `close`."""

    def __init__(self, settings: EtcdSettings, *, name: str, clock: Clock | None = None) -> None:
        self._settings = settings
        self._name = name
        self._clock = SystemClock() if clock is None else clock
        self._names = Namespace(settings.prefix)
        self._endpoints = Endpoints(settings, name)
        self._leases = Leases(self._endpoints, settings, self._clock)

    @property
    def name(self) -> str:
        return self._name

    async def get(self, *keys: str) -> Snapshot:
        rules.check_keys(keys)
        for _ in range(LIST_ATTEMPTS):
            try:
                return await self._get(keys)
            except Compacted:
                continue
        raise self._unavailable("history is compacted faster than keys can be read")

    async def list(self, prefix: str) -> Snapshot:
        for _ in range(LIST_ATTEMPTS):
            try:
                return await self._list(prefix)
            except Compacted:
                continue  # pages are read at the first page's revision, and that one is gone
        raise self._unavailable("history is compacted faster than the list can be read")

    async def commit(self, txn: Txn) -> Committed | Refused:
        rules.check(txn)
        is_read_only = not txn.put and not txn.delete
        return self._names.outcome(await self._call(TXN, self._names.txn(txn), may_repeat=is_read_only))

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        return follow(self._endpoints, self._settings, self._names, prefix=prefix, after=after)

    async def grant(self, ttl_s: float) -> Lease:
        asked_at_s = self._clock.boot_s()
        # A grant whose answer is lost leaves a lease nobody uses, which ends by itself: asking again is harmless.
        answer = await self._call(
            LEASE_GRANT, pb.LeaseGrantRequest(ttl=rules.whole_ttl_s(ttl_s)), may_repeat=True
        )
        lease = Lease(id=answer.id, ttl_s=float(answer.ttl))
        self._leases.granted(lease, asked_at_s=asked_at_s)
        return lease

    async def keep_alive(self, lease: Lease) -> None:
        await self._leases.keep(lease)

    async def revoke(self, lease: Lease) -> None:
        self._leases.end(lease.id)
        with contextlib.suppress(NotFound):
            await self._call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease.id), may_repeat=True)

    async def compact(self, revision: int) -> None:
        """Forget history before `revision`. Beyond the port: a store is normally compacted by etcd's own settings.

        Raises:
            Compacted: history before `revision` is gone already, or `revision` is not reached yet.
            Unavailable: the store cannot be reached.
        """
        await self._call(COMPACT, pb.CompactionRequest(revision=revision, physical=True), may_repeat=True)

    async def close(self) -> None:
        self._endpoints.is_closed = True  # first: a stream that breaks now must not be taken up again
        await self._leases.close()
        await self._endpoints.close()

    # ------------------------------------------------------------------ reads

    async def _get(self, keys: tuple[str, ...]) -> Snapshot:
        """Many keys go in transactions of the size etcd takes, all at the first one's revision."""
        wanted = sorted(set(keys))
        revision, entries = 0, dict[str, Entry]()
        for start in range(0, max(1, len(wanted)), rules.TXN_OPS_LIMIT):
            # A transaction without a read is answered from one member's memory, however old; this key never exists.
            chunk = wanted[start : start + rules.TXN_OPS_LIMIT] or ["\0"]
            ops = [self._names.read(key) for key in chunk]
            if revision:
                for op in ops:
                    op.request_range.revision = revision
            answer = await self._call(TXN, pb.TxnRequest(success=ops), may_repeat=True)
            revision = revision or answer.header.revision
            for response in answer.responses:
                entries.update(self._names.entries(response.response_range.kvs))
        return Snapshot(revision, entries)

    async def _list(self, prefix: str) -> Snapshot:
        first, end = self._names.interval(prefix)
        revision, entries = 0, dict[str, Entry]()
        while True:
            request = pb.RangeRequest(
                key=first, range_end=end, limit=self._settings.page_size, revision=revision
            )
            page = await self._call(RANGE, request, may_repeat=True)
            revision = revision or page.header.revision
            entries.update(self._names.entries(page.kvs))
            if not page.more:
                return Snapshot(revision, entries)
            first = page.kvs[-1].key + b"\0"

    # ------------------------------------------------------------------ one call, several members

    async def _call(self, method: Method[Q, A], request: Q, *, may_repeat: bool) -> A:
        """Ask members in turn until one answers or time is up.

        Raises:
            Ambiguous: the request went out, its answer did not come back, and repeating it is not harmless.
            Unavailable: nothing was done, as far as this request goes.
            Compacted: the revision it reads at is gone.
            FabricError: etcd refused it for what it is (`faults.refusal`).
        """
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._settings.call_timeout_s
        pause_s = RETRY_S[0]
        while True:
            left_s = give_up_s - loop.time()
            if left_s < SHORTEST_TRY_S:
                raise self._unavailable("none of its members answers")
            member = await self._endpoints.connected(min(left_s, self._settings.connect_wait_s))
            timeout_s = min(self._settings.try_timeout_s, max(SHORTEST_TRY_S, give_up_s - loop.time()))
            try:
                return await member.call(method, request, timeout_s)
            except grpc.aio.AioRpcError as error:
                code, details = error.code(), error.details() or ""
                verdict = fate(code, details)
                if verdict is Fate.HISTORY_GONE:
                    raise Compacted(0) from None
                if verdict is Fate.REFUSED:
                    raise refusal(code, details, self._name) from None
                self._endpoints.avoid(member)
                log.info(
                    "store.try_failed",
                    store=self._name,
                    endpoint=member.address,
                    method=method.path,
                    code=code.name,
                    details=details,
                )
                if verdict is Fate.UNKNOWN and not may_repeat:
                    raise Ambiguous(
                        f"store {self._name} did not answer; the write may or may not have been applied",
                        store=self._name,
                        code=code.name,
                    ) from None
            except HungUp:
                closed = f"store {self._name} was closed while it was asked"
                raise (Unavailable if may_repeat else Ambiguous)(closed, store=self._name) from None
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_S[1])

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"store {self._name}: {why}", store=self._name)
