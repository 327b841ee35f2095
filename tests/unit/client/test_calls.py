from __future__ import annotations

import pytest

from fabric.api.conductors import PASSWORD_TIMEOUT_S
from fabric.client.retry import RetrySettings
from fabric.errors import Conflict, FabricError, NotFound, Reason, TooMuch, Unauthenticated, Unavailable
from tests.unit.client.fake_api import FakeApi
from tests.unit.client.worlds import VirtualTime, client_of

AWAY = Unavailable("the store is away")


def test_every_retry_carries_the_request_id_and_body_of_the_first_attempt() -> None:
    api, time = FakeApi(), VirtualTime()
    api.fail["create_flavor"] = [AWAY, Conflict("changed")]
    client_of(api, time).flavors.create(name="m1", vcpus=1, ram_mib=512, disk_gib=1)
    sent = api.requests("create_flavor")

    assert len(sent) == 3
    assert sent[0] == sent[1] == sent[2]
    assert sent[0].request_id == "request-1"


def test_two_calls_never_share_a_request_id() -> None:
    api, time = FakeApi(), VirtualTime()
    client = client_of(api, time)
    client.flavors.create(name="m1", vcpus=1, ram_mib=512, disk_gib=1)
    client.flavors.create(name="m2", vcpus=1, ram_mib=512, disk_gib=1)

    assert [it.request_id for it in api.requests("create_flavor")] == ["request-1", "request-2"]


def test_a_lost_answer_makes_nothing_twice() -> None:
    api, time = FakeApi(), VirtualTime()
    api.lose["create_flavor"] = [Unavailable("lost", reason=Reason.DEADLINE_EXCEEDED)]
    made = client_of(api, time).flavors.create(name="m1", vcpus=1, ram_mib=512, disk_gib=1)

    assert [it.id for it in api.flavors.values()] == [made.id]


def test_a_delete_whose_answer_was_lost_has_deleted() -> None:
    api, time = FakeApi(), VirtualTime()
    client = client_of(api, time)
    client.flavors.create(name="m1", vcpus=1, ram_mib=512, disk_gib=1)
    api.fail["delete_flavor"] = [AWAY, NotFound("there is no m1")]
    client.flavors.delete("m1")

    assert len(api.requests("delete_flavor")) == 2


def test_deleting_what_never_was_is_not_found() -> None:
    with pytest.raises(NotFound):
        client_of(FakeApi(), VirtualTime()).flavors.delete("m1")


@pytest.mark.parametrize(
    "refused",
    [
        TooMuch("more than 100 calls a second", retry_after_s=0.1),
        Conflict("changed", reason=Reason.CHANGED_MEANWHILE),
    ],
    ids=["too often", "changed meanwhile"],
)
def test_what_never_was_is_not_found_after_a_refusal_either(refused: FabricError) -> None:
    """Any second try that found nothing was taken for the answer to a first one that had deleted it, though the first had been refused."""
    api = FakeApi()
    api.fail["delete_flavor"] = [refused]

    with pytest.raises(NotFound):
        client_of(api, VirtualTime()).flavors.delete("m1")


def test_what_never_was_is_not_found_with_a_token_that_had_to_be_renewed_either() -> None:
    """With a token that had run out, a delete of whatever name it was given was reported as done."""
    client = client_of(FakeApi(), VirtualTime(), token="old", renew=lambda: "fabtoken-good")

    with pytest.raises(NotFound):
        client.flavors.delete("m1")


def test_a_token_that_is_not_known_any_more_is_renewed_once() -> None:
    api, time = FakeApi(), VirtualTime()
    renewed: list[str] = []

    def renew() -> str:
        renewed.append("asked")
        return "still-bad"

    with pytest.raises(Unauthenticated):
        client_of(api, time, token="old", renew=renew).flavors.list()

    assert renewed == ["asked"]


def test_a_renewed_token_is_used_from_then_on() -> None:
    api, time = FakeApi(), VirtualTime()
    client = client_of(api, time, token="old", renew=lambda: "fabtoken-good")

    assert client.flavors.list() == []
    assert client.keypairs.list() == []
    assert len(api.requests("list_keypairs")) == 1


def test_retries_end_before_the_calls_deadline() -> None:
    api, time = FakeApi(), VirtualTime()
    api.fail["list_flavors"] = [AWAY] * 100
    retry = RetrySettings(attempts=100, budget=100.0)
    with pytest.raises(Unavailable):
        client_of(api, time, retry=retry, timeout_s=3.0).flavors.list()

    assert time.now_s <= 103.0
    assert len(api.requests("list_flavors")) > 2


def test_a_password_is_waited_for_as_long_as_the_server_may_take() -> None:
    """Its attempts were cut after 10 s like any other's. With an agent that takes 12 s, which the server allows, each retry had it do the
    work again, and ended in an error although the password was set.
    """
    api = FakeApi()
    api.fail["change_password"] = [NotFound("there is no web")]
    client = client_of(api, VirtualTime())
    with pytest.raises(NotFound):
        client.instances.change_password("web", "a secret")
    (given_s,) = client._channel.timeouts  # type: ignore[attr-defined]  # the fake's

    assert given_s > PASSWORD_TIMEOUT_S


def test_a_server_that_is_down_gets_no_more_retries_than_the_budget_has() -> None:
    api, time = FakeApi(), VirtualTime()
    api.fail["list_flavors"] = [AWAY] * 100
    client = client_of(api, time, retry=RetrySettings(attempts=4, budget=5.0))
    for _ in range(10):
        with pytest.raises(Unavailable):
            client.flavors.list()

    assert len(api.requests("list_flavors")) == 10 + 5


def test_lists_are_read_to_their_last_page() -> None:
    api, time = FakeApi(), VirtualTime()
    client = client_of(api, time)
    for number in range(5):
        client.flavors.create(name=f"m{number}", vcpus=1, ram_mib=512, disk_gib=1)

    assert [it.name for it in client.flavors.list()] == ["m0", "m1", "m2", "m3", "m4"]
    assert len(api.requests("list_flavors")) == 3


def test_revoking_a_token_that_has_ended_is_done() -> None:
    client_of(FakeApi(), VirtualTime(), token="ended").tokens.revoke()


def test_closing_the_client_closes_its_channel() -> None:
    api, time = FakeApi(), VirtualTime()
    with client_of(api, time) as client:
        channel = client._channel

    assert getattr(channel, "is_closed", False)
