"""The cells as the API sees them: each its own store, its own picture of servers and sessions, its own circuit breaker.

One cell that hangs costs the others nothing (I13): every call to a cell has a deadline, and after a few failures in a row calls to it
fail at once, but for one a second that tries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from fabric.api.shelf import Shelf
from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import Ambiguous, Reason, Unavailable
from fabric.model.host import Host, HostReport, Session, Use
from fabric.model.instance import Instance
from fabric.store.base import Committed, Refused, Snapshot, Store, Txn
from fabric.store.keys import HOST, INSTANCE, REPORT, SESSION, USE
from fabric.store.settle import commit_settled

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 1.8
"""Less than the 2 s within which a caller is told that a cell is away."""

FAILURES_LIMIT: Final = 3
HALF_OPEN_S: Final = 1.0


@dataclass(slots=True)
class Breaker:
    """Whether to try: closed while calls succeed; open after a few failures in a row, but for one call a second."""

    failures: int = 0
    tried_boot_s: float = float("-inf")

    def may_try(self, now_boot_s: float) -> bool:
        """Whether a call may go out now; counts as the try when the breaker is open."""
        if self.failures < FAILURES_LIMIT:
            return True
        if now_boot_s - self.tried_boot_s < HALF_OPEN_S:
            return False
        self.tried_boot_s = now_boot_s
        return True

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self, now_boot_s: float) -> None:
        self.failures += 1
        self.tried_boot_s = now_boot_s


class CellView:
    """One cell."""

    def __init__(self, name: str, store: Store, *, clock: Clock) -> None:
        self.name = name
        self.store = store
        self.instances = Shelf(store, INSTANCE.under(), Instance, clock=clock)
        self.sessions = Shelf(store, SESSION.under(), Session, clock=clock)
        self.hosts = Shelf(store, HOST.under(), Host, clock=clock)
        self.uses = Shelf(store, USE.under(), Use, clock=clock)
        self.reports = Shelf(store, REPORT.under(), HostReport, clock=clock)
        self._clock = clock
        self._breaker = Breaker()

    @property
    def is_answering(self) -> bool:
        """Whether the cell has answered lately, and since the last call to it that failed: so a list that found it away has everybody
        know, seconds before the pictures would by themselves.
        """
        picture = self.instances.picture
        has_failed = self._breaker.failures > 0 and self._breaker.tried_boot_s > picture.contact_boot_s
        return picture.is_connected and not has_failed

    async def run(self) -> None:
        """Keep the pictures, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for shelf in (self.instances, self.sessions, self.hosts, self.uses, self.reports):
                tasks.create_task(shelf.run())

    async def reach(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that reads from the cell's store, in time or not at all. Raises Unavailable, naming the cell."""
        try:
            return await self._tried(call)
        except TimeoutError:
            raise self.away() from None

    async def change(self, call: Callable[[], Awaitable[T]]) -> T:
        """As `reach`, for a call that writes: one that was cut off may have taken effect, and its error says so (R12)."""
        try:
            return await self._tried(call)
        except (TimeoutError, Ambiguous):
            raise Ambiguous(
                f"cell {self.name} did not say whether it was done; send the same request again, with its request_id",
                reason=Reason.CELL_UNAVAILABLE,
                cell=self.name,
            ) from None

    async def _tried(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result, counted by the breaker. Raises TimeoutError when it takes too long."""
        if not self._breaker.may_try(self._clock.boot_s()):
            raise self.away()
        try:
            async with within(CALL_TIMEOUT_S):
                result = await call()
        except (TimeoutError, Ambiguous):
            self._breaker.failed(self._clock.boot_s())
            raise
        except Unavailable:
            self._breaker.failed(self._clock.boot_s())
            raise self.away() from None
        self._breaker.succeeded()
        return result

    async def get(self, *keys: str) -> Snapshot:
        """Read keys of the cell's store, linearizably. Raises Unavailable, naming the cell."""
        return await self.reach(lambda: self.store.get(*keys))

    async def commit(self, txn: Txn, *, mark: str) -> Committed | Refused:
        """Write to the cell's store, and know whether it was done. Raises Unavailable or Ambiguous."""
        return await self.change(
            lambda: commit_settled(self.store, txn, mark=mark, patience_s=CALL_TIMEOUT_S)
        )

    def away(self) -> Unavailable:
        """The error that says so."""
        return Unavailable(
            f"cell {self.name} cannot be reached; its servers run on, try again later",
            reason=Reason.CELL_UNAVAILABLE,
            cell=self.name,
        )


class Cells:
    """Every cell this process was told of."""

    def __init__(self, stores: Mapping[str, Store], *, clock: Clock) -> None:
        self.by_name = {name: CellView(name, store, clock=clock) for name, store in sorted(stores.items())}

    def __getitem__(self, name: str) -> CellView:
        view = self.by_name.get(name)
        if view is None:
            raise Unavailable(
                f"cell {name} is not known to this server", reason=Reason.CELL_UNAVAILABLE, cell=name
            )
        return view

    async def run(self) -> None:
        """Keep every cell's pictures, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for view in self.by_name.values():
                tasks.create_task(view.run())
