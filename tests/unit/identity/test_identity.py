from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import Ambiguous, InvalidRequest, PermissionDenied, TooMuch, Unauthenticated, Unavailable
from fabric.identity.bootstrap import ensure_administrator
from fabric.identity.core import (
    FREE_TRIES,
    LONGEST_TOKEN_S,
    LONGEST_WAIT_S,
    Failures,
    check_password,
    check_wait,
    failed_again,
    lifetime_s,
    make_token,
    principal_of,
)
from fabric.identity.directory import Directory, project_writes, user_writes
from fabric.identity.login import AT_ONCE, Login
from fabric.identity.passwords import CHEAP, Passwords
from fabric.identity.tokens import ASK_AGAIN_S, DEAF_S, OUTAGE_S, REMEMBER_S, Tokens
from fabric.ids import RandomIds
from fabric.model.identity import Project, Role, RoleGrant, Token, User
from fabric.model.quota import Charge
from fabric.store.base import Committed, Refused, Snapshot, Txn
from fabric.store.keys import TOKEN
from fabric.store.memory import MemoryStore
from fabric.workers import Inline
from tests.unit.store.virtual import LoopClock, run

PROJECT = Project(id="11111111-1111-4111-8111-111111111111", name="nebula_prod")
USER = User(id="22222222-2222-4222-8222-222222222222", name="nebula_admin", default_project_id=PROJECT.id)
NOW_MS = 1_000_000_000

T = TypeVar("T")


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def now_ms(self) -> int:
        return NOW_MS + int((self.s - 1000.0) * 1000)

    def boot_s(self) -> float:
        return self.s


class Flaky(MemoryStore):
    """A store that may be away, or lose the answer to a write that it applied."""

    is_away = False
    hangs = False
    loses_answers = False
    before_commit: Callable[[], Awaitable[None]] | None = None

    async def get(self, *keys: str) -> Snapshot:
        while self.hangs:
            await asyncio.sleep(1.0)
        if self.is_away:
            raise Unavailable("away")
        return await super().get(*keys)

    async def commit(self, txn: Txn) -> Committed | Refused:
        if self.is_away:
            raise Unavailable("away")
        happening, self.before_commit = self.before_commit, None
        if happening is not None:
            await happening()
        outcome = await super().commit(txn)
        if self.loses_answers:
            self.loses_answers = False
            raise Ambiguous("lost")
        return outcome


# ------------------------------------------------------------------------------------------ decisions


@given(st.integers(-10, 10**7))
def test_no_token_outlives_an_hour(asked_s: int) -> None:
    assert 0 < lifetime_s(asked_s) <= LONGEST_TOKEN_S


def test_a_token_is_for_one_project_with_the_users_role() -> None:
    token = make_token(USER, PROJECT, Role.MEMBER, asked_project=PROJECT.id, now_ms=NOW_MS, asked_s=60)
    principal = principal_of(token, now_ms=NOW_MS)

    assert principal is not None
    assert (principal.project_id, principal.role, principal.system_admin) == (PROJECT.id, Role.MEMBER, False)
    assert principal_of(token, now_ms=NOW_MS + 60_000) is None


def test_no_role_and_no_project_are_refused_in_the_same_words() -> None:
    told = []
    for project in (PROJECT, None):
        with pytest.raises(PermissionDenied) as raised:
            make_token(USER, project, Role.UNSPECIFIED, asked_project="x", now_ms=0, asked_s=0)
        told.append(raised.value.message)

    assert told[0] == told[1]


@pytest.mark.parametrize("password", ["short", "x" * 1025, "nebula_admin", "NEBULA_ADMIN"])
def test_a_password_that_is_no_good_is_refused(password: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_password(password, user_name="nebula_admin")

    assert raised.value.field == "password"
    assert password not in raised.value.message


def test_who_guesses_waits_longer_each_time_but_not_for_ever() -> None:
    failures, now_s, waits = Failures(), 0.0, []
    for _ in range(20):
        failures = failed_again(failures, now_s=now_s)
        try:
            check_wait(failures, now_s=now_s)
            waits.append(0.0)
        except TooMuch as wait:
            waits.append(wait.retry_after_s or 0.0)
            now_s += waits[-1]
            check_wait(failures, now_s=now_s)

    assert waits[:FREE_TRIES] == [0.0] * FREE_TRIES
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_S
    check_wait(failures, now_s=now_s + 10_000)


# ------------------------------------------------------------------------------------------ tokens


@pytest.fixture
async def store() -> AsyncIterator[Flaky]:
    made = Flaky("global", progress_s=0.02)
    yield made
    await made.close()


def _token(now_ms: int = NOW_MS) -> Token:
    return make_token(USER, PROJECT, Role.MEMBER, asked_project="", now_ms=now_ms, asked_s=0)


async def test_a_secret_is_stored_nowhere(store: Flaky) -> None:
    secret = await Tokens(store, clock=Clock(), ids=RandomIds()).issue(_token())

    assert secret.startswith("fab_")
    assert len(secret) >= 47
    for change in store.history:
        assert secret not in change.key
        assert secret.encode() not in (change.after or b"")


def test_a_token_whose_answer_was_lost_is_issued_once() -> None:
    async def world() -> None:
        store = Flaky("global")
        tokens = Tokens(store, clock=Clock(), ids=RandomIds())
        store.loses_answers = True

        secret = await tokens.issue(_token())

        assert (await tokens.principal(secret)).user_id == USER.id
        assert len((await store.list(TOKEN.under())).entries) == 1
        await store.close()

    run(world())


@pytest.mark.parametrize("secret", ["", "fab_", "fab_x", "other", "fab_" + "é" * 10, "fab_" + "x" * 1000])
async def test_what_is_no_token_is_refused_in_the_same_words(store: Flaky, secret: str) -> None:
    with pytest.raises(Unauthenticated) as raised:
        await Tokens(store, clock=Clock(), ids=RandomIds()).principal(secret)

    assert raised.value.message == "the token is not valid; issue a new one"


async def test_a_revocation_by_another_server_is_heard(store: Flaky) -> None:
    clock = Clock()
    here, there = (Tokens(store, clock=clock, ids=RandomIds()) for _ in range(2))
    running = asyncio.create_task(here.run())
    secret = await here.issue(_token())
    await asyncio.sleep(0.01)
    token_id = (await here.principal(secret)).token_id

    await there.revoke(token_id)
    await asyncio.sleep(0.01)
    store.is_away = True  # so that only what was heard can tell

    with pytest.raises((Unauthenticated, Unavailable)):
        await here.principal(secret)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_token_that_is_used_while_it_is_ended_is_not_remembered(store: Flaky) -> None:
    """It was forgotten before it was ended, and remembered by whoever came in between, until the watch told: after the answer."""
    tokens = Tokens(store, clock=Clock(), ids=RandomIds())
    running = asyncio.create_task(tokens.run())
    secret = await tokens.issue(_token())
    await asyncio.sleep(0.01)
    token_id = (await tokens.principal(secret)).token_id

    async def meanwhile() -> None:
        await tokens.principal(secret)

    store.before_commit = meanwhile
    await tokens.revoke(token_id)

    with pytest.raises(Unauthenticated):
        await tokens.principal(secret)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_server_that_hears_nothing_asks_the_store(store: Flaky) -> None:
    clock = Clock()
    tokens = Tokens(store, clock=clock, ids=RandomIds())
    secret = await tokens.issue(_token())
    token_id = (await tokens.principal(secret)).token_id
    await store.commit(Txn(delete=(TOKEN.at(token_id),)))
    clock.s += DEAF_S + 1

    with pytest.raises(Unauthenticated):
        await tokens.principal(secret)


def test_a_token_revoked_while_it_is_looked_up_is_not_remembered_by_a_watch_that_begins_anew() -> None:
    """A look-up whose answer was slow came back after the watch had broken and begun anew: the revocation in between was in neither, so the
    token was believed for thirty seconds more.
    """

    class Slow(Flaky):
        is_slow = False

        async def get(self, *keys: str) -> Snapshot:
            answer = await super().get(*keys)
            if self.is_slow and keys != (TOKEN.under(),):
                await asyncio.sleep(0.1)
            return answer

    async def world() -> None:
        store, clock = Slow("global"), LoopClock()
        tokens = Tokens(store, clock=clock, ids=RandomIds())
        secret = await tokens.issue(_token(clock.now_ms()))
        token_id = (await tokens.principal(secret)).token_id
        store.is_slow = True
        looking_up = asyncio.create_task(tokens.principal(secret))
        await asyncio.sleep(0.01)
        await store.commit(Txn(delete=(TOKEN.at(token_id),)))
        watching = asyncio.create_task(tokens.run())

        await looking_up
        try:
            with pytest.raises(Unauthenticated):
                await tokens.principal(secret)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await store.close()

    run(world())


async def test_through_an_outage_a_token_seen_lately_is_believed_for_a_while(store: Flaky) -> None:
    clock = Clock()
    tokens = Tokens(store, clock=clock, ids=RandomIds())
    secret = await tokens.issue(_token())
    await tokens.principal(secret)
    store.is_away = True

    clock.s += REMEMBER_S + 1
    assert (await tokens.principal(secret)).user_id == USER.id
    clock.s += OUTAGE_S
    with pytest.raises(Unavailable):
        await tokens.principal(secret)


def test_a_store_that_hangs_costs_a_known_token_next_to_nothing() -> None:
    async def world() -> None:
        store, clock = Flaky("global"), LoopClock()
        tokens = Tokens(store, clock=clock, ids=RandomIds())
        secret = await tokens.issue(_token(clock.now_ms()))
        await tokens.principal(secret)
        store.hangs = True
        begin_s = clock.boot_s()

        for _ in range(10):
            assert (await tokens.principal(secret)).user_id == USER.id

        assert clock.boot_s() - begin_s < 0.5
        store.hangs = False
        await asyncio.sleep(ASK_AGAIN_S)
        await store.commit(Txn(delete=(TOKEN.at((await tokens.principal(secret)).token_id),)))
        with pytest.raises(Unauthenticated):
            await tokens.principal(secret)
        await store.close()

    run(world())


async def test_an_expired_token_is_refused_even_from_memory(store: Flaky) -> None:
    clock = Clock()
    tokens = Tokens(store, clock=clock, ids=RandomIds())
    secret = await tokens.issue(_token())
    await tokens.principal(secret)
    store.is_away = True
    clock.s += OUTAGE_S - 1

    token = make_token(USER, PROJECT, Role.MEMBER, asked_project="", now_ms=NOW_MS, asked_s=60)
    store.is_away = False
    clock.s += ASK_AGAIN_S
    short = await tokens.issue(token)
    with pytest.raises(Unauthenticated):
        await tokens.principal(short)


# ------------------------------------------------------------------------------------------ logging in


async def _login(store: Flaky, clock: Clock) -> Login:
    passwords = Passwords(Inline(), CHEAP)
    user = User(
        id=USER.id,
        name=USER.name,
        default_project_id=PROJECT.id,
        password_hash=await passwords.hash(RIGHT),
    )
    grant = RoleGrant(project_id=PROJECT.id, user_id=USER.id, role=Role.MEMBER)
    parts = (project_writes(PROJECT, Charge(), op_id="x"), user_writes(user, grant))
    await store.commit(Txn(put={key: value for part in parts for key, value in part.put.items()}))
    return Login(Directory(store), passwords, Tokens(store, clock=clock, ids=RandomIds()), clock)


RIGHT = "correct horse"


async def _try(login: Login, *, user: str = USER.name, password: str = RIGHT, peer: str = "a") -> str:
    secret, token = await login.login(user_name=user, password=password, project="", asked_s=0, peer=peer)
    assert token.project_name == PROJECT.name
    return secret


async def test_the_right_password_gets_a_token_for_the_default_project(store: Flaky) -> None:
    assert await _try(await _login(store, Clock()))


async def test_guessing_locks_out_the_guesser_and_nobody_else(store: Flaky) -> None:
    login = await _login(store, Clock())
    for _ in range(FREE_TRIES + 1):
        with pytest.raises(Unauthenticated):
            await _try(login, password="wrong")

    with pytest.raises(TooMuch):
        await _try(login)
    assert await _try(login, peer="b")


class Busy:
    """Workers that are never done, until they are told so."""

    def __init__(self) -> None:
        self.begun = 0
        self.free = asyncio.Event()

    async def run(self, work: Callable[[], T]) -> T:
        self.begun += 1
        await self.free.wait()
        return work()


async def _begun(asyncio_tasks: int = 50) -> None:
    """Let what can go on go on; nothing here waits for time."""
    for _ in range(asyncio_tasks):
        await asyncio.sleep(0)


async def test_one_address_cannot_keep_all_others_from_logging_in(store: Flaky) -> None:
    login, busy = await _login(store, Clock()), Busy()
    login._passwords._workers = busy
    flood = [
        asyncio.create_task(_try(login, user=f"guess-{number}", peer="evil")) for number in range(3 * AT_ONCE)
    ]
    await _begun()
    honest = asyncio.create_task(_try(login, peer="good"))
    await _begun()
    hashing = busy.begun

    busy.free.set()
    outcomes = await asyncio.gather(*flood, return_exceptions=True)

    assert hashing == AT_ONCE + 1
    assert await honest
    assert sum(isinstance(each, TooMuch) for each in outcomes) == 2 * AT_ONCE
    with pytest.raises(Unauthenticated):
        await _try(login, user="guess", peer="evil")


async def test_who_has_guessed_before_guesses_one_at_a_time(store: Flaky) -> None:
    clock = Clock()
    login, busy = await _login(store, clock), Busy()
    for _ in range(FREE_TRIES):
        with pytest.raises(Unauthenticated):
            await _try(login, password="wrong")
    clock.s += LONGEST_WAIT_S
    login._passwords._workers = busy
    guesses = [asyncio.create_task(_try(login, password=f"wrong {number}")) for number in range(AT_ONCE)]
    await _begun()
    hashing = busy.begun

    busy.free.set()
    outcomes = await asyncio.gather(*guesses, return_exceptions=True)

    assert hashing == 1
    assert sum(isinstance(each, TooMuch) for each in outcomes) == AT_ONCE - 1


async def test_a_user_that_does_not_exist_is_hashed_for_all_the_same(store: Flaky) -> None:
    login = await _login(store, Clock())
    hashed: list[str] = []
    matches = login._passwords.matches

    async def counted(password_hash: str, password: str) -> bool:
        hashed.append(password)
        return await matches(password_hash, password)

    login._passwords.matches = counted  # type: ignore[method-assign]  # to count, nothing is replaced
    for user in (USER.name, "nobody"):
        with pytest.raises(Unauthenticated):
            await _try(login, user=user, password="wrong")

    assert hashed == ["wrong", "wrong"]


async def test_the_first_administrator_is_made_once_whoever_comes_first(store: Flaky) -> None:
    async def make(password: str) -> None:
        await ensure_administrator(
            store,
            user_name="admin",
            project_name="admin",
            password=password,
            limit=Charge(),
            passwords=Passwords(Inline(), CHEAP),
            clock=Clock(),
            ids=RandomIds(),
            pause_s=0,
        )

    store.loses_answers = True
    await asyncio.gather(make("first password"), make("second password"))
    before = store.revision
    await make("third password")

    user = await Directory(store).find_user("admin")
    assert user is not None
    assert user.system_admin
    assert store.revision == before
    project = await Directory(store).find_project("admin")
    assert (await Directory(store).standing(user, project)).role is Role.ADMIN


async def test_the_first_administrator_waits_while_too_many_passwords_are_hashed(store: Flaky) -> None:
    """The API server is open while it waits for its administrator: a flood of logins, which are hashed by the same workers, ended it."""

    class Flooded:
        refusals = 2

        async def run(self, work: Callable[[], T]) -> T:
            if self.refusals:
                self.refusals -= 1
                raise TooMuch("too much of this is being asked at once", retry_after_s=1.0)
            return work()

    await ensure_administrator(
        store,
        user_name="admin",
        project_name="admin",
        password="first password",
        limit=Charge(),
        passwords=Passwords(Flooded(), CHEAP),
        clock=Clock(),
        ids=RandomIds(),
        pause_s=0,
    )

    assert await Directory(store).find_user("admin") is not None
