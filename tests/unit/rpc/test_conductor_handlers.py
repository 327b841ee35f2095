from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fabric.errors import TooMuch
from fabric.model.identity import Principal
from fabric.model.image import ImageOffer
from fabric.model.network_plan import PlanState
from fabric.pb.host.v1 import conductor_service_pb2
from fabric.pb.host.v1 import host_session_service_pb2 as pb
from fabric.rpc.conductor_handlers import (
    FETCHES_AT_ONCE,
    SESSIONS_AT_ONCE,
    UPLOADS_AT_ONCE,
    ConductorHandlers,
    HostSessionHandlers,
)
from fabric.rpc.plan_codec import unpack_plan_state
from fabric.rpc.stream import Stream, memory_pair
from tests.console_doubles import NoConsoles

EVIL = Principal(cell="east", host="evil", cert_serial="1")
GOOD = Principal(cell="east", host="good", cert_serial="2")
Ask = Callable[[HostSessionHandlers, Principal], Coroutine[Any, Any, object]]

REQUEST = pb.FetchImageRequest(image_id="00000000-0000-4000-8000-0000000000aa")


STATE = PlanState(
    revision=9,
    followed=8,
    told_age_ms=50,
    followed_age_ms=700,
    fault_code="NETWORK_FAILED",
    fault_message="no",
    is_current=True,
)


class Endless(NoConsoles):
    """A conductor whose sessions and images last until they are let go of."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.serving = 0

    async def serve_host(self, host: str, cert_serial: str, stream: Stream) -> None:
        self.serving += 1
        await self.over.wait()

    async def fetch_image(
        self, host: str, cert_serial: str, image_id: str, offset_bytes: int
    ) -> AsyncIterator[bytes]:
        self.serving += 1
        yield b"first"
        await self.over.wait()

    async def upload_image(
        self, host: str, cert_serial: str, offer: ImageOffer, chunks: AsyncIterator[bytes]
    ) -> None:
        self.serving += 1
        await self.over.wait()

    async def read_console_log(
        self, host: str, instance_id: str, placement_epoch: int, tail_bytes: int
    ) -> bytes:
        return b""

    def read_progress(self, instance_ids: Iterable[str]) -> Mapping[str, str]:
        return {}

    def read_plan_state(self, host: str) -> PlanState | None:
        return STATE if host == "h1" else None


async def _fetch(handlers: HostSessionHandlers, principal: Principal) -> list[bytes]:
    return [response.data async for response in handlers.fetch_image(REQUEST, principal)]


async def _upload(handlers: HostSessionHandlers, principal: Principal) -> None:
    await handlers.upload_image(_offer_only(), principal)


async def _offer_only() -> AsyncIterator[pb.UploadImageRequest]:
    yield pb.UploadImageRequest(header=pb.ImageOffer(image_id=REQUEST.image_id))


async def _session(handlers: HostSessionHandlers, principal: Principal) -> None:
    here, _ = memory_pair()
    await handlers.session(here, principal)


@pytest.mark.parametrize(
    ("ask", "most"), [(_fetch, FETCHES_AT_ONCE), (_upload, UPLOADS_AT_ONCE), (_session, SESSIONS_AT_ONCE)]
)
async def test_a_host_that_asks_for_ever_more_at_once_is_stopped_and_no_other(ask: Ask, most: int) -> None:
    conductor = Endless()
    handlers = HostSessionHandlers(conductor, "east")
    evil = [asyncio.create_task(ask(handlers, EVIL)) for _ in range(3 * most)]
    good = asyncio.create_task(ask(handlers, GOOD))
    for _ in range(20):
        await asyncio.sleep(0)
    serving = conductor.serving

    conductor.over.set()
    outcomes = await asyncio.gather(*evil, return_exceptions=True)
    await good

    assert serving == most + 1
    assert sum(isinstance(each, TooMuch) for each in outcomes) == 2 * most
    # Those that are over are forgotten.
    await ask(handlers, EVIL)


async def test_who_has_a_revoked_certificate_takes_none_of_the_hosts_own_sessions() -> None:
    """They were counted by the host's name: eight streams that said nothing, under a certificate that was revoked, kept the host out."""
    conductor = Endless()
    handlers = HostSessionHandlers(conductor, "east")
    revoked = replace(GOOD, cert_serial="3")
    thieves = [asyncio.create_task(_session(handlers, revoked)) for _ in range(SESSIONS_AT_ONCE)]
    await asyncio.sleep(0)
    host = asyncio.create_task(_session(handlers, GOOD))
    await asyncio.sleep(0)

    conductor.over.set()
    await asyncio.gather(host, *thieves)

    assert conductor.serving == SESSIONS_AT_ONCE + 1


def test_how_far_a_host_is_comes_through_as_it_was_said() -> None:
    handlers = ConductorHandlers(Endless())
    api = Principal(user_id="", project_id="", service="api")

    told = asyncio.run(handlers.read_plan_state(_asking("h1"), api))
    untold = asyncio.run(handlers.read_plan_state(_asking("h2"), api))

    assert unpack_plan_state(told.state) == STATE
    assert not untold.HasField("state")


def _asking(host: str) -> conductor_service_pb2.ReadPlanStateRequest:
    return conductor_service_pb2.ReadPlanStateRequest(host=host)
