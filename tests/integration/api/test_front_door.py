"""What the front door does with bad input, strangers and secrets, over real gRPC."""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from fabric.errors import (
    AlreadyExists,
    Conflict,
    FabricError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Reason,
    Unauthenticated,
)
from fabric.observability.audit import verify
from fabric.pb.compute.v1 import flavor_service_pb2 as flavors
from fabric.pb.compute.v1 import host_service_pb2 as hosts
from fabric.pb.compute.v1 import instance_service_pb2 as instances
from fabric.pb.compute.v1 import keypair_service_pb2 as keypairs
from fabric.pb.identity.v1 import project_service_pb2 as projects
from fabric.pb.identity.v1 import token_service_pb2 as tokens
from fabric.pb.identity.v1 import user_service_pb2 as users
from fabric.pb.image.v1 import image_service_pb2 as images
from tests.integration.api.front_door import ADMIN_PASSWORD, FrontDoor
from tests.unit.images.evil_images import disk, qcow2

FLAVORS, IMAGES, INSTANCES = (
    "fabric.compute.v1.FlavorService",
    "fabric.image.v1.ImageService",
    "fabric.compute.v1.InstanceService",
)
KEYPAIRS, HOSTS = "fabric.compute.v1.KeypairService", "fabric.compute.v1.HostService"
USERS, PROJECTS, TOKENS = (
    "fabric.identity.v1.UserService",
    "fabric.identity.v1.ProjectService",
    "fabric.identity.v1.TokenService",
)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl you@laptop"
FUZZ_SEED = 20_261_122
FUZZ_TRIES = 20
"""Requests of each method; ten times as many among the slow tests."""


def rid() -> str:
    return uuid.uuid4().hex


def upload(name: str, data: bytes, fmt: int = images.IMAGE_FORMAT_RAW, **fields: Any) -> list[bytes]:
    image = images.Image(name=name, **fields)
    image.format = images.ImageFormat.ValueType(fmt)
    image.sha256 = image.sha256 or hashlib.sha256(data).hexdigest()
    header = images.CreateImageRequest(header=images.ImageHeader(request_id=rid(), image=image))
    pieces = [data[begin : begin + 500_000] for begin in range(0, len(data), 500_000)]
    return [
        header.SerializeToString(),
        *(images.CreateImageRequest(data=piece).SerializeToString() for piece in pieces),
    ]


async def make_flavor(door: FrontDoor, name: str = "m1.nebula_micro") -> flavors.Flavor:
    request = flavors.CreateFlavorRequest(
        request_id=rid(), flavor=flavors.Flavor(name=name, vcpus=1, ram_mib=512, disk_gib=1)
    )
    answer = await door.ask(FLAVORS, "CreateFlavor", request, "system admin")
    return flavors.CreateFlavorResponse.FromString(answer).flavor


async def make_image(door: FrontDoor, who: str = "own member", name: str = "linux") -> images.Image:
    answer = await door.send(f"/{IMAGES}/CreateImage", upload(name, disk()), door.tokens[who])
    return images.CreateImageResponse.FromString(answer).image


async def make_server(door: FrontDoor, who: str = "own member", **fields: Any) -> instances.Instance:
    request = instances.CreateInstanceRequest(
        **{"request_id": rid(), "name": "web", "flavor": "m1.nebula_micro", "image": "linux", **fields}
    )
    answer = await door.ask(INSTANCES, "CreateInstance", request, who)
    return instances.CreateInstanceResponse.FromString(answer).instance


# ------------------------------------------------------------------------------------------ malformed bytes


@pytest.mark.parametrize(
    "tries",
    [
        FUZZ_TRIES,
        pytest.param(10 * FUZZ_TRIES, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
async def test_no_bytes_make_any_method_fail_in_an_unforeseen_way(door: FrontDoor, tries: int) -> None:
    """Every method, with garbage, with truncated and with randomly damaged requests, asked by whoever may call it."""
    chance = random.Random(FUZZ_SEED + tries)
    outcomes: set[str] = set()
    for method in door.methods:
        for _ in range(tries):
            data = _damaged(chance, method.request)
            pieces = [data, _damaged(chance, method.request)] if method.streams_requests else data
            for who in ("system admin", "own member"):
                try:
                    await door.send(method.path, pieces, door.tokens[who])
                except FabricError as error:
                    outcomes.add(error.facts["grpc_code"])

    assert outcomes <= {
        "INVALID_ARGUMENT",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "RESOURCE_EXHAUSTED",
        "ABORTED",
        "FAILED_PRECONDITION",
    }


def _damaged(chance: random.Random, kind: type[Message]) -> bytes:
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(64))
    message = kind()
    _fill(chance, message, depth=3)
    data = bytearray(message.SerializeToString())
    for _ in range(chance.randrange(4)):
        if data:
            data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data[: chance.randrange(len(data) + 1)] if chance.random() < 0.3 else data)


def _fill(chance: random.Random, message: Message, *, depth: int) -> None:
    """Set every field to something: sensible, extreme or odd."""
    texts = (
        "",
        "x",
        "linux",
        "a" * 300,
        "\x00",
        "../../etc/passwd",
        "é😀",
        str(uuid.uuid4()),
        "0" * 64,
        "%s%n",
    )
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.3:
            continue
        if field.message_type is not None:
            if field.message_type.GetOptions().map_entry:
                getattr(message, field.name)[chance.choice(texts)] = chance.choice(texts)
            elif field.is_repeated:
                if depth:
                    _fill(chance, getattr(message, field.name).add(), depth=depth - 1)
            elif depth:
                _fill(chance, getattr(message, field.name), depth=depth - 1)
            continue
        value: object = {
            field.TYPE_STRING: chance.choice(texts),
            field.TYPE_BYTES: chance.randbytes(8),
            field.TYPE_BOOL: True,
            field.TYPE_ENUM: chance.choice([0, 1, 2, 77]),
        }.get(field.type, chance.choice([0, 1, -1, 2**31 - 1]))
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)


async def test_nesting_without_end_is_malformed(door: FrontDoor) -> None:
    data = b""
    for _ in range(10_000):
        data = b"\x0b" + data  # a group that is never closed

    with pytest.raises(InvalidRequest) as raised:
        await door.send(f"/{FLAVORS}/GetFlavor", data, door.tokens["own member"])

    assert raised.value.reason is Reason.MESSAGE_MALFORMED


# ------------------------------------------------------------------------------------------ bad input, by field


def _flavor(wrong: dict[str, Any]) -> flavors.Flavor:
    return flavors.Flavor(**{"name": "f", "vcpus": 1, "ram_mib": 512, **wrong})


BAD: list[tuple[str, str, Message, str]] = [
    (FLAVORS, "CreateFlavor", flavors.CreateFlavorRequest(), "request_id"),
    (FLAVORS, "CreateFlavor", flavors.CreateFlavorRequest(request_id="a b"), "request_id"),
    (FLAVORS, "CreateFlavor", flavors.CreateFlavorRequest(request_id="é"), "request_id"),
    (FLAVORS, "CreateFlavor", flavors.CreateFlavorRequest(request_id="x" * 65), "request_id"),
    (FLAVORS, "CreateFlavor", flavors.CreateFlavorRequest(request_id="r"), "flavor"),
    *(
        (
            FLAVORS,
            "CreateFlavor",
            flavors.CreateFlavorRequest(
                request_id="r",
                flavor=_flavor(wrong),
            ),
            f"flavor.{field}",
        )
        for field, wrong in (
            ("name", {"name": ""}),
            ("name", {"name": "a/b"}),
            ("name", {"name": "n" * 256}),
            ("vcpus", {"vcpus": 0}),
            ("vcpus", {"vcpus": 513}),
            ("vcpus", {"vcpus": -1}),
            ("ram_mib", {"ram_mib": 63}),
            ("ram_mib", {"ram_mib": 1 << 62}),
            ("disk_gib", {"disk_gib": -1}),
            ("id", {"id": "mine"}),
            ("etag", {"etag": "7"}),
            ("description", {"description": "d" * 1025}),
            ("properties[trait:GPU]", {"properties": {"trait:GPU": "perhaps"}}),
            ("properties", {"properties": {str(n): "" for n in range(65)}}),
        )
    ),
    (FLAVORS, "ListFlavors", flavors.ListFlavorsRequest(page_size=1001), "page_size"),
    (FLAVORS, "ListFlavors", flavors.ListFlavorsRequest(page_token="made-up"), "page_token"),
    (INSTANCES, "CreateInstance", instances.CreateInstanceRequest(request_id="r"), "name"),
    (
        INSTANCES,
        "CreateInstance",
        instances.CreateInstanceRequest(request_id="r", name="a\x07b", flavor="f", image="i"),
        "name",
    ),
    (
        INSTANCES,
        "CreateInstance",
        instances.CreateInstanceRequest(
            request_id="r", name="n", flavor="f", image="i", user_data=b"x" * 65_536
        ),
        "user_data",
    ),
    (
        INSTANCES,
        "CreateInstance",
        instances.CreateInstanceRequest(request_id="r", name="n", flavor="no-such", image="i"),
        "flavor",
    ),
    (
        INSTANCES,
        "CreateInstance",
        instances.CreateInstanceRequest(request_id="r", name="n", flavor="m1.nebula_micro", image="no-such"),
        "image",
    ),
    (
        INSTANCES,
        "CreateInstance",
        instances.CreateInstanceRequest(
            request_id="r", name="n", flavor="m1.nebula_micro", image="linux", network="no-such"
        ),
        "network",
    ),
    (
        INSTANCES,
        "CreateInstance",
        instances.CreateInstanceRequest(
            request_id="r", name="n", flavor="m1.nebula_micro", image="linux", key_name="no-such"
        ),
        "key_name",
    ),
    (
        INSTANCES,
        "RebootInstance",
        instances.RebootInstanceRequest(request_id="r", instance="i", kind=9),  # type: ignore[arg-type]  # no such kind
        "kind",
    ),
    (KEYPAIRS, "CreateKeypair", _key := keypairs.CreateKeypairRequest(request_id="r"), "keypair"),
    *(
        (
            KEYPAIRS,
            "CreateKeypair",
            keypairs.CreateKeypairRequest(
                request_id="r", keypair=keypairs.Keypair(name="k", public_key=text)
            ),
            "keypair.public_key",
        )
        for text in (
            "hello",
            "ssh-ed25519 not-base64!",
            "ssh-ed25519 AAAA",
            KEY.replace("ed25519", "dss", 1),
            "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n",
            KEY + "\nssh-ed25519 second",
        )
    ),
    (
        HOSTS,
        "CreateHost",
        hosts.CreateHostRequest(
            request_id="r",
            host=hosts.Host(
                name="h1",
                cell="nowhere",
                spec=hosts.HostSpec(
                    availability_zone="z", vcpus=1, ram_mib=64, disk_gib=1, guest_cidr="10.0.0.0/24"
                ),
            ),
        ),
        "host.cell",
    ),
    *(
        (
            HOSTS,
            "CreateHost",
            hosts.CreateHostRequest(
                request_id="r",
                host=hosts.Host(
                    name="h1",
                    cell="c1",
                    spec=hosts.HostSpec(
                        availability_zone="z", vcpus=1, ram_mib=64, disk_gib=1, guest_cidr=cidr
                    ),
                ),
            ),
            "host.spec.guest_cidr",
        )
        for cidr in ("", "x", "10.0.0.1/24", "8.8.8.0/24", "10.0.0.0/30", "10.0.0.0/8", "fd00::/64")
    ),
    (
        USERS,
        "CreateUser",
        users.CreateUserRequest(request_id="r", user=users.User(name="u"), password="short"),
        "password",
    ),
    (
        USERS,
        "CreateUser",
        users.CreateUserRequest(request_id="r", user=users.User(name="username"), password="UserName"),
        "password",
    ),
    (
        USERS,
        "CreateUser",
        users.CreateUserRequest(
            request_id="r", user=users.User(name="u"), password="long enough", project="own", role="king"
        ),
        "role",
    ),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[1]}-{case[3]}")
async def test_bad_input_names_its_field_and_changes_nothing(
    door: FrontDoor, case: tuple[str, str, Message, str]
) -> None:
    service, name, request, field = case
    await make_flavor(door)
    await make_image(door, "system admin")
    before = [store.revision for store in (door.store, *door.cells.values())]

    with pytest.raises(InvalidRequest) as raised:
        await door.ask(service, name, request, "system admin")

    assert raised.value.field == field
    assert [store.revision for store in (door.store, *door.cells.values())] == before


async def test_a_name_that_is_taken_is_said_to_be(door: FrontDoor) -> None:
    await make_flavor(door)
    await make_image(door)
    key = keypairs.Keypair(name="k", public_key=KEY)
    await door.ask(
        KEYPAIRS, "CreateKeypair", keypairs.CreateKeypairRequest(request_id=rid(), keypair=key), "own member"
    )

    with pytest.raises(AlreadyExists):
        await make_flavor(door)
    with pytest.raises(AlreadyExists):
        await make_image(door)
    with pytest.raises(AlreadyExists):
        await door.ask(
            KEYPAIRS,
            "CreateKeypair",
            keypairs.CreateKeypairRequest(request_id=rid(), keypair=key),
            "own member",
        )
    for service, name, request in (
        (
            PROJECTS,
            "CreateProject",
            projects.CreateProjectRequest(request_id=rid(), project=projects.Project(name="own")),
        ),
        (
            USERS,
            "CreateUser",
            users.CreateUserRequest(request_id=rid(), user=users.User(name="admin"), password="long enough"),
        ),
    ):
        with pytest.raises(AlreadyExists):
            await door.ask(service, name, request, "system admin")


async def test_an_image_that_lies_is_refused_and_nothing_of_it_is_kept(door: FrontDoor) -> None:
    before = door.store.revision

    for data in (qcow2(), qcow2(backing=(512, 11))):
        with pytest.raises(InvalidRequest) as raised:
            await door.send(f"/{IMAGES}/CreateImage", upload("evil", data), door.tokens["own member"])
        assert raised.value.reason is Reason.IMAGE_REJECTED

    assert door.store.revision == before


async def test_only_administrators_make_public_images(door: FrontDoor) -> None:
    pieces = upload("public", disk(), visibility=images.VISIBILITY_PUBLIC)

    with pytest.raises(PermissionDenied):
        await door.send(f"/{IMAGES}/CreateImage", pieces, door.tokens["own admin"])

    await door.send(f"/{IMAGES}/CreateImage", pieces, door.tokens["system admin"])
    answer = await door.ask(IMAGES, "GetImage", images.GetImageRequest(image="public"), "other reader")
    assert images.GetImageResponse.FromString(answer).image.size_bytes == len(disk())


# ------------------------------------------------------------------------------------------ requests sent again


async def test_the_same_request_twice_is_done_once(door: FrontDoor) -> None:
    request = flavors.CreateFlavorRequest(
        request_id="once", flavor=flavors.Flavor(name="f", vcpus=1, ram_mib=512, disk_gib=1)
    )

    first = await door.ask(FLAVORS, "CreateFlavor", request, "system admin")
    again = await door.ask(FLAVORS, "CreateFlavor", request, "system admin")
    request.flavor.vcpus = 2
    with pytest.raises(Conflict) as raised:
        await door.ask(FLAVORS, "CreateFlavor", request, "system admin")

    made = [flavors.CreateFlavorResponse.FromString(each).flavor for each in (first, again)]
    assert made[0] == made[1]
    assert raised.value.reason is Reason.REQUEST_ID_MISMATCH


async def test_a_server_is_accepted_charged_once_and_shown(door: FrontDoor) -> None:
    await make_flavor(door)
    await make_image(door)

    made = [await make_server(door, request_id="same") for _ in range(3)]
    project = await door.ask(
        PROJECTS, "GetProject", projects.GetProjectRequest(project="own"), "system admin"
    )
    shown = await door.ask(
        INSTANCES, "GetInstance", instances.GetInstanceRequest(instance="web"), "own reader"
    )

    assert {each.id for each in made} == {made[0].id}
    assert projects.GetProjectResponse.FromString(project).project.quota_used.instances == 1
    instance = instances.GetInstanceResponse.FromString(shown).instance
    assert (instance.id, instance.status.state) == (made[0].id, "BUILD")


async def test_quota_is_exact_and_says_which(door: FrontDoor) -> None:
    await make_flavor(door)
    await make_image(door)
    for number in range(5):
        await make_server(door, name=f"web-{number}")

    with pytest.raises(QuotaExceeded) as raised:
        await make_server(door)

    assert raised.value.facts["resource"] == "instances"


# ------------------------------------------------------------------------------------------ strangers


async def test_what_is_foreign_looks_exactly_as_if_it_were_absent(door: FrontDoor) -> None:
    await make_flavor(door)
    image = await make_image(door)
    server = await make_server(door)
    absent = str(uuid.uuid4())
    asks: list[tuple[str, str, Callable[[str], Message]]] = [
        (INSTANCES, "GetInstance", lambda name: instances.GetInstanceRequest(instance=name)),
        (INSTANCES, "GetConsoleLog", lambda name: instances.GetConsoleLogRequest(instance=name)),
        *(
            (INSTANCES, action, lambda name, kind=kind: kind(request_id=rid(), instance=name))
            for action, kind in (
                ("DeleteInstance", instances.DeleteInstanceRequest),
                ("StartInstance", instances.StartInstanceRequest),
                ("StopInstance", instances.StopInstanceRequest),
                ("RebootInstance", instances.RebootInstanceRequest),
            )
        ),
        (IMAGES, "GetImage", lambda name: images.GetImageRequest(image=name)),
        (IMAGES, "DownloadImage", lambda name: images.DownloadImageRequest(image=name)),
        (IMAGES, "DeleteImage", lambda name: images.DeleteImageRequest(request_id=rid(), image=name)),
    ]

    for service, name, ask in asks:
        theirs = server.id if service == INSTANCES else image.id
        told = []
        for word in (theirs, absent):
            with pytest.raises(NotFound) as raised:
                await door.ask(service, name, ask(word), "other admin")
            told.append(repr((raised.value.message, sorted(raised.value.facts.items()))).replace(word, "X"))
        assert told[0] == told[1], name


async def test_lists_hold_only_what_is_ones_own(door: FrontDoor) -> None:
    await make_flavor(door)
    await make_image(door)
    await make_server(door)

    theirs = await door.ask(INSTANCES, "ListInstances", instances.ListInstancesRequest(), "other admin")
    pictures = await door.ask(IMAGES, "ListImages", images.ListImagesRequest(), "other admin")
    with pytest.raises(PermissionDenied):
        await door.ask(
            INSTANCES, "ListInstances", instances.ListInstancesRequest(all_projects=True), "other admin"
        )

    assert not instances.ListInstancesResponse.FromString(theirs).instances
    assert not images.ListImagesResponse.FromString(pictures).images


async def test_a_revoked_token_is_refused_at_once(door: FrontDoor) -> None:
    token = await door.log_in("admin", ADMIN_PASSWORD)
    await door.send(f"/{TOKENS}/WhoAmI", b"", token)
    await door.send(f"/{TOKENS}/RevokeToken", b"", token)

    with pytest.raises(Unauthenticated):
        await door.send(f"/{TOKENS}/WhoAmI", b"", token)


@pytest.mark.parametrize(("user", "password"), [("admin", "wrong password"), ("nobody", "wrong password")])
async def test_a_wrong_login_tells_nothing(door: FrontDoor, user: str, password: str) -> None:
    request = tokens.IssueTokenRequest(user=user, password=password)

    with pytest.raises(Unauthenticated) as raised:
        await door.ask(TOKENS, "IssueToken", request)

    assert raised.value.message == "user or password is wrong"


# ------------------------------------------------------------------------------------------ secrets and the audit


async def test_no_secret_is_in_any_log_error_or_store(
    door: FrontDoor, capsys: pytest.CaptureFixture[str]
) -> None:
    await make_flavor(door)
    await make_image(door)
    password, user_data = "swordfish-canary", b"user-data-canary"
    await door.ask(
        USERS,
        "CreateUser",
        users.CreateUserRequest(
            request_id=rid(), user=users.User(name="u"), password=password, project="own"
        ),
        "system admin",
    )
    token = await door.log_in("u", password)
    await make_server(door, user_data=user_data)
    with pytest.raises(FabricError):
        await door.log_in("u", password + "-wrong")
    with pytest.raises(FabricError):
        await make_server(door, flavor="no-such", user_data=user_data)

    written = capsys.readouterr()
    logged = written.out + written.err + b"".join(door.audit.written).decode()
    stored = b"".join(change.after or b"" for change in door.store.history)
    assert "rpc.finished" in logged
    for secret in (password, token, user_data.decode(), ADMIN_PASSWORD, door.tokens["own member"]):
        assert secret not in logged
    for secret in (password, token, ADMIN_PASSWORD):
        assert secret.encode() not in stored


async def test_every_change_and_every_denial_is_in_the_audit_log(door: FrontDoor) -> None:
    await make_flavor(door)
    with pytest.raises(PermissionDenied):
        await door.ask(
            FLAVORS, "DeleteFlavor", flavors.DeleteFlavorRequest(request_id="r", flavor="x"), "own admin"
        )
    await door.ask(FLAVORS, "ListFlavors", flavors.ListFlavorsRequest(), "own reader")

    lines = [json.loads(line) for line in door.audit.written]
    told = [(line["method"].rpartition("/")[2], line["outcome"]) for line in lines]
    assert told == [("CreateFlavor", "OK"), ("DeleteFlavor", "PERMISSION_DENIED")]
    assert lines[0]["target"] == "m1.nebula_micro"
    verify(door.audit.written)
