"""Changes of the global store that a client may send again: the answer to a request_id is stored in the transaction that has the effect.

The same id with the same body gives the same answer, with another body an error; whatever was lost on the way, nothing is done twice.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from google.protobuf.message import Message

from fabric.api.core.intent import REQUEST_ID_KEPT_MS, replayed
from fabric.clock import Clock
from fabric.errors import Conflict, FabricError
from fabric.model.identity import Principal
from fabric.model.instance import Answered
from fabric.store.base import Committed, Store, Txn
from fabric.store.codec import decode, encode
from fabric.store.keys import ANSWERED, Key
from fabric.store.settle import commit_settled

ATTEMPTS = 5
PAUSE_S = 0.05
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to be written, about which resource; decided on what was read at `unchanged`."""

    resource_id: str
    unchanged: Mapping[str, int]
    put: Mapping[str, bytes] = field(default_factory=dict)
    delete: Sequence[str] = ()
    empty: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The change was made, now or before: which resource it is about, and the store's revision of the write or the read."""

    resource_id: str
    revision: int
    was_done_before: bool


def body_sha256(request: Message, *, without: str = "") -> str:
    """The digest of a request. The field `without` is left out: a stored digest of a password would be one to guess at."""
    bare = type(request)()
    bare.CopyFrom(request)
    if without:
        bare.ClearField(without)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def owner_of(principal: Principal) -> str:
    """Whose request_ids a principal's are: their project's, or their own."""
    return principal.project_id or principal.user_id


def answered_by(request: Message, principal: Principal, *, without: str = "") -> Answered:
    """What is to be remembered of a request that has its request_id, and whose type says what method it is of; of what thing, and for how
    long, is still open. `without` as in `body_sha256`.
    """
    return Answered(
        request_id=request.request_id,  # type: ignore[attr-defined]  # every change has one
        project_id=owner_of(principal),
        method=request.DESCRIPTOR.name.removesuffix("Request"),
        body_sha256=body_sha256(request, without=without),
        resource_id="",
        expire_time_ms=0,
    )


class Once:
    """Makes changes to one store, each once. `kind` is the key under which that store remembers answers."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        kind: Key[Answered] = ANSWERED,
        patience_s: float = PATIENCE_S,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._jitter = jitter
        self._kind = kind
        self._patience_s = patience_s
        self._attempts = attempts

    async def answer(
        self,
        decide: Callable[[], Awaitable[Change]],
        request: Message,
        principal: Principal,
        *,
        without: str = "",
    ) -> Done:
        """`make` for a request that has its request_id, and whose type says what method it is of. `without` as in `body_sha256`."""
        return await self._make(decide, answered_by(request, principal, without=without))

    async def make(
        self,
        decide: Callable[[], Awaitable[Change]],
        *,
        request_id: str,
        method: str,
        body: str,
        principal: Principal,
    ) -> Done:
        """Decide and write, unless it was written before.

        Args:
            decide: reads what it needs and says what to write; called anew when somebody else was faster. What it raises is the answer,
                unless this very request was done meanwhile: then it met its own work.
            request_id: the client's.
            method: what the id was used for: another method's is another body.
            body: the request's digest.
            principal: who asks.

        Raises:
            Conflict: the id was used with another body, or others were faster again and again.
            Ambiguous, Unavailable: as the store has it.
        """
        answered = Answered(
            request_id=request_id,
            project_id=owner_of(principal),
            method=method,
            body_sha256=body,
            resource_id="",
            expire_time_ms=0,
        )
        return await self._make(decide, answered)

    async def _make(self, decide: Callable[[], Awaitable[Change]], answered: Answered) -> Done:
        key = self._kind.at(answered.project_id, answered.request_id)
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(PAUSE_S * attempt * (0.5 + self._jitter()))
            done = await self._done_before(key, answered)
            if done is not None:
                return done
            try:
                change = await decide()
            except FabricError:
                # A client that gave up on an answer sends the request again while the first is still on its way.
                done = await self._done_before(key, answered)
                if done is None:
                    raise
                return done
            answered = replace(
                answered,
                resource_id=change.resource_id,
                expire_time_ms=self._clock.now_ms() + REQUEST_ID_KEPT_MS,
            )
            txn = Txn(
                unchanged={**change.unchanged, key: 0},
                empty=change.empty,
                put={**change.put, key: encode(answered)},
                delete=change.delete,
            )
            outcome = await commit_settled(self._store, txn, mark=key, patience_s=self._patience_s)
            if isinstance(outcome, Committed):
                return Done(change.resource_id, outcome.revision, False)
        raise Conflict("others were changing the same thing; try again")

    async def _done_before(self, key: str, answered: Answered) -> Done | None:
        """What the request was answered with, if it was. Raises Conflict for another request's id."""
        seen = await self._store.get(key)
        stored = seen.value(key)
        if stored is None:
            return None
        return Done(replayed(decode(Answered, stored), answered).resource_id, seen.revision, True)
