"""What a conductor remembers of how hosts behave, and the list of those it shuts out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from fabric.clock import Clock
from fabric.conductor import records
from fabric.conductor.core import fence, guard
from fabric.conductor.core.draft import Draft, ref
from fabric.errors import FabricError
from fabric.ids import Ids
from fabric.store.base import Store
from fabric.store.keys import HOST, SESSION

log = structlog.get_logger()


class Reputation:
    """Strikes and joins of hosts, across their sessions. In memory: a conductor that restarts begins with a clean slate."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # By the certificate too: with one that was revoked anybody may come, and it must not cost the host anything.
        self._strikes: dict[tuple[str, str], guard.Strikes] = {}
        self._joins: dict[str, fence.Joins] = {}

    def is_out(self, host: str, cert_serial: str) -> bool:
        """Count a bad message of whoever comes with this certificate; whether it was one too many."""
        who = host, cert_serial
        strikes = self._strikes.get(who, guard.Strikes()).struck(self._clock.boot_s())
        self._strikes[who] = strikes
        return strikes.is_out

    def joined(self, host: str, *, is_duel: bool) -> None:
        """Count a session that was granted."""
        self._joins[host] = self._of(host).one_more(self._clock.boot_s(), is_duel=is_duel)

    def is_one_duel_too_many(self, host: str) -> bool:
        """Whether one more change of the boot id now would mean two machines."""
        return self._of(host).one_more(self._clock.boot_s(), is_duel=True).is_duel

    def must_wait_ms(self, host: str) -> int:
        """How long the host must wait before its next session; 0 for not at all."""
        return self._of(host).wait_ms(self._clock.boot_s())

    def _of(self, host: str) -> fence.Joins:
        return self._joins.get(host, fence.Joins())


class Quarantines:
    """Hosts to be quarantined, written one after the other until each is."""

    def __init__(self, store: Store, *, clock: Clock, ids: Ids, jitter: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._jitter = jitter
        self._due: dict[tuple[str, str], str] = {}
        self._woken = asyncio.Event()

    def put(self, host: str, cert_serial: str, why: str) -> None:
        """Shut the host out, soon, if this is its certificate: what was done with one that was revoked is not the host's doing."""
        self._due.setdefault((host, cert_serial), why)
        self._woken.set()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._woken.wait()
            if not self._due:
                self._woken.clear()
                continue
            who, why = next(iter(self._due.items()))
            host, cert_serial = who
            try:
                is_done = await self._quarantine(host, cert_serial, why)
            except FabricError as away:
                log.warning("quarantine.delayed", host=host, why=away.message)
                is_done = False
            if is_done:
                del self._due[who]
            else:
                # Behind the others: what stands in the way of one must not keep them in.
                self._due[who] = self._due.pop(who)
                await asyncio.sleep(0.1 + 0.4 * self._jitter())

    async def _quarantine(self, host: str, cert_serial: str, why: str) -> bool:
        draft = Draft(await records.read(self._store, [ref(SESSION, host), ref(HOST, host)]))
        inventory = draft.get(HOST, host)
        if inventory is None or inventory.cert_serial != cert_serial:
            return True
        draft.rely_on(HOST, host)
        if not fence.quarantine(draft, host, why, now_ms=self._clock.now_ms(), op_id=self._ids.new_id()):
            return True
        if not await records.commit(self._store, draft):
            return False
        log.error("host.quarantined", host=host, why=why)
        return True
