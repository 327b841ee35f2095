"""The API is its protos: a client in another language, made from them alone, creates a server."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.e2e import nodejs
from tests.e2e.running import CREATE_TIMEOUT_S, Running, a_small_disk

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(600)]


def test_a_program_in_another_language_creates_a_server(running_fabric: Running, tmp_path: Path) -> None:
    client = running_fabric.client()
    client.flavors.create(name="node.tiny", vcpus=1, ram_mib=64, disk_gib=1)
    client.images.create(name="node-disk", file=a_small_disk(tmp_path), disk_format="raw")
    clouds = running_fabric.clouds_file
    profile = tomllib.loads(clouds.read_text())["clouds"]["admin"]
    password = (clouds.parent / profile["password_file"]).read_text().strip()
    token = client.tokens.issue(user=profile["username"], password=password, project=profile["project"]).token
    try:
        said = nodejs.run(
            *("node.tiny", "node-disk", "from-node"),
            endpoint=profile["endpoint"],
            ca_file=clouds.parent / profile["ca_file"],
            token=token,
        )
        made = client.instances.get(said["instance"]["id"])
        ended = client.instances.wait_for(made, "ACTIVE", timeout_s=CREATE_TIMEOUT_S)

        assert {"name": "node.tiny", "ram_mib": "64"} in said["flavors"]
        assert said["instance"]["state"] == "BUILD"
        assert said["same"]
        assert said["absent"] == {"code": "NOT_FOUND", "reason": "RESOURCE_NOT_FOUND"}
        assert ended.status.state == "ACTIVE", ended.status.fault
        assert len(client.instances.list(name="from-node").instances) == 1
    finally:
        for left in client.instances.list(name="from-node").instances:
            client.instances.delete(left.id)
            client.instances.wait_until_gone(left, timeout_s=CREATE_TIMEOUT_S)
        client.images.delete("node-disk")
        client.flavors.delete("node.tiny")
