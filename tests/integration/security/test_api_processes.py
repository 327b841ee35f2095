"""fabric-api's processes against people who mean no good: odd requests by the thousand, stolen tokens, guesses, secrets that leak."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from itertools import islice
from pathlib import Path

import grpc
import grpc.aio
import pytest

from fabric.client.client import Client
from fabric.errors import FabricError, PermissionDenied, Unauthenticated, Unavailable
from fabric.pb.compute.v1 import (
    flavor_service_pb2,
    host_service_pb2,
    instance_service_pb2,
    keypair_service_pb2,
)
from fabric.pb.identity.v1 import project_service_pb2, token_service_pb2, user_service_pb2
from fabric.pb.image.v1 import image_service_pb2
from fabric.pb.network.v1 import network_service_pb2
from fabric.rpc.method import Method, methods
from fabric.rpc.status import code_of
from fabric.rpc.uploads import send_all
from fabric.store.etcd import EtcdSettings, EtcdStore
from tests.chaos.etcd_process import find_binaries
from tests.integration.security.api_processes import (
    PASSWORD,
    PATIENCE_S,
    ApiProcess,
    Apis,
    register_cell,
    started,
)
from tests.integration.security.odd_requests import odd_requests
from tests.unit.images.evil_images import disk

SERVICES = tuple(
    service
    for file in (
        *(flavor_service_pb2, host_service_pb2, instance_service_pb2, keypair_service_pb2),
        *(project_service_pb2, token_service_pb2, user_service_pb2, image_service_pb2, network_service_pb2),
    )
    for service in file.DESCRIPTOR.services_by_name.values()
)
METHODS = tuple(
    method
    for service in SERVICES
    for method in methods(service)
    # It would take the token that the others are asked with.
    if method.name != "RevokeToken"
)
SEED = 20_261_122
TYPED = frozenset(
    {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "ALREADY_EXISTS"}
    | {"RESOURCE_EXHAUSTED", "ABORTED", "FAILED_PRECONDITION", "UNAVAILABLE"}
)
MEMORY_MIB = 50
REVOKED_S = 2.0


@pytest.fixture
async def apis(tmp_path: Path) -> AsyncIterator[Apis]:
    if not find_binaries():
        pytest.skip("NO ETCD HERE: run tools/setup first")
    with started(tmp_path) as made:
        await register_cell(made)
        yield made


def _token(api: ApiProcess, user: str = "admin", password: str = PASSWORD) -> str:
    api.until_serving()
    with api.client() as client:
        return client.tokens.issue(user=user, password=password).token


async def _ask(wire: grpc.aio.Channel, method: Method, data: bytes, token: str) -> str:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    try:
        if method.streams_requests:
            upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = wire.stream_unary(method.path)
            # As our own programs send: a server may answer and hang up while its caller still writes, and gRPC by itself then hides what
            # it said.
            await send_all(upload(metadata=metadata, timeout=60), _twice(data))
        elif method.streams_responses:
            download: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = wire.unary_stream(method.path)
            async for _ in download(data, metadata=metadata, timeout=60):
                pass
        else:
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = wire.unary_unary(method.path)
            await unary(data, metadata=metadata, timeout=60)
    except grpc.aio.AioRpcError as refused:
        return refused.code().name
    except FabricError as refused:
        return code_of(refused).name
    return "OK"


async def _twice(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data
    yield data


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [800, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_whatever_is_asked_is_answered_with_an_error_of_ours(apis: Apis, count: int) -> None:
    api = apis.start()
    token = await asyncio.to_thread(_token, api)
    chance = random.Random(SEED)
    outcomes: Counter[str] = Counter()
    requests = odd_requests(METHODS, chance)
    async with api.channel() as wire:

        async def asker() -> None:
            while sum(outcomes.values()) < count:
                method, data = next(requests)
                # Without a token now and then, and with one that is none.
                shown = chance.choice([*[token] * 12, "", "fab_" + "A" * 43, "é", "x" * 5000])
                outcomes[await _ask(wire, method, data, shown if shown.isascii() else "")] += 1

        for method, data in islice(requests, 200):  # what is only loaded at first use is not growth
            await _ask(wire, method, data, token)
        memory = api.resident_mib()
        await asyncio.gather(*(asker() for _ in range(16)))

        assert outcomes.keys() <= TYPED, outcomes
        assert len(outcomes) >= 4
        assert api.process.poll() is None
        assert api.resident_mib() - memory < MEMORY_MIB
    assert "rpc.failed" not in api.log
    assert "Traceback" not in api.log


async def test_what_is_too_large_too_deep_or_too_much_is_refused_before_it_costs_anything(apis: Apis) -> None:
    api = apis.start()
    token = await asyncio.to_thread(_token, api)
    by_name = {method.name: method for method in METHODS}
    flavor, image = by_name["GetFlavor"], by_name["CreateImage"]
    memory = api.resident_mib()

    async with api.channel() as wire:
        large = [
            await _ask(wire, flavor, b"\x0a" + b"x" * size, token)
            for size in (1_100_000, 5_000_000, 100_000_000)
        ]
        large.append(await _ask(wire, image, b"x" * 5_000_000, token))
        deep = await _ask(wire, flavor, b"\x0b" * 100_000, token)
        many: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = wire.unary_unary(flavor.path)
        refused = []
        for metadata in (
            (("authorization", "Bearer " + "x" * 60_000),),
            tuple((f"x-{number}", "y" * 100) for number in range(1000)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await many(b"", metadata=metadata, timeout=60)
            refused.append(raised.value.code().name)
        # A bomb: an eighth of a gigabyte of zeros, which compress to next to nothing.
        with pytest.raises(grpc.aio.AioRpcError) as bomb:
            await many(b"\x00" * (128 << 20), timeout=60, compression=grpc.Compression.Gzip)
        alive = await _ask(wire, flavor, b"\x0a\x01x", token)

    assert large == ["RESOURCE_EXHAUSTED"] * 4
    assert deep == "INVALID_ARGUMENT"
    assert set(refused) <= {"RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNAVAILABLE"}
    assert bomb.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert alive == "NOT_FOUND"
    assert api.resident_mib() - memory < 2 * MEMORY_MIB


async def test_a_revoked_token_is_refused_by_every_server_within_two_seconds(apis: Apis) -> None:
    here, there = apis.start(), apis.start()
    for revoking, other in ((here, there), (there, here)):
        token = await asyncio.to_thread(_token, revoking)
        with revoking.client(token) as mine, other.client(token) as theirs:
            assert theirs.tokens.who_am_i().user_name == "admin"
            theirs.flavors.list()
            mine.tokens.revoke()
            revoked_s = time.monotonic()
            with pytest.raises(Unauthenticated):
                mine.tokens.who_am_i()
            with other.client(token) as late:
                while True:
                    # From when it was asked: how long the answer takes says nothing of what was decided.
                    after_s = time.monotonic() - revoked_s
                    if not await asyncio.to_thread(_is_let_in, late):
                        break
                    # The one bound in time that is a promise (goal G14), so it is asserted.
                    assert after_s < REVOKED_S
                    await asyncio.sleep(0.02)


async def test_who_is_kept_out_through_one_server_is_out_of_every_other(apis: Apis) -> None:
    here, there = apis.start(), apis.start()
    with here.client(await asyncio.to_thread(_token, here)) as admin:
        admin.projects.create(name="red")
        admin.users.create(name="ruth", password="a long password", project="red", role="admin")
        for take in (
            lambda: admin.users.update("ruth", disabled=True),
            lambda: admin.users.update("ruth", disabled=False, password="another password"),
            lambda: admin.users.grant_role(user="ruth", project="red", role="reader"),
            lambda: admin.users.revoke_role(user="ruth", project="red"),
        ):
            admin.users.update("ruth", disabled=False, password="a long password")
            with there.client(await asyncio.to_thread(_token, there, "ruth", "a long password")) as ruth:
                assert ruth.tokens.who_am_i().user_name == "ruth"
                await asyncio.to_thread(take)
                end_s = time.monotonic() + PATIENCE_S
                while await asyncio.to_thread(_is_let_in, ruth):
                    assert time.monotonic() < end_s
                    await asyncio.sleep(0.02)
    with there.client() as nobody, pytest.raises(PermissionDenied):
        nobody.tokens.issue(user="ruth", password="a long password")


def _is_let_in(client: Client) -> bool:
    try:
        client.tokens.who_am_i()
    except Unauthenticated:
        return False
    return True


async def test_a_token_is_for_one_project_and_its_role(apis: Apis) -> None:
    api = apis.start()
    with api.client(await asyncio.to_thread(_token, api)) as admin:
        for name in ("red", "blue"):
            admin.projects.create(name=name)
        admin.users.create(name="ruth", password="a long password", project="red")
        admin.flavors.create(name="f", vcpus=1, ram_mib=512, disk_gib=1)
        picture = apis.folder / "picture.raw"
        picture.write_bytes(disk())
        image = admin.images.create(name="secret", file=picture, disk_format="raw")
    with api.client() as nobody, pytest.raises(PermissionDenied):
        nobody.tokens.issue(user="ruth", password="a long password", project="blue")
    with api.client(await asyncio.to_thread(_token, api, "ruth", "a long password")) as ruth:
        assert ruth.tokens.who_am_i().project_name == "red"
        told = []
        for name in (image.id, image.id[:-4] + "ffff"):
            with pytest.raises(FabricError) as absent:
                ruth.images.get(name)
            told.append((type(absent.value), absent.value.message.replace(name, ""), absent.value.reason))
        with pytest.raises(PermissionDenied):
            ruth.users.list()
    assert told[0] == told[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_flood_of_guesses_leaves_room_for_everybody_else(apis: Apis) -> None:
    """From one address all of them, so the victim, who has another in real life, is one who has logged in already."""
    api = apis.start()
    token = await asyncio.to_thread(_token, api)
    login = next(method for method in METHODS if method.name == "IssueToken")
    who = next(method for method in METHODS if method.name == "WhoAmI")
    outcomes: Counter[str] = Counter()
    memory = api.resident_mib()
    async with api.channel() as wire, api.channel() as other:

        async def guess(number: int) -> None:
            request = token_service_pb2.IssueTokenRequest(user=f"user-{number}", password="wrong")
            outcomes[await _ask(wire, login, request.SerializeToString(), "")] += 1

        guesses = [asyncio.create_task(guess(number)) for number in range(1000)]
        answered = [await _ask(other, who, b"", token) for _ in range(50)]
        await asyncio.gather(*guesses)

    assert answered == ["OK"] * 50
    # UNAVAILABLE: gRPC hangs up on who asks for a thousand streams on one connection.
    assert set(outcomes) <= {"UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    assert 0 < outcomes["UNAUTHENTICATED"] < 500
    # Nineteen mebibytes for each of two threads, and no more however many guess.
    assert api.resident_mib() - memory < 2 * 19 + MEMORY_MIB


async def test_no_store_lets_in_who_has_no_certificate_of_its_own_authority(apis: Apis) -> None:
    apis.start()
    cluster = apis.stores["global"]
    known = cluster.certificates
    assert known is not None
    for settings in (
        EtcdSettings(endpoints=cluster.endpoints),
        EtcdSettings(endpoints=cluster.endpoints, ca_path=known.ca),
        EtcdSettings(
            endpoints=cluster.endpoints,
            ca_path=known.ca,
            cert_path=known.foreign_cert,
            key_path=known.foreign_key,
        ),
    ):
        store = EtcdStore(settings, name="global")
        with pytest.raises((Unavailable, TimeoutError)):
            async with asyncio.timeout(5):
                await store.list("")
        await store.close()


async def test_both_ports_speak_tls_1_3_and_nothing_else(apis: Apis) -> None:
    api = apis.start()
    await asyncio.to_thread(_token, api)
    ca = (apis.folder / "pki" / "ca.pem").read_text()
    for port in (api.port, api.internal_port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        assert b"\x00\x00\x00\x04\x01" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()
        for version, is_welcome in ((ssl.TLSVersion.TLSv1_3, True), (ssl.TLSVersion.TLSv1_2, False)):
            context = ssl.create_default_context(cadata=ca)
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2"])
            assert await _shakes_hands(port, context) is is_welcome


async def _shakes_hands(port: int, context: ssl.SSLContext) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    except OSError:  # ssl.SSLError is one
        return False
    writer.transport.abort()
    return True
