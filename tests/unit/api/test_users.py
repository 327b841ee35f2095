"""What an administrator gives and takes: it holds for the tokens that are there, and for those that are being issued just then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from fabric.api.projects import ProjectHandlers
from fabric.api.users import UserHandlers
from fabric.errors import Conflict, InvalidRequest, NotFound, PermissionDenied, Unauthenticated, Unavailable
from fabric.identity.bootstrap import ensure_administrator
from fabric.identity.directory import Directory
from fabric.identity.login import Login
from fabric.identity.passwords import CHEAP, Passwords
from fabric.identity.tokens import Tokens
from fabric.ids import RandomIds
from fabric.model.identity import Principal, Role, Token
from fabric.model.quota import Charge
from fabric.pb.identity.v1 import project_service_pb2
from fabric.pb.identity.v1 import user_service_pb2 as pb
from fabric.store.base import Committed, Refused, Snapshot, Txn
from fabric.store.keys import TOKEN
from fabric.store.memory import MemoryStore
from fabric.workers import Inline
from tests.unit.store.virtual import LoopClock

PASSWORD = "correct horse"


class Store(MemoryStore):
    """A store that lets something happen right before a write, and that may be away for lists."""

    before_commit: Callable[[Txn], object] | None = None
    lists_are_away = False

    async def commit(self, txn: Txn) -> Committed | Refused:
        happening, self.before_commit = self.before_commit, None
        if happening is not None:
            await happening(txn)  # type: ignore[misc]  # a coroutine function: see the tests
        return await super().commit(txn)

    async def list(self, prefix: str) -> Snapshot:
        if self.lists_are_away:
            raise Unavailable("away")
        return await super().list(prefix)


class World:
    """Two projects; `root`, who administers the system, and `ann`, a member of the first."""

    def __init__(self) -> None:
        self.store = Store("global")
        self._numbers = count()
        self._clock, self._ids, self._passwords = LoopClock(), RandomIds(), Passwords(Inline(), CHEAP)
        clock, ids, passwords = self._clock, self._ids, self._passwords
        self.tokens = Tokens(self.store, clock=clock, ids=ids)
        self.users = UserHandlers(
            self.store, passwords=passwords, tokens=self.tokens, clock=clock, ids=ids, jitter=lambda: 0.0
        )
        self._projects = ProjectHandlers(
            self.store, default_limit=Charge(), clock=clock, ids=ids, jitter=lambda: 0.0
        )
        self._login = Login(Directory(self.store), passwords, self.tokens, clock)
        self.root = Principal()

    async def begin(self) -> World:
        await ensure_administrator(
            self.store,
            user_name="root",
            project_name="prod",
            password=PASSWORD,
            limit=Charge(),
            passwords=self._passwords,
            clock=self._clock,
            ids=self._ids,
        )
        root = await Directory(self.store).find_user("root")
        assert root is not None
        self.root = Principal(user_id=root.id, user_name=root.name, system_admin=True)
        lab = project_service_pb2.Project(name="lab")
        await self._projects.create_project(
            project_service_pb2.CreateProjectRequest(request_id=self.rid(), project=lab), self.root
        )
        await self.create("ann", role="member")
        return self

    def rid(self) -> str:
        return f"r{next(self._numbers)}"

    async def create(
        self, name: str, *, role: str, system_admin: bool = False, who: Principal | None = None
    ) -> Principal:
        request = pb.CreateUserRequest(
            request_id=self.rid(),
            user=pb.User(name=name, system_admin=system_admin),
            password=PASSWORD,
            project="prod",
            role=role,
        )
        made = (await self.users.create_user(request, who or self.root)).user
        return Principal(user_id=made.id, user_name=name, system_admin=system_admin)

    async def log_in(
        self, name: str = "ann", project: str = "", password: str = PASSWORD
    ) -> tuple[str, Token]:
        return await self._login.login(
            user_name=name, password=password, project=project, asked_s=0, peer=f"peer {name}"
        )

    async def is_good(self, secret: str) -> bool:
        try:
            await self.tokens.principal(secret)
        except Unauthenticated:
            return False
        return True

    async def update(
        self, user: str = "ann", *, who: Principal | None = None, request_id: str = "", **said: object
    ) -> pb.User:
        request = pb.UpdateUserRequest(
            request_id=request_id or self.rid(), user=user, update_mask=FieldMask(paths=list(said))
        )
        for name, value in said.items():
            setattr(request, name, value)
        return (await self.users.update_user(request, who or self.root)).user

    async def grant(
        self, role: str, project: str = "prod", request_id: str = "", who: Principal | None = None
    ) -> None:
        await self.users.grant_role(
            pb.GrantRoleRequest(request_id=request_id or self.rid(), user="ann", project=project, role=role),
            who or self.root,
        )

    async def revoke(
        self, role: str = "", project: str = "prod", request_id: str = "", who: Principal | None = None
    ) -> None:
        await self.users.revoke_role(
            pb.RevokeRoleRequest(request_id=request_id or self.rid(), user="ann", project=project, role=role),
            who or self.root,
        )


@pytest.fixture
async def world() -> World:
    return await World().begin()


async def test_who_is_kept_out_is_out_at_once_until_they_are_let_in_again(world: World) -> None:
    """A user's record could say so from the first day, and no method said it: a token stayed good for its hour, and a login for ever."""
    secret, _ = await world.log_in()
    others, _ = await world.log_in("root")

    kept_out = await world.update(disabled=True)

    assert kept_out.disabled
    assert not await world.is_good(secret)
    assert await world.is_good(others)
    with pytest.raises(Unauthenticated):
        await world.log_in()
    await world.update(disabled=False)
    again, _ = await world.log_in()
    assert await world.is_good(again)
    await world.update(disabled=False)
    assert await world.is_good(again)  # nothing was taken


async def test_another_password_ends_what_the_one_before_has_opened(world: World) -> None:
    secret, _ = await world.log_in()

    await world.update(password="battery staple")

    assert not await world.is_good(secret)
    with pytest.raises(Unauthenticated):
        await world.log_in()
    assert await world.log_in(password="battery staple")


@pytest.mark.parametrize("password", ["", "short", "ANN", "x" * 1025])
async def test_a_password_that_is_no_good_changes_nothing(world: World, password: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await world.update(password=password, disabled=True)

    assert raised.value.field == "password"
    assert await world.log_in()


async def test_nobody_locks_themself_out(world: World) -> None:
    with pytest.raises(InvalidRequest, match="another administrator"):
        await world.update("root", disabled=True)
    with pytest.raises(InvalidRequest, match="another administrator"):
        await world.update("root", system_admin=False)

    await world.update("root", password="battery staple")
    assert await world.log_in("root", password="battery staple")


async def test_of_two_administrators_who_lock_each_other_out_one_stays(world: World) -> None:
    """Each was an administrator when they asked. Had both been heard, nobody would be left to let anybody in."""
    other = await world.create("eve", role="admin", system_admin=True)

    async def meanwhile(_: Txn) -> None:
        await world.update("root", who=other, disabled=True)

    world.store.before_commit = meanwhile
    with pytest.raises(PermissionDenied):
        await world.update("eve", who=world.root, disabled=True)

    assert (await world.users.get_user(pb.GetUserRequest(user="root"), other)).user.disabled
    assert await world.log_in("eve")


@pytest.mark.parametrize("what", ["user", "grant", "revoke", "update"])
async def test_who_is_kept_out_while_they_ask_makes_nobody_and_gives_nothing(world: World, what: str) -> None:
    """Their call was let in before, or by a server that still believed their token: they could leave another administrator behind."""
    eve = await world.create("eve", role="admin", system_admin=True)

    async def meanwhile(_: Txn) -> None:
        await world.update("eve", disabled=True)

    asks: dict[str, Callable[[], Awaitable[object]]] = {
        "user": lambda: world.create("mallory", role="admin", system_admin=True, who=eve),
        "grant": lambda: world.grant("admin", "lab", who=eve),
        "revoke": lambda: world.revoke(who=eve),
        "update": lambda: world.update(who=eve, system_admin=True),
    }
    world.store.before_commit = meanwhile
    with pytest.raises(PermissionDenied, match="not administer"):
        await asks[what]()
    with pytest.raises(PermissionDenied):  # in the same words, whoever it is about
        await world.update("nobody", who=eve, disabled=True)

    names = [each.name for each in (await world.users.list_users(pb.ListUsersRequest(), world.root)).users]
    assert names == ["ann", "eve", "root"]
    assert (await world.log_in())[1].role is Role.MEMBER
    with pytest.raises(PermissionDenied):
        await world.log_in(project="lab")


async def test_an_administrator_of_the_system_is_made_and_unmade(world: World) -> None:
    assert (await world.update(system_admin=True)).system_admin
    secret, token = await world.log_in()
    assert token.system_admin

    await world.update(system_admin=False)

    assert not await world.is_good(secret)
    _, token = await world.log_in()
    assert not token.system_admin


async def test_a_default_project_is_one_where_the_user_has_a_role(world: World) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await world.update(default_project="lab")
    assert raised.value.field == "default_project"
    await world.grant("reader", "lab")

    await world.update(default_project="lab")

    _, token = await world.log_in()
    assert (token.project_name, token.role) == ("lab", Role.READER)
    assert not (await world.update(default_project="")).default_project_id
    with pytest.raises(InvalidRequest, match="nowhere"):
        await world.update(default_project="nowhere")


@pytest.mark.parametrize("paths", [(), ("name",), ("password_hash",)])
async def test_an_update_says_what_it_changes(world: World, paths: tuple[str, ...]) -> None:
    request = pb.UpdateUserRequest(request_id="r", user="ann", update_mask=FieldMask(paths=paths))

    with pytest.raises(InvalidRequest) as raised:
        await world.users.update_user(request, world.root)

    assert raised.value.field == "update_mask"


async def test_a_role_taken_back_ends_the_tokens_for_its_project_and_no_other(world: World) -> None:
    await world.grant("reader", "lab")
    of_prod, _ = await world.log_in(project="prod")
    of_lab, _ = await world.log_in(project="lab")
    of_root, _ = await world.log_in("root", project="prod")

    await world.revoke("member")

    assert [await world.is_good(each) for each in (of_prod, of_lab, of_root)] == [False, True, True]
    with pytest.raises(PermissionDenied):
        await world.log_in(project="prod")
    with pytest.raises(NotFound, match="no role"):
        await world.revoke()


async def test_a_role_that_the_user_has_not_is_not_taken(world: World) -> None:
    secret, _ = await world.log_in()

    with pytest.raises(NotFound, match="but member"):
        await world.revoke("admin")

    assert await world.is_good(secret)


async def test_a_lower_role_ends_what_said_more(world: World) -> None:
    """A member who became a reader went on as a member, for as long as the token lasted."""
    secret, _ = await world.log_in()
    await world.grant("admin")
    assert await world.is_good(secret)  # says less than the user may now

    await world.grant("reader")

    assert not await world.is_good(secret)
    assert (await world.log_in())[1].role is Role.READER


@pytest.mark.parametrize("taken", ["role", "user"])
async def test_a_login_that_meets_its_own_end_gets_no_token(world: World, taken: str) -> None:
    """The tokens there were listed and ended, and then came the one that was being issued, which was decided on before."""

    async def meanwhile(txn: Txn) -> None:
        assert any(key.startswith(TOKEN.under()) for key in txn.put)
        await (world.revoke() if taken == "role" else world.update(disabled=True))

    world.store.before_commit = meanwhile
    with pytest.raises(Conflict):
        await world.log_in()

    assert not (await world.store.list(TOKEN.under())).entries


async def test_a_server_that_dies_before_it_has_ended_the_tokens_ends_them_when_asked_again(
    world: World,
) -> None:
    secret, _ = await world.log_in()
    world.store.lists_are_away = True
    for attempt in (
        lambda: world.update(disabled=True, request_id="once"),
        lambda: world.revoke(request_id="then"),
    ):
        with pytest.raises(Unavailable):
            await attempt()
    assert await world.is_good(secret)
    world.store.lists_are_away = False

    await world.revoke(request_id="then")
    assert not await world.is_good(secret)
    assert (await world.update(disabled=True, request_id="once")).disabled


async def test_a_role_that_is_gone_already_leaves_no_token_behind(world: World) -> None:
    """The command was given again, as another request: it was told that there is no such role, and the tokens lived on for their hour."""
    secret, _ = await world.log_in()
    world.store.lists_are_away = True
    with pytest.raises(Unavailable):
        await world.revoke()
    world.store.lists_are_away = False
    assert await world.is_good(secret)

    with pytest.raises(NotFound, match="no role"):
        await world.revoke()

    assert not await world.is_good(secret)


async def test_a_request_that_comes_late_again_ends_nothing_that_was_given_since(world: World) -> None:
    await world.grant("reader", request_id="lower")
    await world.revoke(request_id="none")
    await world.grant("admin")
    secret, _ = await world.log_in()

    await world.grant("reader", request_id="lower")
    await world.revoke(request_id="none")

    assert await world.is_good(secret)
    assert (await world.log_in())[1].role is Role.ADMIN


async def test_any_number_of_tokens_ends(world: World) -> None:
    """One transaction of etcd takes 128 operations."""
    secrets = [(await world.log_in())[0] for _ in range(130)]

    await world.update(disabled=True)

    assert not any([await world.is_good(each) for each in secrets])
