"""A watch goes on for ever, from where it was: over ends, breaks and expired tokens."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from fabric.errors import PermissionDenied, Reason, TooMuch, Unavailable
from fabric.pb.compute.v1 import instance_event_service_pb2 as pb
from fabric.pb.compute.v1 import instance_service_pb2 as instance_pb
from tests.unit.client.fake_api import FakeApi
from tests.unit.client.worlds import VirtualTime, client_of


def _mark(token: str) -> pb.WatchInstancesResponse:
    return pb.WatchInstancesResponse(mark=pb.WatchMark(resume_token=token))


def _change(name: str) -> pb.WatchInstancesResponse:
    change = pb.InstanceChange(kind=pb.CHANGE_KIND_CHANGED, instance=instance_pb.Instance(name=name))
    return pb.WatchInstancesResponse(change=change)


def _told(api: FakeApi, count: int, **facts: Any) -> list[str]:
    watch = client_of(api, VirtualTime()).instance_events.watch(**facts)
    return [each.change.instance.name or each.mark.resume_token for each in islice(watch, count)]


def _tokens(api: FakeApi) -> list[str]:
    return [each.resume_token for each in api.requests("watch_instances")]


def test_a_watch_that_ends_goes_on_from_its_last_mark() -> None:
    api = FakeApi()
    api.news = [[_change("a"), _mark("m1"), _change("b")], [_mark("m2")], [_change("c")]]

    assert _told(api, 5) == ["a", "m1", "b", "m2", "c"]
    assert _tokens(api) == ["", "m1", "m2"]


def test_a_watch_that_ends_at_once_is_begun_again_after_a_moment() -> None:
    """Only one that broke waited: a server that ended every watch without a word was asked anew as fast as it could answer."""
    api, time = FakeApi(), VirtualTime()
    api.news = [[], [], [_change("a")]]

    watch = client_of(api, time).instance_events.watch()
    told = [each.change.instance.name for each in islice(watch, 1)]

    assert told == ["a"]
    assert len(time.slept) == 2


def test_a_watch_that_breaks_goes_on_after_a_moment() -> None:
    api, time = FakeApi(), VirtualTime()
    api.news = [[_mark("m1"), _change("lost")], [_change("found")]]
    api.break_after["watch_instances"] = [1]
    api.fail["watch_instances.break"] = [TooMuch("slow", reason=Reason.WATCH_TOO_SLOW, retry_after_s=1.0)]

    watch = client_of(api, time).instance_events.watch()
    told = [each.change.instance.name or each.mark.resume_token for each in islice(watch, 2)]

    assert told == ["m1", "found"]
    assert time.slept


def test_a_watch_that_cannot_be_begun_says_why() -> None:
    api = FakeApi()
    api.fail["watch_instances"] = [PermissionDenied("no")]

    with pytest.raises(PermissionDenied):
        _told(api, 1, all_projects=True)


def test_a_watch_waits_for_an_api_that_is_away() -> None:
    api = FakeApi()
    api.fail["watch_instances"] = [Unavailable("away"), Unavailable("away")]
    api.news = [[_change("a")]]

    assert _told(api, 1, resume_token="m9") == ["a"]
    assert _tokens(api) == ["m9", "m9", "m9"]


def test_a_watch_whose_rights_are_taken_away_ends() -> None:
    api = FakeApi()
    api.news = [[_mark("m1"), _change("a")]]
    api.break_after["watch_instances"] = [1]
    api.fail["watch_instances.break"] = [PermissionDenied("not any more")]

    with pytest.raises(PermissionDenied):
        _told(api, 2)
