from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fabric.api.once import Change, Done, Once, body_sha256
from fabric.errors import AlreadyExists, Ambiguous, Conflict, Reason, Unavailable
from fabric.model.identity import Principal
from fabric.model.instance import Answered
from fabric.pb.identity.v1 import user_service_pb2
from fabric.store.base import Committed, Refused, Txn
from fabric.store.codec import decode
from fabric.store.keys import ANSWERED
from fabric.store.memory import MemoryStore
from tests.unit.store.virtual import LoopClock, run

WHO = Principal(user_id="u", project_id="p")


class Losing(MemoryStore):
    """Applies a write and loses its answer, or loses the write, as often as it is told."""

    applied_and_lost = 0
    lost = 0

    async def commit(self, txn: Txn) -> Committed | Refused:
        if self.lost:
            self.lost -= 1
            raise Ambiguous("lost on its way")
        outcome = await super().commit(txn)
        if self.applied_and_lost:
            self.applied_and_lost -= 1
            raise Ambiguous("its answer was lost")
        return outcome


def _thing(
    store: MemoryStore, name: str = "thing", resource_id: str = "1"
) -> Callable[[], Awaitable[Change]]:
    async def decide() -> Change:
        if name in (await store.get(name)).entries:
            raise AlreadyExists("taken")
        return Change(resource_id=resource_id, unchanged={name: 0}, put={name: resource_id.encode()})

    return decide


async def _make(store: MemoryStore, *, body: str = "b", method: str = "M", resource_id: str = "1") -> Done:
    once = Once(store, clock=LoopClock(), jitter=lambda: 0.5)
    return await once.make(
        _thing(store, resource_id=resource_id), request_id="r", method=method, body=body, principal=WHO
    )


def test_a_request_sent_again_gets_the_same_answer() -> None:
    async def world() -> None:
        store = MemoryStore()

        first, again = await _make(store), await _make(store, resource_id="2")

        assert (first.resource_id, first.was_done_before) == ("1", False)
        assert (again.resource_id, again.was_done_before) == ("1", True)

    run(world())


@pytest.mark.parametrize("other", [{"body": "x"}, {"method": "N"}], ids=["body", "method"])
def test_a_request_id_with_another_request_is_an_error(other: dict[str, str]) -> None:
    async def world() -> None:
        store = MemoryStore()
        await _make(store)
        before = store.revision

        with pytest.raises(Conflict) as raised:
            await _make(store, **other)

        assert raised.value.reason is Reason.REQUEST_ID_MISMATCH
        assert store.revision == before

    run(world())


@pytest.mark.parametrize("loss", ["applied_and_lost", "lost"])
def test_whatever_is_lost_the_thing_is_made_once(loss: str) -> None:
    async def world() -> None:
        store = Losing()
        setattr(store, loss, 1)

        done = await _make(store)

        assert done.resource_id == "1"
        assert [change.key for change in store.history if change.key == "thing"] == ["thing"]

    run(world())


def test_two_servers_asked_at_once_make_one_thing() -> None:
    async def world() -> None:
        store = MemoryStore()

        outcomes = await asyncio.gather(*(_make(store, resource_id=str(n)) for n in range(4)))

        assert len({done.resource_id for done in outcomes}) == 1

    run(world())


def test_a_request_whose_double_was_faster_is_answered_as_it_and_not_told_of_its_work() -> None:
    """A client that gave up on an answer too early sent its request again while the first was still being written: what that one then wrote
    stood in its way, so it was told that its own thing's name was taken.
    """

    async def world() -> None:
        store = MemoryStore()
        once = Once(store, clock=LoopClock(), jitter=lambda: 0.5)

        async def late() -> Change:
            await _make(store)
            return await _thing(store, resource_id="2")()

        done = await once.make(late, request_id="r", method="M", body="b", principal=WHO)

        assert (done.resource_id, done.was_done_before) == ("1", True)

    run(world())


def test_what_stands_in_the_way_of_a_request_that_was_never_done_is_said() -> None:
    async def world() -> None:
        store = MemoryStore()
        await _make(store)
        once = Once(store, clock=LoopClock(), jitter=lambda: 0.5)

        with pytest.raises(AlreadyExists):
            await once.make(_thing(store), request_id="other", method="M", body="b", principal=WHO)

    run(world())


def test_a_store_that_stays_silent_leaves_it_to_the_client() -> None:
    async def world() -> None:
        store = Losing()
        store.lost = 1000

        with pytest.raises(Unavailable):
            await _make(store)

    run(world())


def test_a_password_leaves_no_trace_in_the_digest() -> None:
    one, two = (user_service_pb2.CreateUserRequest(request_id="r", password=word) for word in ("a", "b"))

    assert body_sha256(one, without="password") == body_sha256(two, without="password")
    assert body_sha256(one) != body_sha256(two)
    assert one.password == "a"


def test_a_request_says_itself_under_which_id_and_for_which_method_it_is_answered() -> None:
    async def world() -> None:
        store = MemoryStore()
        once = Once(store, clock=LoopClock(), jitter=lambda: 0.5)
        one, two = (user_service_pb2.CreateUserRequest(request_id="r", password=word) for word in ("a", "b"))

        await once.answer(_thing(store), one, WHO, without="password")
        again = await once.answer(_thing(store, resource_id="2"), two, WHO, without="password")

        kept = (await store.get(ANSWERED.at("p", "r"))).value(ANSWERED.at("p", "r"))
        assert kept is not None
        assert decode(Answered, kept).method == "CreateUser"
        assert (again.resource_id, again.was_done_before) == ("1", True)

    run(world())
