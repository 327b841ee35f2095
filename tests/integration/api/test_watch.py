"""A watch, and what was done, over real gRPC: what is told, and to whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from fabric.deadlines import within
from fabric.errors import InvalidRequest, PermissionDenied, Unauthenticated
from fabric.pb.compute.v1 import instance_event_service_pb2 as pb
from tests.integration.api.front_door import FrontDoor, error_of
from tests.integration.api.test_front_door import make_flavor, make_image, make_server, rid

EVENTS = "fabric.compute.v1.InstanceEventService"
SOON_S = 60.0


def _call(door: FrontDoor, who: str = "own member", **fields: Any) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
    request = pb.WatchInstancesRequest(**fields)
    metadata = (("authorization", f"Bearer {door.tokens.get(who, '')}"),)
    watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = door.wire.unary_stream(
        f"/{EVENTS}/WatchInstances"
    )
    return watch(request.SerializeToString(), metadata=metadata, timeout=60)


async def _told(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> AsyncIterator[pb.WatchInstancesResponse]:
    try:
        async for data in call:
            yield pb.WatchInstancesResponse.FromString(data)
    except grpc.aio.AioRpcError as raised:
        raise error_of(raised) from None


async def _until_mark(news: AsyncIterator[pb.WatchInstancesResponse]) -> tuple[list[str], str]:
    names: list[str] = []
    async with within(SOON_S):
        async for each in news:
            if each.WhichOneof("news") == "mark":
                return names, each.mark.resume_token
            if each.WhichOneof("news") == "change":
                names.append(each.change.instance.name)
    raise AssertionError("the watch ended")


async def _a_change(news: AsyncIterator[pb.WatchInstancesResponse], *, within_s: float) -> None:
    """Return when a change is told. Raises TimeoutError where there is none."""
    async with within(within_s):
        async for each in news:
            if each.WhichOneof("news") == "change":
                return


async def test_a_change_reaches_its_project_over_the_wire_and_nobody_else(door: FrontDoor) -> None:
    await make_flavor(door)
    await make_image(door)
    own, strangers = _told(_call(door)), _told(_call(door, "other member"))
    await _until_mark(own)
    await _until_mark(strangers)

    made = await make_server(door)
    names, token = await _until_mark(own)
    while not names:  # there is a mark now and then even when nothing was told
        names, token = await _until_mark(own)

    assert names == [made.name]
    assert (await _until_mark(_told(_call(door, resume_token=token))))[0] == []
    with pytest.raises(TimeoutError):
        await _a_change(strangers, within_s=0.5)


async def test_a_watch_is_refused_as_any_call_is(door: FrontDoor) -> None:
    for who, fields, kind in (
        ("nobody", {}, Unauthenticated),
        ("own member", {"all_projects": True}, PermissionDenied),
        ("own member", {"resume_token": "!"}, InvalidRequest),
    ):
        with pytest.raises(kind):
            await anext(_told(_call(door, who, **fields)))


async def test_what_was_done_is_shown_over_the_wire(door: FrontDoor) -> None:
    await make_flavor(door)
    await make_image(door)
    request_id = rid()
    made = await make_server(door, request_id=request_id)

    answer = await door.ask(
        EVENTS,
        "GetInstanceEvent",
        pb.GetInstanceEventRequest(instance="web", request_id=request_id),
        "own member",
    )

    event = pb.GetInstanceEventResponse.FromString(answer).event
    assert (event.instance_id, event.action, event.result) == (made.id, "create", "running")
