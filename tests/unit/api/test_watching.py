"""Watching servers: everything that is there, then every change once, across hang-ups, slow readers and cells that are away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fabric.api import watching
from fabric.api.shelf import CATCH_UP_S
from fabric.errors import InvalidRequest, PermissionDenied, Reason, TooMuch
from fabric.model.identity import Principal, Role, Token
from fabric.model.states import VmState
from fabric.pb.compute.v1 import instance_event_service_pb2 as pb
from fabric.store.base import Snapshot, Txn
from fabric.store.codec import encode
from fabric.store.keys import BUILD, INSTANCE, LOCATION
from tests.unit.api.test_instances import WHO, World, in_a_world
from tests.unit.store.virtual import LoopClock

STRANGER = replace(WHO, project_id="q")
ROOT = replace(STRANGER, system_admin=True)


class Watcher:
    """A caller that takes what it is told, until it hangs up."""

    def __init__(self, world: World, who: Principal = WHO, token: str = "", *, of_all: bool = False) -> None:
        request = pb.WatchInstancesRequest(resume_token=token, all_projects=of_all)
        self.token = token
        self._news: AsyncIterator[pb.WatchInstancesResponse] = world.events.watch_instances(request, who)

    async def told(self) -> list[str]:
        """Everything up to the next mark, in short."""
        words: list[str] = []
        while True:
            news = await anext(self._news)
            match news.WhichOneof("news"):
                case "mark":
                    self.token = news.mark.resume_token
                    return words
                case "change":
                    status = news.change.instance.status
                    kind = pb.ChangeKind.Name(news.change.kind).removeprefix("CHANGE_KIND_")
                    words.append(
                        f"{kind} {news.change.instance.name} {status.state} {status.task_state}".strip()
                    )
                case "cell_away":
                    words.append(f"AWAY {news.cell_away.cell}")
                case "cell_back":
                    words.append(f"BACK {news.cell_back.cell}")
                case other:
                    words.append(str(other).upper())

    async def until_told(self) -> list[str]:
        """The next news that is not just a mark."""
        while not (words := await self.told()):
            pass
        return words

    async def until_sent_away(self) -> None:
        """Take everything until there is no more."""
        with contextlib.suppress(StopAsyncIteration):
            while True:
                await self.told()

    async def hang_up(self) -> None:
        await self._news.aclose()  # type: ignore[attr-defined]  # it is a generator


@in_a_world
async def test_a_watcher_is_told_what_is_there_and_then_what_changes(world: World) -> None:
    await world.placed("web")
    watcher = Watcher(world)
    first = await watcher.told()

    await world.stop("web")

    assert first == ["PRESENT web ACTIVE"]
    assert await watcher.until_told() == ["CHANGED web ACTIVE powering_off"]


async def bearer(world: World) -> Principal:
    """Somebody with a token of an hour."""
    now_ms = LoopClock().now_ms()
    token = Token(
        id="",
        user_id="u",
        user_name="u",
        project_id="p",
        project_name="p",
        role=Role.MEMBER,
        issue_time_ms=now_ms,
        expire_time_ms=now_ms + 3_600_000,
    )
    return await world.tokens.principal(await world.tokens.issue(token))


@pytest.mark.parametrize("is_heard", [True, False], ids=["heard", "while nobody heard"])
def test_a_watcher_whose_token_is_revoked_is_told_no_more(is_heard: bool) -> None:
    """A watch lasts five minutes, and its caller's rights were only looked at when it began: whoever had stolen a token saw everything
    until then, though it had been revoked.
    """

    @in_a_world
    async def until_then(world: World) -> None:
        hearing = asyncio.create_task(world.tokens.run())
        await asyncio.sleep(1.0)
        who = await bearer(world)
        watcher = Watcher(world, who)
        await watcher.told()
        if is_heard:
            await world.tokens.revoke(who.token_id)
        else:
            hearing.cancel()
            await asyncio.sleep(0.1)
            await world.tokens.revoke(who.token_id)
            hearing = asyncio.create_task(world.tokens.run())
        begin_s = asyncio.get_running_loop().time()

        await watcher.until_sent_away()

        assert asyncio.get_running_loop().time() - begin_s <= 2.0
        hearing.cancel()

    until_then()


@in_a_world
async def test_a_create_is_told_before_it_has_a_host(world: World) -> None:
    watcher = Watcher(world)
    await watcher.told()

    await world.create("new")

    assert await watcher.until_told() == ["CHANGED new BUILD scheduling"]


@in_a_world
async def test_the_end_of_a_server_is_told_once(world: World) -> None:
    server = await world.placed("web")
    watcher = Watcher(world)
    await watcher.told()

    await world.cells["c1"].commit(Txn(delete=(INSTANCE.at(server),)))
    told = await watcher.until_told()
    await world.store.commit(Txn(delete=(LOCATION.at(server),)))

    assert told == ["DELETED web DELETED"]
    assert await watcher.told() == []


@in_a_world
async def test_the_end_of_a_server_that_never_had_a_host_is_told_by_the_index(world: World) -> None:
    made = await world.create("early")
    await asyncio.sleep(0.1)
    watcher = Watcher(world)
    await watcher.told()

    await world.store.commit(Txn(delete=(BUILD.at("c1", made.id), LOCATION.at(made.id))))

    assert await watcher.until_told() == ["DELETED early DELETED"]


@in_a_world
async def test_who_comes_back_is_told_what_was_missed_and_nothing_else(world: World) -> None:
    await world.placed("web")
    await world.placed("db")
    watcher = Watcher(world)
    await watcher.told()
    await watcher.hang_up()

    await world.stop("web")
    await asyncio.sleep(0.1)

    assert await Watcher(world, token=watcher.token).told() == ["CHANGED web ACTIVE powering_off"]


@in_a_world
async def test_a_gap_that_is_not_known_any_more_is_said_and_everything_told_anew(world: World) -> None:
    await world.placed("web")
    old = '{"builds":0,"cell/c1":0,"cell/c2":0,"index":0}'
    token = base64.urlsafe_b64encode(old.encode()).decode().rstrip("=")

    assert await Watcher(world, token=token).told() == ["RESYNC", "PRESENT web ACTIVE"]


@in_a_world
async def test_another_projects_servers_are_told_to_administrators_alone(world: World) -> None:
    await world.placed("web")
    with pytest.raises(PermissionDenied):
        await Watcher(world, STRANGER, of_all=True).told()

    assert await Watcher(world, STRANGER).told() == []
    assert await Watcher(world, ROOT).told() == []
    assert await Watcher(world, ROOT, of_all=True).told() == ["PRESENT web ACTIVE"]


@in_a_world
async def test_a_token_that_is_none_of_ours_is_refused(world: World) -> None:
    for token in ("%%%", "bm8", "WzFd", "eyJhIjoteX0", "eyJhIjotMX0", "eyJhIjoiMSJ9"):
        with pytest.raises(InvalidRequest) as refused:
            await Watcher(world, token=token).told()
        assert refused.value.field == "resume_token"


@in_a_world
async def test_a_token_of_a_revision_that_no_store_has_reached_costs_next_to_nothing(world: World) -> None:
    """Tokens are not signed, so anybody can make one up. One ahead of a store had its whole prefix read anew, again and again for two
    seconds: a project's readers could keep the stores listing all that everybody has.
    """
    await world.placed("web")
    lists = 0
    cell = world.cells["c1"]
    list_all = cell.list

    async def counted(prefix: str) -> Snapshot:
        nonlocal lists
        lists += 1
        return await list_all(prefix)

    cell.list = counted  # type: ignore[method-assign]  # to count, nothing is replaced
    watcher = Watcher(world)
    await watcher.told()
    position = json.loads(base64.urlsafe_b64decode(watcher.token + "=="))
    ahead = json.dumps({**position, "cell/c1": 2**60}).encode()
    began_s = asyncio.get_running_loop().time()
    told = await Watcher(world, token=base64.urlsafe_b64encode(ahead).decode().rstrip("=")).told()

    assert told[-1] == "PRESENT web ACTIVE"
    assert lists <= 1
    assert asyncio.get_running_loop().time() - began_s < CATCH_UP_S / 2


@in_a_world
async def test_who_reads_too_slowly_is_sent_away_and_goes_on_from_its_mark(world: World) -> None:
    server = await world.placed("web")
    slow = Watcher(world)
    await slow.told()
    record = await world.read(world.cells["c1"], INSTANCE, server)
    for number in range(watching.LOG_LIMIT + 1):
        again = replace(record, update_time_ms=number + 1)
        await world.cells["c1"].commit(Txn(put={INSTANCE.at(server): encode(again)}))
    await asyncio.sleep(1.0)

    with pytest.raises(TooMuch) as sent_away:
        await slow.told()

    assert sent_away.value.reason is Reason.WATCH_TOO_SLOW
    assert await Watcher(world, token=slow.token).told() == ["RESYNC", "PRESENT web ACTIVE"]


@in_a_world
async def test_a_cell_that_goes_away_and_comes_back_is_named(world: World) -> None:
    watcher = Watcher(world)
    await watcher.told()

    world.cells["c1"].is_silent = True
    gone = await watcher.until_told()
    world.cells["c1"].is_silent = False

    assert gone == ["AWAY c1"]
    assert await watcher.until_told() == ["BACK c1"]


@in_a_world
async def test_a_watch_ends_in_time_for_its_caller_to_be_looked_at_again(world: World) -> None:
    watcher = Watcher(world)
    began_s = asyncio.get_running_loop().time()

    await watcher.until_sent_away()

    assert asyncio.get_running_loop().time() - began_s == pytest.approx(watching.LIFETIME_S, abs=2.0)


@in_a_world
async def test_a_watch_ends_with_the_token_it_was_asked_for_with(world: World) -> None:
    soon_ms = world.views["c1"]._clock.now_ms() + 5_000
    watcher = Watcher(world, replace(WHO, expire_time_ms=soon_ms))
    began_s = asyncio.get_running_loop().time()

    await watcher.until_sent_away()

    assert asyncio.get_running_loop().time() - began_s < 20.0


@in_a_world
async def test_there_are_only_so_many_watchers(world: World) -> None:
    watchers = [Watcher(world) for _ in range(watching.WATCHES_LIMIT)]
    for each in watchers:
        await each.told()
    with pytest.raises(TooMuch):
        await Watcher(world).told()

    await watchers[0].hang_up()

    assert await Watcher(world).told() == []


@in_a_world
async def test_a_change_that_nobody_asked_for_is_told(world: World) -> None:
    server = await world.placed("web")
    watcher = Watcher(world)
    await watcher.told()
    record = await world.read(world.cells["c1"], INSTANCE, server)

    await world.cells["c1"].commit(
        Txn(put={INSTANCE.at(server): encode(replace(record, vm_state=VmState.PAUSED, host="h2"))})
    )

    assert await watcher.until_told() == ["CHANGED web PAUSED"]
