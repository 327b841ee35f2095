"""The client over a real wire: what values alone cannot show."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from fabric.client import Client
from fabric.client.calls import World
from fabric.client.retry import RetrySettings
from fabric.errors import InvalidRequest, NotFound, Reason, Unavailable
from tests.e2e import nodejs
from tests.integration.client.served import Served, served
from tests.unit.client.fake_api import PASSWORD, TOKEN, FakeApi, Step

QUICK = RetrySettings(first_wait_s=0.01, attempts=3)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def place(api: FakeApi) -> Iterator[Served]:
    with served(api) as where:
        yield where


@pytest.fixture
def client(place: Served) -> Iterator[Client]:
    with Client(place.endpoint, token=TOKEN, retry=QUICK) as made:
        yield made


def test_an_error_crosses_the_wire_whole(api: FakeApi, client: Client) -> None:
    api.fail["create_flavor"] = [InvalidRequest("must be at least 64", field="flavor.ram_mib", limit=64)]
    with pytest.raises(InvalidRequest) as raised:
        client.flavors.create(name="m1", vcpus=1, ram_mib=1, disk_gib=0)

    assert (raised.value.field, raised.value.reason) == ("flavor.ram_mib", Reason.FIELD_INVALID)
    assert raised.value.facts == {"limit": "64"}


def test_a_lost_answer_is_asked_for_again(api: FakeApi, client: Client) -> None:
    api.lose["create_flavor"] = [Unavailable("lost")]
    client.flavors.create(name="m1", vcpus=1, ram_mib=64, disk_gib=0)

    assert [it.name for it in client.flavors.list()] == ["m1"]


def test_large_images_go_up_and_down_in_pieces(api: FakeApi, client: Client, tmp_path: Path) -> None:
    data = os.urandom(5 * 1024 * 1024 + 17)
    (tmp_path / "disk").write_bytes(data)
    made = client.images.create(name="debian", file=tmp_path / "disk", disk_format="raw")
    api.break_after["download_image"] = [1000, 500]
    api.fail["download_image.break"] = [Unavailable("away"), Unavailable("away")]
    client.images.save("debian", tmp_path / "copy")

    assert made.sha256 == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "copy").read_bytes() == data
    assert len(api.requests("download_image")) == 3


def test_half_an_image_never_becomes_one(api: FakeApi, client: Client, tmp_path: Path) -> None:
    """gRPC's server may see a client that breaks off as one that has ended."""
    (tmp_path / "disk").write_bytes(bytes(8 * 1024 * 1024))

    def cut(passed: int, total: int) -> None:
        if 2 * passed >= total:
            raise OSError(5, "Input/output error")

    with pytest.raises(InvalidRequest, match="cannot be read: Input/output error"):
        client.images.create(name="debian", file=tmp_path / "disk", disk_format="raw", progress=cut)

    assert api.images == {}


def test_waiting_lasts_over_a_restart_of_the_api(api: FakeApi) -> None:
    api.put_instance("web")
    api.plan["stop_instance"] = [Step("ACTIVE", "powering_off"), Step("SHUTOFF")]
    with contextlib.ExitStack() as restarted:
        looks = iter(range(1000))

        def sleep(seconds: float) -> None:
            time.sleep(min(seconds, 0.05))
            if next(looks) == 5:
                restarted.enter_context(served(api, port=first.port))

        world = World(sleep=sleep)
        with served(api) as first:
            client = restarted.enter_context(Client(first.endpoint, token=TOKEN, retry=QUICK, world=world))
            begun = client.instances.stop("web")
        ended = client.instances.wait_for(begun, "SHUTOFF", timeout_s=30)

    assert ended.status.state == "SHUTOFF"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_nobody_there_is_told_as_such() -> None:
    port = free_port()
    with (
        Client(f"http://127.0.0.1:{port}", token=TOKEN, retry=QUICK) as client,
        pytest.raises(Unavailable, match=f"nothing listens at 127.0.0.1:{port}"),
    ):
        client.flavors.list()


def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with (
            Client(endpoint, token=TOKEN, timeout_s=0.5, retry=QUICK) as client,
            pytest.raises(Unavailable),
        ):
            client.flavors.list()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def test_a_certificate_of_our_authority_is_believed(
    api: FakeApi, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with (
        served(api, authority=authority) as where,
        Client(where.endpoint, tmp_path / "ca.pem", TOKEN) as client,
    ):
        assert client.flavors.list() == []
        assert client.tokens.issue(user="ann", password=PASSWORD).token == "fabtoken-1"


def test_any_other_certificate_is_not_and_the_error_says_so(
    api: FakeApi, authority: trustme.CA, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with (
        served(api, authority=authority) as where,
        Client(where.endpoint, tmp_path / "ca.pem", TOKEN, retry=QUICK) as client,
        pytest.raises(Unavailable, match="certificate"),
    ):
        client.flavors.list()

    assert api.seen == []


def test_a_program_in_another_language_needs_nothing_but_the_protos(
    api: FakeApi, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "disk").write_bytes(b"disk")
    with served(api, authority=authority) as where:
        with Client(where.endpoint, tmp_path / "ca.pem", TOKEN) as client:
            client.flavors.create(name="m1", vcpus=1, ram_mib=64, disk_gib=0)
            client.images.create(name="debian", file=tmp_path / "disk", disk_format="raw")
        said = nodejs.run(
            *("m1", "debian", "from-node"), endpoint=where.endpoint, ca_file=tmp_path / "ca.pem", token=TOKEN
        )

    assert said == {
        "flavors": [{"name": "m1", "ram_mib": "64"}],
        "instance": {"id": api.instances["from-node"].id, "state": "BUILD"},
        "same": True,
        "absent": {"code": "NOT_FOUND", "reason": "RESOURCE_NOT_FOUND"},
    }


def test_what_is_not_there_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound):
        client.instances.get("absent")
