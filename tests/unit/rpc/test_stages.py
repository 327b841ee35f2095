from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fabric.errors import NotFound, PermissionDenied, Reason, TooMuch, Unauthenticated, Unavailable
from fabric.model.identity import Principal
from fabric.rpc import stages
from fabric.rpc.call import Call, Endpoint
from fabric.rpc.limits import Bucket, Limits, LimitSettings
from fabric.rpc.stages import Reported, address_of
from fabric.rpc.tls import host_uri, named, service_uri
from tests.unit.rpc.test_authorization import METHODS, _NoPipe

GET = next(method for method in METHODS if method.name == "GetFlavor")
CREATE = next(method for method in METHODS if method.name == "CreateFlavor")


@dataclass
class Clock:
    s: float = 100.0

    def now_ms(self) -> int:
        return int(self.s * 1000)

    def boot_s(self) -> float:
        return self.s


def _call(**fields: Any) -> Call:
    return Call(**{"method": GET, "pipe": _NoPipe(), "metadata": {}, "peer": "ipv4:192.0.2.1:7", **fields})


def _raising(error: BaseException) -> Endpoint:
    async def endpoint(_: Call) -> None:
        raise error

    return endpoint


async def test_an_error_of_ours_is_reported_and_logged_in_one_line() -> None:
    answer = stages.report(Clock(), lambda: "e1")(_raising(NotFound("no")))

    with capture_logs() as lines, pytest.raises(Reported) as raised:
        await answer(_call())

    assert type(raised.value.error) is NotFound
    assert [(line["event"], line["code"], line["reason"]) for line in lines] == [
        ("rpc.finished", "NOT_FOUND", "RESOURCE_NOT_FOUND")
    ]


async def test_the_text_of_an_unexpected_exception_goes_nowhere() -> None:
    answer = stages.report(Clock(), lambda: "e1")(_raising(KeyError("hunter2")))

    with capture_logs() as lines, pytest.raises(Reported) as raised:
        await answer(_call())

    assert raised.value.error_id == "e1"
    assert "hunter2" not in repr(lines)
    assert lines[0]["error"] == "KeyError"
    assert any("_raising" in frame for frame in lines[0]["where"])


async def test_a_call_whose_caller_hung_up_is_logged_as_cancelled() -> None:
    answer = stages.report(Clock(), lambda: "e1")(_raising(asyncio.CancelledError()))

    with capture_logs() as lines, pytest.raises(asyncio.CancelledError):
        await answer(_call())

    assert lines[0]["code"] == "CANCELLED"


@dataclass
class Book:
    told: list[dict[str, object]] = field(default_factory=list)

    def record(self, **entry: object) -> None:
        self.told.append(entry)


@pytest.mark.parametrize(
    ("method", "error", "told"),
    [
        (GET, None, []),
        (CREATE, None, ["OK"]),
        (GET, NotFound("no"), []),
        (CREATE, NotFound("no"), ["RESOURCE_NOT_FOUND"]),
        (GET, PermissionDenied("no"), ["PERMISSION_DENIED"]),
        (CREATE, KeyError("no"), ["INTERNAL"]),
        (CREATE, asyncio.CancelledError(), ["INTERRUPTED"]),
    ],
)
async def test_changes_and_denials_are_audited_whatever_becomes_of_them(
    method: object, error: BaseException | None, told: list[str]
) -> None:
    book = Book()

    async def fine(_: Call) -> None:
        return None

    answer = stages.audit(book)(fine if error is None else _raising(error))
    with contextlib.nullcontext() if error is None else pytest.raises(type(error)):
        await answer(_call(method=method))

    assert [entry["outcome"] for entry in book.told] == told


async def test_a_passed_deadline_says_that_the_write_may_have_happened() -> None:
    async def slow(_: Call) -> None:
        await asyncio.sleep(0.02)

    with pytest.raises(Unavailable) as raised:
        await stages.deadline(slow)(_call(timeout_s=0.001))

    assert raised.value.reason is Reason.DEADLINE_EXCEEDED
    assert "request_id" in raised.value.message


async def test_a_timeout_inside_a_handler_is_not_mistaken_for_the_deadline() -> None:
    with pytest.raises(TimeoutError):
        await stages.deadline(_raising(TimeoutError()))(_call(timeout_s=10.0))


@given(st.lists(st.floats(0, 5), max_size=60))
def test_no_more_is_taken_from_a_bucket_than_flows_into_it(pauses: list[float]) -> None:
    rate, burst = 2.0, 5
    bucket, now_s, taken = Bucket(float(burst), 0.0), 0.0, 0
    for pause_s in pauses:
        now_s += pause_s
        bucket, wait_s = bucket.take(now_s=now_s, rate_per_s=rate, burst=burst)
        taken += wait_s == 0.0
        assert taken <= burst + rate * now_s + 1e-6
        # Who waits as long as they are told gets through.
        _, again_s = bucket.take(now_s=now_s + wait_s + 1e-9, rate_per_s=rate, burst=burst)
        assert wait_s == 0.0 or again_s == 0.0


async def test_one_callers_flood_costs_nobody_else_anything() -> None:
    clock, limits = Clock(), Limits(LimitSettings(rate_per_s=1, burst=2, in_flight=5))

    async def fine(_: Call) -> None:
        return None

    answer = stages.limit(limits, clock)(fine)
    flood = _call(principal=Principal(user_id="a"))
    for _ in range(2):
        await answer(flood)

    with pytest.raises(TooMuch) as raised:
        await answer(flood)
    await answer(_call(principal=Principal(user_id="b")))
    assert raised.value.retry_after_s == pytest.approx(1.0)
    clock.s += 1.0
    await answer(flood)


async def test_calls_at_once_are_counted_in_and_out() -> None:
    limits = Limits(LimitSettings(in_flight=1))
    limits.enter("a", now_s=0.0)

    with pytest.raises(TooMuch):
        limits.enter("a", now_s=0.0)
    limits.leave("a")
    limits.enter("a", now_s=0.0)


async def test_strangers_are_told_apart_by_their_address_not_their_port() -> None:
    clock, limits = Clock(), Limits(LimitSettings(rate_per_s=1, burst=1))
    login = next(method for method in METHODS if method.name == "IssueToken")

    async def fine(_: Call) -> None:
        return None

    answer = stages.limit(limits, clock)(fine)
    await answer(_call(method=login, peer="ipv4:192.0.2.1:1"))

    with pytest.raises(TooMuch):
        await answer(_call(method=login, peer="ipv4:192.0.2.1:2"))
    await answer(_call(method=login, peer="ipv4:192.0.2.2:1"))


def test_a_certificate_is_known_by_one_uri_of_ours_and_nothing_else() -> None:
    host, service = host_uri("c1", "h1"), service_uri("conductor", "c1")

    assert named([host], "a") == Principal(host="h1", cell="c1", cert_serial="a")
    assert named([service, "https://example.org"], "a") == Principal(
        service="conductor", cell="c1", cert_serial="a"
    )
    for uris in (
        [],
        [host, service],
        ["spiffe://other/cell/c1/host/h1"],
        ["spiffe://cellfabric/cell/c1/host/"],
        ["spiffe://cellfabric/cell/c1/host/h1/x"],
        ["spiffe://cellfabric/cell/C1/host/h1"],
        ["spiffe://cellfabric/service/root"],
        ["spiffe://cellfabric/cell/../host/h1"],
    ):
        assert named(uris, "a") == Principal()


def test_where_somebody_asks_from_proves_nothing() -> None:
    principal = Principal(user_id="a")

    assert replace(principal, peer="ipv4:192.0.2.1") == principal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ipv4:192.0.2.1:4711", "ipv4:192.0.2.1:4712"),
        ("ipv6:%5B2001:db8:0:7::1%5D:4711", "ipv6:%5B2001:db8:0:7:ffff:ffff:ffff:ffff%5D:9"),
        ("ipv6:[2001:db8:0:7::1]:4711", "ipv6:%5B2001:db8:0:7::2%5D:9"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:4711", "ipv4:192.0.2.1:80"),
    ],
)
def test_who_has_many_addresses_is_one_caller(one: str, other: str) -> None:
    """Whoever has one IPv6 address has 2^64: each of them was a caller of its own, with five free guesses at every password, and logins
    under way that together filled the hashing pool.
    """
    assert address_of(one) == address_of(other)


@dataclass
class Known:
    """Knows one token, and counts how often it had to look one up."""

    looked_up: int = 0

    def remembers(self, token: str) -> bool:
        return token == "mine"

    async def principal(self, token: str) -> Principal:
        self.looked_up += 1
        if token != "mine":
            raise Unauthenticated("no")
        return Principal(user_id="me")


async def test_who_makes_tokens_up_has_few_of_them_looked_up() -> None:
    """Each was a read of the global store, as many as anybody liked to send; and a slow store has tokens believed unread."""
    tokens, clock = Known(), Clock()
    doubts = stages.Doubts(Limits(LimitSettings(rate_per_s=1.0, burst=5)), clock)

    async def fine(_: Call) -> None:
        return None

    async def show(token: str, peer: str = "ipv4:192.0.2.1:7") -> str:
        call = _call(metadata={"authorization": f"Bearer {token}"}, peer=peer)
        try:
            await stages.authenticate(tokens, doubts)(fine)(call)
        except (Unauthenticated, TooMuch) as refused:
            return type(refused).__name__
        return "let in"

    shown = [await show(f"made up {number}") for number in range(100)]

    assert shown == ["Unauthenticated"] * 5 + ["TooMuch"] * 95
    assert tokens.looked_up == 5
    assert await show("mine") == "let in"
    assert await show("another", peer="ipv4:192.0.2.2:7") == "Unauthenticated"
    clock.s += 1.0
    assert await show("once more") == "Unauthenticated"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ipv4:192.0.2.1:4711", "ipv4:192.0.2.2:4711"),
        ("ipv6:%5B2001:db8:0:7::1%5D:4711", "ipv6:%5B2001:db8:0:8::1%5D:4711"),
        ("ipv6:%5Bno address%5D:1", "ipv6:%5Bnor this%5D:1"),
        ("unix:", "ipv4:192.0.2.1:1"),
    ],
)
def test_neighbours_are_callers_of_their_own(one: str, other: str) -> None:
    assert address_of(one) != address_of(other)
