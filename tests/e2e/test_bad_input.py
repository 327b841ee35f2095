"""What nobody should send: each is refused by a typed error that names the field or the reason, and nothing is half done."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fabric.client import Client
from fabric.client.errors import from_rpc_error
from fabric.errors import (
    AlreadyExists,
    FabricError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Reason,
    TooMuch,
    Unauthenticated,
)
from fabric.pb.compute.v1 import (
    console_service_pb2,
    flavor_service_pb2,
    host_service_pb2,
    instance_event_service_pb2,
    instance_service_pb2,
    keypair_service_pb2,
)
from fabric.pb.identity.v1 import project_service_pb2, token_service_pb2, user_service_pb2
from fabric.pb.image.v1 import image_service_pb2
from fabric.pb.network.v1 import (
    floating_ip_service_pb2,
    network_service_pb2,
    port_service_pb2,
    router_service_pb2,
    security_group_service_pb2,
    subnet_service_pb2,
)
from fabric.pb.volume.v1 import volume_service_pb2
from tests.e2e.running import CREATE_TIMEOUT_S, Running, a_small_disk, until

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(300)]

CANARY = "canary-5f2b7c-must-never-be-logged"
TRIES = 20
"""Of a call that comes too soon. Its principal is the administrator, whose allowance this module's other calls share."""

SERVICES = [
    service
    for module in (
        console_service_pb2,
        flavor_service_pb2,
        floating_ip_service_pb2,
        host_service_pb2,
        image_service_pb2,
        instance_event_service_pb2,
        instance_service_pb2,
        keypair_service_pb2,
        network_service_pb2,
        port_service_pb2,
        project_service_pb2,
        router_service_pb2,
        security_group_service_pb2,
        subnet_service_pb2,
        token_service_pb2,
        user_service_pb2,
        volume_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
]
UNARY = [
    f"/{service.full_name}/{method.name}"
    for service in SERVICES
    for method in service.methods
    if not method.client_streaming and not method.server_streaming
]


@pytest.fixture(scope="module")
def client(running_fabric: Running, tmp_path_factory: pytest.TempPathFactory) -> Client:
    client = running_fabric.client()
    client.flavors.create(name="bad.tiny", vcpus=1, ram_mib=64, disk_gib=1)
    disk = a_small_disk(tmp_path_factory.mktemp("image"))
    client.images.create(name="bad.disk", file=disk, disk_format="raw")
    client.images.create(name="bad.public", file=disk, disk_format="raw", public=True)
    return client


@pytest.fixture(autouse=True)
def nothing_half_done(client: Client) -> Iterator[None]:
    """Whatever was refused has changed nothing that a tenant can see or is charged for."""

    def seen() -> tuple[object, ...]:
        return (
            [each.name for each in client.flavors.list()],
            [each.name for each in client.images.list()],
            [each.name for each in client.keypairs.list()],
            [each.id for each in client.instances.list().instances],
            client.projects.get("admin").quota_used.instances,
        )

    before = seen()
    yield
    until(lambda: seen() == before, "everything is as it was")


def server(client: Client, **changed: Any) -> Callable[[], object]:
    return lambda: client.instances.create(
        **{"name": "web", "flavor": "bad.tiny", "image": "bad.disk", **changed}
    )


def flavor(client: Client, **changed: Any) -> Callable[[], object]:
    return lambda: client.flavors.create(**{"name": "f", "vcpus": 1, "ram_mib": 64, "disk_gib": 1, **changed})


@pytest.mark.parametrize(
    ("make", "changed", "field"),
    [
        (flavor, {"vcpus": 0}, "vcpus"),
        (flavor, {"vcpus": -1}, "vcpus"),
        (flavor, {"vcpus": 1 << 30}, "vcpus"),
        (flavor, {"ram_mib": 0}, "ram_mib"),
        (flavor, {"ram_mib": 1 << 50}, "ram_mib"),
        (flavor, {"disk_gib": -1}, "disk_gib"),
        (flavor, {"name": ""}, "name"),
        (flavor, {"name": "x" * 300}, "name"),
        (flavor, {"name": "a\nb"}, "name"),
        (server, {"name": ""}, "name"),
        (server, {"name": "x" * 300}, "name"),
        (server, {"name": "a\x1b[2Jb"}, "name"),
        (server, {"flavor": ""}, "flavor"),
        (server, {"image": ""}, "image"),
        (server, {"user_data": b"x" * 70_000}, "user_data"),
        (server, {"metadata": {f"k{number}": "v" for number in range(1000)}}, "metadata"),
        (server, {"metadata": {"k": "v" * 10_000}}, "metadata"),
    ],
)
def test_a_field_out_of_range_is_named(
    client: Client, make: Callable[..., Callable[[], object]], changed: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make(client, **changed)()

    assert field in refused.value.field


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"flavor": "no-such-flavor"}, "no-such-flavor"),
        ({"image": "no-such-image"}, "no-such-image"),
        ({"network": "no-such-network"}, "no-such-network"),
        ({"key_name": "no-such-key"}, "no-such-key"),
    ],
)
def test_a_name_that_nobody_has_is_named(client: Client, changed: dict[str, Any], what: str) -> None:
    with pytest.raises((NotFound, InvalidRequest), match=what):
        server(client, **changed)()


@pytest.mark.parametrize("noun", ["instances", "flavors", "images", "keypairs", "projects", "users", "hosts"])
def test_what_is_not_there_is_not_found(client: Client, noun: str) -> None:
    with pytest.raises(NotFound):
        getattr(client, noun).get("7d5c2b1a-0000-4000-8000-00000000dead")


def test_a_name_is_given_once(client: Client, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists):
        flavor(client, name="bad.tiny")()
    with pytest.raises(AlreadyExists):
        client.images.create(name="bad.disk", file=a_small_disk(tmp_path), disk_format="raw")
    with pytest.raises(AlreadyExists):
        client.projects.create(name="admin")


def test_a_message_that_is_too_large_is_refused(client: Client) -> None:
    with pytest.raises((TooMuch, InvalidRequest)):
        flavor(client, description="x" * 3_000_000)()


# ------------------------------------------------------------------------------------------------- who is asking


@pytest.fixture(scope="module")
def channel(running_fabric: Running) -> Iterator[grpc.Channel]:
    """A connection without any of our client: what a hostile program would use."""
    roots = (running_fabric.state / "client" / "ca.pem").read_bytes()
    endpoint = f"127.0.0.1:{running_fabric.topology['api_port']}"
    with grpc.secure_channel(endpoint, grpc.ssl_channel_credentials(roots)) as made:
        yield made


def code_of(channel: grpc.Channel, method: str, data: bytes, token: str) -> grpc.StatusCode:
    """The answer to one call; one that came too soon after others is made again when the server has said that it may be."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    for _ in range(TRIES):
        future: Any = call.future(data, metadata=metadata, timeout=20)
        code: grpc.StatusCode = future.code()
        if code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            return code
        refused = from_rpc_error(future, method)
        assert isinstance(refused, TooMuch), refused
        assert refused.retry_after_s is not None, f"{method}: {refused.message}"
        time.sleep(refused.retry_after_s)
    raise AssertionError(f"{method}: still too soon, having waited {TRIES} times for as long as was asked")


@pytest.mark.parametrize("token", ["", "fab_" + "A" * 43, "not a token", "x" * 4000])
def test_nobody_gets_in_without_a_token_of_ours(channel: grpc.Channel, token: str) -> None:
    public = {"/fabric.identity.v1.TokenService/IssueToken"}

    codes = {method: code_of(channel, method, b"", token) for method in UNARY if method not in public}

    assert set(codes.values()) == {grpc.StatusCode.UNAUTHENTICATED}, codes


def test_malformed_bytes_are_called_so(channel: grpc.Channel, running_fabric: Running) -> None:
    token = running_fabric.cli("token", "issue", "-f", "value", "-c", "id").strip()
    assert token

    codes = {method: code_of(channel, method, b"\xff" * 40, token) for method in UNARY}

    assert set(codes.values()) == {grpc.StatusCode.INVALID_ARGUMENT}, codes


def test_another_tenant_sees_and_touches_nothing(client: Client, running_fabric: Running) -> None:
    running_fabric.cli("project", "create", "bad.other")
    running_fabric.cli("user", "create", "--project", "bad.other", "--password", CANARY, "bad.stranger")
    endpoint = f"127.0.0.1:{running_fabric.topology['api_port']}"
    ca = running_fabric.state / "client" / "ca.pem"
    made = server(client, name="mine")()
    mine = getattr(made, "id")  # noqa: B009 - typed as the union of what is made
    with Client(endpoint, ca) as nobody:
        token = nobody.tokens.issue(user="bad.stranger", password=CANARY, project="bad.other").token
        with pytest.raises(Unauthenticated):
            nobody.tokens.issue(user="bad.stranger", password="wrong", project="bad.other")
    with Client(endpoint, ca, token) as stranger:
        assert not stranger.instances.list().instances
        for touch in (
            stranger.instances.get,
            stranger.instances.delete,
            stranger.instances.stop,
            stranger.instances.console_log,
        ):
            with pytest.raises(NotFound):
                touch(mine)
        with pytest.raises((NotFound, InvalidRequest), match="there is no image"):
            stranger.instances.create(name="x", flavor="bad.tiny", image=client.images.get("bad.disk").id)
        with pytest.raises(PermissionDenied):
            stranger.flavors.create(name="x", vcpus=1, ram_mib=64, disk_gib=1)
        with pytest.raises(PermissionDenied):
            stranger.hosts.list()
    before = client.instances.get(mine)
    client.instances.delete(mine)
    assert client.instances.wait_until_gone(before, timeout_s=CREATE_TIMEOUT_S) is None


# ------------------------------------------------------------------------------------------------- images


def a_qcow2(*, backing: bytes = b"", incompatible: int = 0) -> bytes:
    """A qcow2 header, version 3, that says what a hostile one would (QEMU's docs/interop/qcow2.txt)."""
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        *(b"QFI\xfb", 3, 112 if backing else 0, len(backing), 16, 1 << 20, 0, 1, 65536 * 3, 65536, 1, 0, 0),
        *(incompatible, 0, 0, 4, 104),
    )
    return (header + b"\0" * 8 + backing).ljust(65536 * 4, b"\0")


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        (a_qcow2(), "raw"),
        (bytes(65536), "qcow2"),
        (a_qcow2(backing=b"/etc/shadow"), "qcow2"),
        (a_qcow2(incompatible=4), "qcow2"),
        (a_qcow2()[:50], "qcow2"),
        (b"KDMV" + bytes(65536), "raw"),
        (b"", "raw"),
        (a_qcow2(), "kernel"),
    ],
    ids=["disguised", "no-qcow2", "backing-file", "data-file", "truncated", "vmdk", "empty", "no-kernel"],
)
def test_an_image_that_lies_is_refused(client: Client, tmp_path: Path, content: bytes, declared: str) -> None:
    file = tmp_path / "image"
    file.write_bytes(content)

    with pytest.raises(InvalidRequest) as refused:
        client.images.create(name="liar", file=file, disk_format=declared)

    assert refused.value.reason in {Reason.IMAGE_REJECTED, Reason.FIELD_INVALID}


def test_an_image_other_than_was_promised_is_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        client.images.create(name="other", file=a_small_disk(tmp_path), disk_format="raw", sha256="ab" * 32)


# ------------------------------------------------------------------------------------------------- placement


def test_a_server_that_no_host_can_hold_says_which_filter_refused(
    client: Client, running_fabric: Running
) -> None:
    running_fabric.cli(
        "project", "create", "--ram", str(64 << 20), "--instances", "1", "--cores", "1", "bad.rich"
    )
    running_fabric.cli("role", "add", "--user", "admin", "--project", "bad.rich", "member")
    client.flavors.create(name="bad.huge", vcpus=1, ram_mib=8 << 20, disk_gib=1)
    try:
        rich = running_fabric.client(project="bad.rich")
        made = rich.instances.create(name="huge", flavor="bad.huge", image="bad.public")

        found = rich.instances.wait_for(made, "ACTIVE", timeout_s=CREATE_TIMEOUT_S)

        assert found.status.state == "ERROR"
        assert found.status.fault.code == "NO_VALID_HOST"
        assert "short of memory" in found.status.placement.explanation
        rich.instances.delete(found.id)
        assert rich.instances.wait_until_gone(found, timeout_s=CREATE_TIMEOUT_S) is None
    finally:
        client.flavors.delete("bad.huge")


def test_a_server_may_be_deleted_while_it_is_built(client: Client) -> None:
    for _ in range(3):
        made = client.instances.create(name="brief", flavor="bad.tiny", image="bad.disk")

        client.instances.delete(made.id)

        assert client.instances.wait_until_gone(made, timeout_s=CREATE_TIMEOUT_S) is None


# ------------------------------------------------------------------------------------------------- what is kept of it


def test_no_log_has_a_secret_or_a_traceback(client: Client, running_fabric: Running) -> None:
    made = client.instances.create(
        name="secretive", flavor="bad.tiny", image="bad.disk", user_data=f"#!/bin/sh\n# {CANARY}\n".encode()
    )
    client.instances.delete(made.id)
    assert client.instances.wait_until_gone(made, timeout_s=CREATE_TIMEOUT_S) is None
    password = (running_fabric.state / "pki" / "admin-password").read_text().strip()
    with pytest.raises(FabricError):
        client.tokens.issue(user="admin", password=CANARY, project="admin")

    logs = {path: path.read_text(errors="replace") for path in (running_fabric.state / "log").iterdir()}

    assert len(logs) >= 6
    assert [path.name for path, text in logs.items() if CANARY in text or password in text] == []
    assert [path.name for path, text in logs.items() if re.search(r"fab_[A-Za-z0-9_-]{20}", text)] == []
    ours = {path.name: text for path, text in logs.items() if not path.name.startswith(("etcd", "libvirtd"))}
    assert [name for name, text in ours.items() if "Traceback" in text] == []
