"""What is another project's looks, byte for byte, as if it were not there: for every method that takes somebody's resource."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable

import grpc.aio
import pytest
from google.protobuf.message import Message

from fabric.errors import FabricError
from fabric.pb.compute.v1 import instance_service_pb2 as instances
from fabric.pb.compute.v1 import keypair_service_pb2 as keypairs
from fabric.pb.identity.v1 import project_service_pb2 as projects
from fabric.pb.image.v1 import image_service_pb2 as images
from fabric.rpc.status import DETAILS_KEY
from tests.integration.api.front_door import FrontDoor, project_id
from tests.integration.api.test_front_door import (
    IMAGES,
    INSTANCES,
    KEY,
    KEYPAIRS,
    PROJECTS,
    make_flavor,
    make_image,
    make_server,
    rid,
)
from tests.unit.images.evil_images import disk

ABSENT = "99999999-9999-4999-8999-999999999999"


def _create_image(kernel: str) -> images.CreateImageRequest:
    image = images.Image(
        name=f"k-{uuid.uuid4().hex}",
        format=images.IMAGE_FORMAT_RAW,
        sha256=hashlib.sha256(disk()).hexdigest(),
        kernel_id=kernel,
    )
    return images.CreateImageRequest(header=images.ImageHeader(request_id=rid(), image=image))


BY_SERVER: tuple[tuple[str, Callable[[str], Message]], ...] = (
    ("GetInstance", lambda name: instances.GetInstanceRequest(instance=name)),
    ("GetConsoleLog", lambda name: instances.GetConsoleLogRequest(instance=name)),
    ("GetInstanceDiagnostics", lambda name: instances.GetInstanceDiagnosticsRequest(instance=name)),
    (
        "ChangePassword",
        lambda name: instances.ChangePasswordRequest(request_id=rid(), instance=name, password="x"),
    ),
    ("DeleteInstance", lambda name: instances.DeleteInstanceRequest(request_id=rid(), instance=name)),
    ("StartInstance", lambda name: instances.StartInstanceRequest(request_id=rid(), instance=name)),
    ("StopInstance", lambda name: instances.StopInstanceRequest(request_id=rid(), instance=name)),
    ("RebootInstance", lambda name: instances.RebootInstanceRequest(request_id=rid(), instance=name)),
)
BY_IMAGE: tuple[tuple[str, str, Callable[[str], Message]], ...] = (
    (IMAGES, "GetImage", lambda name: images.GetImageRequest(image=name)),
    (IMAGES, "DownloadImage", lambda name: images.DownloadImageRequest(image=name)),
    (IMAGES, "DeleteImage", lambda name: images.DeleteImageRequest(request_id=rid(), image=name)),
    (IMAGES, "CreateImage", _create_image),
    (
        INSTANCES,
        "CreateInstance",
        lambda name: instances.CreateInstanceRequest(
            request_id=rid(), name="web", flavor="m1.nebula_micro", image=name
        ),
    ),
)


async def _told(door: FrontDoor, path: str, request: Message) -> tuple[str, str, bytes]:
    """Code, words and details, as they come over the wire."""
    with pytest.raises(FabricError) as refused:
        await door.send(path, request.SerializeToString(), door.tokens["other admin"])
    raised = refused.value.__cause__
    assert isinstance(raised, grpc.aio.AioRpcError)
    details = next(value for key, value in raised.trailing_metadata() or () if key == DETAILS_KEY)
    assert isinstance(details, bytes)
    return raised.code().name, raised.details() or "", details


async def test_what_is_foreign_is_told_as_if_it_were_absent(door: FrontDoor) -> None:
    await make_flavor(door)
    image, server = await make_image(door), await make_server(door)
    keypair = keypairs.CreateKeypairRequest(
        request_id=rid(), keypair=keypairs.Keypair(name="mine", public_key=KEY)
    )
    await door.ask(KEYPAIRS, "CreateKeypair", keypair, "own member")
    asks: list[tuple[str, Callable[[str], Message], str, str]] = [
        *((f"/{INSTANCES}/{name}", ask, server.id, ABSENT) for name, ask in BY_SERVER),
        # By name too: names are a project's own.
        *((f"/{INSTANCES}/{name}", ask, "web", "wob") for name, ask in BY_SERVER),
        *((f"/{service}/{name}", ask, image.id, ABSENT) for service, name, ask in BY_IMAGE),
        (f"/{KEYPAIRS}/GetKeypair", lambda name: keypairs.GetKeypairRequest(keypair=name), "mine", "none"),
        (
            f"/{PROJECTS}/GetProject",
            lambda name: projects.GetProjectRequest(project=name),
            project_id("own"),
            ABSENT,
        ),
    ]

    for path, ask, foreign, absent in asks:
        told = [await _told(door, path, ask(word)) for word in (foreign, absent)]
        code, words, details = told[0]
        assert (
            code,
            words.replace(foreign, absent),
            details.replace(foreign.encode(), absent.encode()),
        ) == told[1], path
