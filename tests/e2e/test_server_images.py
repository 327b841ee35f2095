"""Images of servers, through every process: made of one that runs, kept by rotation, refused with a reason, and rebuilt from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.running import Running, guest_images

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(running_fabric: Running) -> Iterator[str]:
    """A server that runs, of which images are made."""
    cli = running_fabric.cli
    cli("flavor", "create", "--ram", "256", "--disk", "1", "--vcpus", "1", "pic.small")
    file = str(guest_images() / "cellfabric-guest.qcow2")
    cli("image", "create", "--disk-format", "qcow2", "--file", file, "pic.os")
    cli(
        *("server", "create", "--flavor", "pic.small", "--image", "pic.os", "--wait", "pictured"),
        timeout_s=240,
    )
    yield "pictured"
    cli("server", "delete", "--wait", "pictured")
    for image in of(running_fabric, "image", "list"):
        if image["Name"] != "pic.os":
            cli("image", "delete", image["ID"])
    cli("image", "delete", "pic.os")


def of(fabric: Running, *words: str) -> Any:
    return json.loads(fabric.cli(*words, "-f", "json", timeout_s=240))


def test_an_image_of_a_running_server_is_one_to_make_servers_of(running_fabric: Running, server: str) -> None:
    before = of(running_fabric, "server", "show", server)

    image = of(running_fabric, "server", "image", "create", "--name", "pic.golden", "--wait", server)

    assert (image["status"], image["disk_format"], image["min_disk"]) == ("active", "qcow2", 1)
    after = of(running_fabric, "server", "show", server)
    assert (after["status"], after["addresses"]) == ("ACTIVE", before["addresses"])
    made = ("server", "create", "--flavor", "pic.small", "--image", "pic.golden", "--wait", "copy")
    running_fabric.cli(*made, timeout_s=240)
    running_fabric.cli("server", "delete", "--wait", "copy")


def test_backups_beyond_the_rotation_go(running_fabric: Running, server: str) -> None:
    for number in range(3):
        backup = (
            "server",
            "backup",
            "create",
            "--name",
            f"pic.b{number}",
            "--type",
            "daily",
            "--rotate",
            "2",
        )
        running_fabric.cli(*backup, "--wait", server, timeout_s=240)

    names = {image["Name"] for image in of(running_fabric, "image", "list")}
    assert {"pic.b1", "pic.b2"} <= names
    assert "pic.b0" not in names


def test_a_rebuilt_server_keeps_its_address(running_fabric: Running, server: str) -> None:
    before = of(running_fabric, "server", "show", server)

    running_fabric.cli("server", "rebuild", "--image", "pic.os", "--wait", server, timeout_s=240)

    after = of(running_fabric, "server", "show", server)
    assert (after["status"], after["addresses"], after["id"]) == ("ACTIVE", before["addresses"], before["id"])
