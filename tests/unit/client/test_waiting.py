from __future__ import annotations

import pytest

from fabric.client.waiting import Verdict, generation_of_delete, verdict, verdict_of_delete
from fabric.errors import NotFound, Reason, Unavailable
from fabric.pb.compute.v1.instance_service_pb2 import Instance
from tests.unit.client.fake_api import FakeApi, Step
from tests.unit.client.worlds import VirtualTime, client_of


def seen(state: str, task: str = "", *, generation: int = 5, fault: str = "") -> Instance:
    found = Instance(id="s-1", name="web")
    found.status.state, found.status.task_state, found.status.generation = state, task, generation
    if fault:
        found.status.fault.code = fault
    return found


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (seen("BUILD", "scheduling"), Verdict.GOING),
        (seen("BUILD"), Verdict.GOING),
        (seen("ACTIVE", "powering_off"), Verdict.GOING),
        (seen("UNKNOWN"), Verdict.GOING),
        (seen("ACTIVE"), Verdict.DONE),
        (seen("ACTIVE", generation=6), Verdict.DONE),
        (seen("ERROR", fault="SPAWN_FAILED"), Verdict.FAILED),
        (seen("SHUTOFF"), Verdict.FAILED),
        (seen("ACTIVE", fault="REBOOT_FAILED"), Verdict.FAILED),
        (seen("ERROR", generation=4, fault="OLD"), Verdict.GOING),
        (seen("ACTIVE", generation=4), Verdict.GOING),
    ],
)
def test_a_wait_ends_when_the_task_has_and_never_on_an_older_read(look: Instance, expected: Verdict) -> None:
    assert verdict(look, state="ACTIVE", generation=5) is expected


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (seen("ERROR", generation=4, fault="OLD"), Verdict.GOING),
        (seen("ACTIVE", "deleting"), Verdict.GOING),
        (seen("ERROR", fault="DELETE_FAILED"), Verdict.FAILED),
        (seen("DELETED"), Verdict.DONE),
    ],
)
def test_a_delete_has_failed_only_in_an_error_of_its_own(look: Instance, expected: Verdict) -> None:
    assert verdict_of_delete(look, generation=5) is expected


def test_a_delete_under_way_has_made_its_generation_already() -> None:
    assert generation_of_delete(seen("ACTIVE")) == 6
    assert generation_of_delete(seen("ACTIVE", "deleting")) == 5


def test_waiting_tells_every_change_once_and_returns_where_it_ended() -> None:
    api, time = FakeApi(), VirtualTime()
    api.put_instance("web", "SHUTOFF")
    api.plan["start_instance"] = [
        Step("SHUTOFF", "powering_on"),
        Step("SHUTOFF", "powering_on"),
        Step("SHUTOFF", "powering_on", "image 40 %"),
        Step("ACTIVE"),
    ]
    client = client_of(api, time)
    told: list[tuple[str, str]] = []
    found = client.instances.wait_for(
        client.instances.start("web"),
        "ACTIVE",
        timeout_s=60,
        on_change=lambda it: told.append((it.status.state, it.status.progress)),
    )

    assert found.status.state == "ACTIVE"
    assert told == [("SHUTOFF", ""), ("SHUTOFF", "image 40 %"), ("ACTIVE", "")]


def test_looks_become_rarer() -> None:
    api, time = FakeApi(), VirtualTime()
    api.put_instance("web")
    api.plan["stop_instance"] = [Step("ACTIVE", "powering_off")] * 40 + [Step("SHUTOFF")]
    client = client_of(api, time)
    client.instances.wait_for(client.instances.stop("web"), "SHUTOFF", timeout_s=600)

    assert time.slept == sorted(time.slept)
    assert time.slept[0] < 0.5
    assert time.slept[-1] == 3.0


def test_a_wait_that_takes_too_long_says_where_it_stands() -> None:
    api, time = FakeApi(), VirtualTime()
    api.put_instance("web")
    client = client_of(api, time)
    api.plan["stop_instance"] = [Step("ACTIVE", "powering_off")]
    with pytest.raises(Unavailable, match="still ACTIVE powering_off after 20 s") as raised:
        client.instances.wait_for(client.instances.stop("web"), "SHUTOFF", timeout_s=20)

    assert raised.value.reason is Reason.DEADLINE_EXCEEDED
    assert time.now_s == pytest.approx(120.0)


def test_an_api_that_restarts_is_waited_for() -> None:
    api, time = FakeApi(), VirtualTime()
    api.put_instance("web")
    client = client_of(api, time)
    api.plan["stop_instance"] = [Step("SHUTOFF")]
    begun = client.instances.stop("web")
    api.fail["get_instance"] = [Unavailable("away")] * 12

    assert client.instances.wait_for(begun, "SHUTOFF", timeout_s=300).status.state == "SHUTOFF"


def test_a_server_just_made_may_be_invisible_for_a_moment() -> None:
    api, time = FakeApi(), VirtualTime()
    made = api.put_instance("web")
    client = client_of(api, time)
    api.fail["get_instance"] = [NotFound("not yet")] * 3

    assert client.instances.wait_for(made, "ACTIVE", timeout_s=60).name == "web"


def test_a_server_that_somebody_deletes_is_not_waited_for_to_the_end() -> None:
    api, time = FakeApi(), VirtualTime()
    made = api.put_instance("web")
    client = client_of(api, time)
    api.instances.clear()
    with pytest.raises(NotFound, match="has been deleted"):
        client.instances.wait_for(made, "ACTIVE", timeout_s=600)

    assert time.now_s < 120


def test_gone_is_gone() -> None:
    api, time = FakeApi(), VirtualTime()
    client = client_of(api, time)
    before = Instance()
    before.CopyFrom(api.put_instance("web", "ERROR"))
    api.plan["delete_instance"] = [Step("ERROR", "deleting"), Step("GONE")]
    client.instances.delete("web")

    assert client.instances.wait_until_gone(before, timeout_s=60) is None


def test_a_delete_that_fails_returns_what_is_left() -> None:
    api, time = FakeApi(), VirtualTime()
    client = client_of(api, time)
    before = Instance()
    before.CopyFrom(api.put_instance("web"))
    api.plan["delete_instance"] = [Step("ACTIVE", "deleting"), Step("ERROR", fault="DISK_BUSY")]
    client.instances.delete("web")
    left = client.instances.wait_until_gone(before, timeout_s=60)

    assert left is not None
    assert left.status.fault.code == "DISK_BUSY"
