"""The server bootstrap on a real loopback port: what malformed bytes, bugs and hang-ups become on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fabric.clock import SystemClock
from fabric.errors import FabricError, InvalidRequest, NotFound, Reason, Unavailable
from fabric.ids import RandomIds
from fabric.model.identity import Principal, Role
from fabric.pb.compute.v1 import flavor_service_pb2, instance_service_pb2
from fabric.pb.image.v1 import image_service_pb2
from fabric.rpc import stages
from fabric.rpc.call import bind
from fabric.rpc.channel import channel
from fabric.rpc.limits import Limits, LimitSettings
from fabric.rpc.server import RpcServer, ServerSettings
from fabric.rpc.status import DETAILS_KEY, from_status

SECRET = "hunter2-canary"


class Flavors:
    async def get_flavor(
        self, request: flavor_service_pb2.GetFlavorRequest, principal: Principal
    ) -> flavor_service_pb2.GetFlavorResponse:
        if request.flavor == "bug":
            raise KeyError(SECRET)
        if request.flavor == "absent":
            raise NotFound("no flavor absent")
        return flavor_service_pb2.GetFlavorResponse(
            flavor=flavor_service_pb2.Flavor(name=request.flavor, description=principal.user_id)
        )

    async def nothing(self, request: Any, principal: Principal) -> Any:
        raise Unavailable("not in this test")

    list_flavors = create_flavor = delete_flavor = nothing


class Images:
    async def create_image(
        self, requests: AsyncIterator[image_service_pb2.CreateImageRequest], principal: Principal
    ) -> image_service_pb2.CreateImageResponse:
        size = 0
        async for request in requests:
            size += len(request.data)
        return image_service_pb2.CreateImageResponse(image=image_service_pb2.Image(size_bytes=size))

    async def download_image(
        self, request: image_service_pb2.DownloadImageRequest, principal: Principal
    ) -> AsyncIterator[image_service_pb2.DownloadImageResponse]:
        for piece in (b"one", b"two"):
            yield image_service_pb2.DownloadImageResponse(data=piece)

    async def nothing(self, request: Any, principal: Principal) -> Any:
        raise Unavailable("not in this test")

    get_image = list_images = delete_image = nothing


class Tokens:
    def remembers(self, token: str) -> bool:
        return False

    async def principal(self, token: str) -> Principal:
        return Principal(user_id="u", project_id="p", project_name="p", role=Role.MEMBER)


@pytest.fixture
async def wire() -> AsyncIterator[grpc.aio.Channel]:
    clock = SystemClock()
    server = RpcServer(
        ServerSettings(listen="127.0.0.1:0", drain_s=0.1),
        (
            *bind(flavor_service_pb2.DESCRIPTOR.services_by_name["FlavorService"], Flavors()),
            *bind(image_service_pb2.DESCRIPTOR.services_by_name["ImageService"], Images()),
        ),
        (
            stages.report(clock, RandomIds().new_id),
            stages.deadline,
            stages.authenticate(Tokens()),
            stages.authorize,
            stages.limit(Limits(LimitSettings()), clock),
        ),
    )
    port = await server.start()
    async with channel(f"127.0.0.1:{port}", None) as made:
        yield made
    await server.stop()


TOKEN = (("authorization", "Bearer any"),)


async def _call(wire: grpc.aio.Channel, path: str, data: bytes, *, token: bool = True) -> bytes:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = wire.unary_unary(path)
    return await method(data, metadata=TOKEN if token else None, timeout=60)


def _error(raised: grpc.aio.AioRpcError) -> FabricError:
    trailers = dict(raised.trailing_metadata())
    details = trailers.get(DETAILS_KEY, b"")
    assert isinstance(details, bytes)
    return from_status(raised.code().value[0], raised.details() or "", details)


GET = "/fabric.compute.v1.FlavorService/GetFlavor"


async def test_a_call_reaches_its_handler_with_its_principal(wire: grpc.aio.Channel) -> None:
    request = flavor_service_pb2.GetFlavorRequest(flavor="m1")

    answer = await _call(wire, GET, request.SerializeToString())

    flavor = flavor_service_pb2.GetFlavorResponse.FromString(answer).flavor
    assert (flavor.name, flavor.description) == ("m1", "u")


async def test_malformed_bytes_are_an_invalid_argument(wire: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _call(wire, GET, b"\xff\xff\xff")

    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _error(raised.value).reason is Reason.MESSAGE_MALFORMED


async def test_an_unexpected_exception_tells_nothing_but_an_id(wire: grpc.aio.Channel) -> None:
    request = flavor_service_pb2.GetFlavorRequest(flavor="bug")

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _call(wire, GET, request.SerializeToString())

    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in repr(raised.value)
    assert "KeyError" not in repr(raised.value)


async def test_an_error_arrives_with_its_class_field_and_reason(wire: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _call(wire, GET, b"")
    error = _error(raised.value)

    assert isinstance(error, InvalidRequest)
    assert (error.field, error.reason) == ("flavor", Reason.FIELD_INVALID)


async def test_without_a_token_a_method_is_closed(wire: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _call(wire, GET, b"\xff", token=False)

    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_message_of_more_than_a_mebibyte_is_refused(wire: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _call(wire, GET, b"\x0a" + b"\xff" * 1_100_000)

    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_uploads_and_downloads_are_streamed(wire: grpc.aio.Channel) -> None:
    pieces = [image_service_pb2.CreateImageRequest(data=b"x" * size) for size in (1_000_000, 5)]
    upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = wire.stream_unary(
        "/fabric.image.v1.ImageService/CreateImage"
    )
    download: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = wire.unary_stream(
        "/fabric.image.v1.ImageService/DownloadImage"
    )

    made = await upload((piece.SerializeToString() for piece in pieces), metadata=TOKEN, timeout=60)
    got = download(
        image_service_pb2.DownloadImageRequest(image="i").SerializeToString(), metadata=TOKEN, timeout=60
    )
    data = [image_service_pb2.DownloadImageResponse.FromString(piece).data async for piece in got]

    assert image_service_pb2.CreateImageResponse.FromString(made).image.size_bytes == 1_000_005
    assert data == [b"one", b"two"]


async def test_an_unserved_method_is_unimplemented(wire: grpc.aio.Channel) -> None:
    service = instance_service_pb2.DESCRIPTOR.services_by_name["InstanceService"]

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _call(wire, f"/{service.full_name}/GetInstance", b"")

    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_says_serving_for_every_service(wire: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(wire)

    answers = [
        await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
        for name in ("", "fabric.compute.v1.FlavorService")
    ]

    assert {answer.status for answer in answers} == {health_pb2.HealthCheckResponse.SERVING}
