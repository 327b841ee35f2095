"""The session of a host as a fence: who may open it, what moves it, and who has lost it (R1, R7, R8, R11).

Each function takes a draft in which the host's session (and where it says so, its inventory) was read, and writes the next session into
it, or says why not. Every write moves the key's revision, and so fences off whoever wrote for the host before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fabric.conductor.core.draft import Draft, Ref, ref
from fabric.model.host import Session, SessionState
from fabric.model.session import Hello
from fabric.store.keys import ALIVE, HOST, SESSION

EPOCH_LEAP: Final = 2**24
"""How far beyond the store's epoch a host's own may be: a store that was restored from a backup is behind by the sessions since then, far
fewer than this. A host that claims more would use up the epochs of its name, and nobody could ever serve under it again."""

LIVE: Final = frozenset({SessionState.JOIN, SessionState.UP, SessionState.DRAIN})
"""States in which a conductor holds the session and writes for its host."""

JOINS_PER_MINUTE: Final = 12
"""A host that has opened as many is told to pause before the next: a flapping link must not become a stream of writes."""

PAUSE_S: Final = 5.0
"""That pause: with it, no more than twelve a minute go on."""

DUELS_PER_MINUTE: Final = 3
"""More changes of the boot id than this within a minute are no reboots: two machines come with one certificate."""

WINDOW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class No:
    """The host is not let in, and why; how long it should wait."""

    reason: str
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class Joins:
    """When a host has opened sessions here lately, on the boot clock, and when the boot id was another than before."""

    times_s: tuple[float, ...] = ()
    duels_s: tuple[float, ...] = ()

    def one_more(self, now_s: float, *, is_duel: bool) -> Joins:
        """With a session opened now."""
        recent = tuple(time_s for time_s in self.times_s if now_s - time_s < WINDOW_S)
        duels = tuple(time_s for time_s in self.duels_s if now_s - time_s < WINDOW_S)
        return Joins((*recent, now_s), (*duels, now_s) if is_duel else duels)

    def wait_ms(self, now_s: float) -> int:
        """How long until another may be opened; 0 for now."""
        recent = [time_s for time_s in self.times_s if now_s - time_s < WINDOW_S]
        if len(recent) < JOINS_PER_MINUTE:
            return 0
        return max(0, int((recent[-1] + PAUSE_S - now_s) * 1000))

    @property
    def is_duel(self) -> bool:
        """Whether two machines are at it."""
        return len(self.duels_s) > DUELS_PER_MINUTE


def holds(session: Session | None, epoch: int) -> bool:
    """Whether whoever was granted this epoch still holds the session."""
    return session is not None and session.epoch == epoch and session.state in LIVE


def join_reads(host: str) -> tuple[Ref, ...]:
    """What `join` looks at."""
    return (ref(SESSION, host), ref(HOST, host))


def join(
    draft: Draft, host: str, hello: Hello, *, cert_serial: str, conductor: str, now_ms: int, op_id: str
) -> Session | No:
    """Open a session: the next epoch, higher than any the host was ever granted. Keys as in `join_reads`.

    A quarantined host stays out until its administrator approves it again, by writing its inventory after the quarantine began.
    """
    inventory, before = draft.get(HOST, host), draft.get(SESSION, host)
    if inventory is None or inventory.cert_serial != cert_serial:
        return No("this host is not approved with this certificate", 30_000)
    if (
        before is not None
        and before.state is SessionState.QUARANTINED
        and inventory.update_time_ms <= before.since_ms
    ):
        return No(f"quarantined: {before.reason}", 60_000)
    known_epoch = 0 if before is None else before.epoch
    if hello.highest_epoch > known_epoch + EPOCH_LEAP:
        return No("this host claims an epoch that it cannot have been granted", 60_000)
    session = Session(
        host=host,
        epoch=max(known_epoch, hello.highest_epoch) + 1,
        state=SessionState.JOIN,
        conductor=conductor,
        boot_id=hello.boot_id,
        agent_version=hello.agent_version,
        since_ms=now_ms,
        renew_time_ms=now_ms,
        op_id=op_id,
    )
    draft.rely_on(HOST, host)
    draft.put(SESSION, host, value=session)
    return session


def is_another_machine(before: Session | None, hello: Hello) -> bool:
    """Whether the boot id has changed: by a reboot, or because another machine has the same certificate."""
    return before is not None and before.boot_id not in {"", hello.boot_id}


def settle_in(draft: Draft, host: str, epoch: int, *, now_ms: int, op_id: str) -> SessionState | None:
    """Move a joined host to UP, or to DRAIN where the admin has disabled it; or between the two. None: the session is lost.

    From JOIN only by one who has the host's inventory, and has seen that no tombstone of it is left (R8). Keys as in `join_reads`.
    """
    session, inventory = draft.get(SESSION, host), draft.get(HOST, host)
    if session is None or not holds(session, epoch):
        return None
    state = SessionState.UP if inventory is not None and inventory.enabled else SessionState.DRAIN
    if session.state is state:
        return state
    draft.rely_on(HOST, host)
    draft.put(
        SESSION,
        host,
        value=replace(
            session,
            state=state,
            since_ms=now_ms,
            renew_time_ms=now_ms,
            reason=inventory.disabled_reason if inventory is not None and state is SessionState.DRAIN else "",
            op_id=op_id,
        ),
    )
    return state


def unreachable_reads(host: str) -> tuple[Ref, ...]:
    """What `mark_unreachable` looks at."""
    return (ref(SESSION, host), ref(ALIVE, host))


def mark_unreachable(draft: Draft, host: str, *, now_ms: int, op_id: str) -> bool:
    """Say that a host whose lease is gone cannot be reached. Its servers stay as they are: unreachable is not dead (R7).

    The epoch stays, the revision moves: whoever held the session has lost it. That the lease's key is absent is compared too, so that a
    join in between wins.
    """
    session = draft.get(SESSION, host)
    if session is None or session.state not in LIVE or draft.get(ALIVE, host) is not None:
        return False
    draft.rely_on(ALIVE, host)
    draft.put(
        SESSION,
        host,
        value=replace(
            session, state=SessionState.UNREACHABLE, since_ms=now_ms, reason="its session ended", op_id=op_id
        ),
    )
    return True


def quarantine(draft: Draft, host: str, reason: str, *, now_ms: int, op_id: str) -> bool:
    """Shut a host out, with a new epoch: nothing it says is believed, and nothing new is placed on it. Its guests are not touched."""
    session = draft.get(SESSION, host)
    if session is None or session.state is SessionState.QUARANTINED:
        return False
    draft.put(
        SESSION,
        host,
        value=replace(
            session,
            epoch=session.epoch + 1,
            state=SessionState.QUARANTINED,
            since_ms=now_ms,
            reason=reason,
            op_id=op_id,
        ),
    )
    return True
