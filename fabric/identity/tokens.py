"""Tokens: opaque secrets, stored by their SHA-256 under a lease, remembered for a moment, forgotten at once when revoked.

Why opaque: the store next to us is strongly consistent, so a lookup is cheap, a revocation is a deletion, and there is no signing key to
leak or to rotate (security.md, section 6). A token that was seen good stays so in memory for 30 s at most, unless the watch tells
otherwise first. When the store cannot be reached, one seen good in the last ten minutes is still believed: cells go on working.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import structlog

from fabric.clock import Clock
from fabric.deadlines import within
from fabric.errors import Ambiguous, Conflict, Unauthenticated, Unavailable
from fabric.identity.core import principal_of
from fabric.ids import Ids
from fabric.model.identity import Principal, Token
from fabric.store.base import Committed, Compacted, Store, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import TOKEN, token_key
from fabric.store.parsed import parsed
from fabric.store.settle import commit_settled

log = structlog.get_logger()

PREFIX = "fab_"
"""So that people and scanners see what they have found."""

REMEMBER_S = 30.0
OUTAGE_S = 600.0
DEAF_S = 6.0
"""A watch that has brought nothing for so long, not even a sign of life, may have missed a revocation."""

KNOWN_PATIENCE_S = 0.15
"""How long the store may take to confirm a token that is known: it answers in a few milliseconds, or it is away."""

ASK_AGAIN_S = 2.0
"""How long a store that did not answer is left alone about tokens that are known."""

REMEMBERED = 10_000

ENDED_AT_ONCE = 100
"""Tokens in one transaction: etcd takes 128 operations in one."""

NOTHING: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Seen:
    token: Token
    at_s: float


class Tokens:
    """Issues, checks and revokes tokens. `run` keeps the memory honest; without it nothing is remembered."""

    def __init__(self, store: Store, *, clock: Clock, ids: Ids) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._heard_s = float("-inf")
        self._forgotten = 0
        self._ended: OrderedDict[str, None] = OrderedDict()
        self.hearings = 0
        """How often the watch began anew: of what ended in between it tells nothing."""
        self._ask_again_s = float("-inf")

    async def issue(self, token: Token, *, unchanged: Mapping[str, int] = NOTHING) -> str:
        """Store a token and return its secret, which is stored nowhere. `unchanged` is what it goes by: keys, and the revisions they had.

        Raises:
            Conflict: that is not so any more.
            Unavailable, Ambiguous: as the store has it.

        The record's id becomes the digest that it is stored under, so that its bearer can be told to end it by id.
        """
        secret = PREFIX + base64.urlsafe_b64encode(self._ids.new_secret(32)).rstrip(b"=").decode()
        key = token_key(secret)
        lease = await self._store.grant((token.expire_time_ms - token.issue_time_ms) / 1000)
        stored = replace(token, id=key.removeprefix(TOKEN.under()))
        txn = Txn(unchanged={**unchanged, key: 0}, put={key: encode(stored)}, leases={key: lease.id})
        if not isinstance(await commit_settled(self._store, txn, mark=key), Committed):
            raise Conflict("the user was changed in this very moment; log in again")
        return secret

    def remembers(self, secret: str) -> bool:
        """Whether a token was seen good lately. It may have ended since: `principal` tells."""
        return token_key(secret) in self._seen

    async def principal(self, secret: str) -> Principal:
        """Who bears the token.

        Raises:
            Unauthenticated: in the same words for unknown, expired, revoked and malformed.
            Unavailable: the store cannot be asked, and the token was not seen lately.
        """
        if not secret.startswith(PREFIX) or len(secret) > 128 or not secret.isascii():
            raise _refused()
        key = token_key(secret)
        now_s = self._clock.boot_s()
        seen = self._seen.get(key)
        if seen is not None and now_s - seen.at_s <= REMEMBER_S and now_s - self._heard_s <= DEAF_S:
            return self._bearer(seen.token)
        known = seen if seen is not None and now_s - seen.at_s <= OUTAGE_S else None
        forgotten = self._forgotten
        try:
            stored = await self._stored(key, is_known=known is not None)
        except Unavailable:
            if known is None:
                raise
            log.warning("token.believed", token_id=known.token.id, age_s=round(now_s - known.at_s))
            return self._bearer(known.token)
        if stored is None:
            self._seen.pop(key, None)
            raise _refused()
        token = decode(Token, stored)
        if forgotten == self._forgotten:  # else it may have been revoked between the read and now
            self._remember(key, _Seen(token, now_s))
        return self._bearer(token)

    def has_ended(self, token_id: str) -> bool:
        """Whether the watch has told of a token's end lately."""
        return TOKEN.at(token_id) in self._ended

    async def stands(self, token_id: str) -> bool:
        """Whether a token that was good is still: not revoked, not expired. A store that does not answer says nothing against it."""
        key = TOKEN.at(token_id)
        try:
            async with within(DEAF_S):
                return (await self._store.get(key)).value(key) is not None
        except (TimeoutError, Unavailable):
            return True

    async def _stored(self, key: str, *, is_known: bool) -> bytes | None:
        """The stored token. Raises Unavailable: soon where the token is known, because the call itself has yet to be answered in time."""
        if is_known and self._clock.boot_s() < self._ask_again_s:
            raise Unavailable("the store did not answer a moment ago")
        try:
            async with within(KNOWN_PATIENCE_S if is_known else None):
                return (await self._store.get(key)).value(key)
        except (TimeoutError, Unavailable) as away:
            self._ask_again_s = self._clock.boot_s() + ASK_AGAIN_S
            if isinstance(away, Unavailable):
                raise
            raise Unavailable("the store does not answer", store=self._store.name) from None

    async def revoke(self, token_id: str) -> None:
        """End a token now. One that is gone already is fine. Raises Unavailable."""
        await self._end((TOKEN.at(token_id),))

    async def revoke_all(self, ends: Callable[[Token], bool]) -> None:
        """End every token that this is true of. Raises Unavailable, with some of them ended.

        Whoever takes something from a user writes that first: a token issued since then went by what is true now.
        """
        keys = [key for key, token in parsed(Token, await self._store.list(TOKEN.under())) if ends(token)]
        for at in range(0, len(keys), ENDED_AT_ONCE):
            await self._end(tuple(keys[at : at + ENDED_AT_ONCE]))

    async def _end(self, keys: tuple[str, ...]) -> None:
        self._forget(keys)
        try:
            # Deleting twice is deleting once: an answer that was lost needs no settling, only another try.
            with contextlib.suppress(Ambiguous):
                await self._store.commit(Txn(delete=keys))
                return
            await self._store.commit(Txn(delete=keys))
        finally:
            # Once more: who used one meanwhile has had it remembered, and the watch may tell of its end only after the answer to this.
            self._forget(keys)

    def _forget(self, keys: tuple[str, ...]) -> None:
        self._forgotten += 1
        for key in keys:
            self._seen.pop(key, None)

    async def run(self) -> None:
        """Follow the store's revocations until cancelled."""
        while True:
            try:
                revision = (await self._store.get(TOKEN.under())).revision
                # What happened before this revision was not seen by the watch: forget it, and what is being looked up just now.
                self._forgotten += 1
                self._seen.clear()
                self.hearings += 1
                self._heard_s = self._clock.boot_s()
                await self._follow(revision)
            except (Unavailable, Compacted) as lost:
                log.info("token.watch_lost", why=type(lost).__name__)
            await asyncio.sleep(0.5)

    async def _follow(self, revision: int) -> None:
        batches = self._store.watch(TOKEN.under(), after=revision)
        try:
            async for batch in batches:
                self._heard_s = self._clock.boot_s()
                for event in batch.events:
                    if event.value is None:
                        self._forget((event.key,))
                        self._ended[event.key] = None
                while len(self._ended) > REMEMBERED:
                    self._ended.popitem(last=False)
        finally:
            if isinstance(batches, AsyncGenerator):
                await batches.aclose()

    def _remember(self, key: str, seen: _Seen) -> None:
        self._seen[key] = seen
        self._seen.move_to_end(key)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _bearer(self, token: Token) -> Principal:
        principal = principal_of(token, now_ms=self._clock.now_ms())
        if principal is None:
            raise _refused()
        return principal


def _refused() -> Unauthenticated:
    return Unauthenticated("the token is not valid; issue a new one")
