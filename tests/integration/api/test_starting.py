"""What a server says before it knows what an answer needs. Its port is open from the first moment."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from fabric.errors import Reason, Unavailable
from fabric.pb.identity.v1 import token_service_pb2 as tokens
from fabric.pb.image.v1 import image_service_pb2 as images
from tests.integration.api.front_door import ADMIN_PASSWORD, FrontDoor

TOKENS, IMAGES = "fabric.identity.v1.TokenService", "fabric.image.v1.ImageService"


async def test_a_login_before_the_first_administrator_is_made_is_told_to_come_again(door: FrontDoor) -> None:
    """A test that logged in as soon as a new fabric's API process listened was told, once, that its password was wrong: the server was
    about to make the administrator. Clients try again what is unavailable, and give up on what is wrong.
    """
    door.service.ready.clear()

    with pytest.raises(Unavailable) as raised:
        await door.log_in("admin", ADMIN_PASSWORD)

    assert raised.value.reason is Reason.STARTING
    door.service.ready.set()
    assert await door.log_in("admin", ADMIN_PASSWORD)


@pytest.mark.parametrize(
    ("service", "name", "request_"),
    [(TOKENS, "WhoAmI", tokens.WhoAmIRequest()), (IMAGES, "ListImages", images.ListImagesRequest())],
)
async def test_nobody_is_answered_by_a_server_that_is_still_starting(
    door: FrontDoor, service: str, name: str, request_: Message
) -> None:
    door.service.ready.clear()

    with pytest.raises(Unavailable) as raised:
        await door.ask(service, name, request_, "own member")

    assert raised.value.reason is Reason.STARTING
