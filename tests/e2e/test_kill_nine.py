"""`kill -9` of each process while a create is under way: it ends ACTIVE, or ERROR with a reason, once."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fabric.client.instances import Instance
from fabric.client.retry import RetrySettings
from tests.e2e.running import CREATE_TIMEOUT_S, Running, guest_images, guest_processes

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(300)]

HOST = "cell1-host1"
PATIENT = RetrySettings(attempts=20, longest_wait_s=2.0, budget=100.0)
"""Longer than a server takes to start again on a busy machine."""
MOMENTS_S = (0.0, 0.15, 0.5, 1.2)
"""When the process dies, after the create was sent: spread over accepting, placing, fetching, defining and starting."""
HYPERVISOR_MOMENTS_S = (0.15, 0.5)
"""The hypervisor has no part in accepting, and takes some seconds to be back."""


@pytest.fixture(scope="module")
def prepared(running_fabric: Running) -> Running:
    client = running_fabric.client()
    client.flavors.create(name="kill.small", vcpus=1, ram_mib=256, disk_gib=1)
    image = guest_images() / "cellfabric-guest.qcow2"
    client.images.create(name="kill.os", file=image, disk_format="qcow2")
    return running_fabric


def kill(fabric: Running, name: str) -> None:
    if name == "libvirtd":
        # The daemon that libvirt is, not the one that keeps it.
        pid = int((Path(fabric.state) / "host" / HOST / "lv" / "run" / "libvirtd.pid").read_text())
        os.kill(pid, signal.SIGKILL)
    else:
        fabric.dev("kill", name)


@pytest.mark.parametrize(
    "name", ["api", "scheduler", "conductor-cell1", f"hostd-{HOST}", f"libvirtd-{HOST}", "libvirtd"]
)
def test_a_create_survives_the_death_of(prepared: Running, name: str) -> None:
    for moment_s in HYPERVISOR_MOMENTS_S if "libvirtd" in name else MOMENTS_S:
        die_at(prepared, name, moment_s)


def die_at(fabric: Running, process: str, moment_s: float) -> None:
    name = f"victim-{process}-{moment_s:g}".replace(".", "-")
    client = fabric.client(retry=PATIENT, timeout_s=60)
    made: list[Instance] = []
    # The client asks again under the same request_id when its answer is lost: that must not make a second server.
    creating = threading.Thread(
        target=lambda: made.append(client.instances.create(name=name, flavor="kill.small", image="kill.os"))
    )

    creating.start()
    time.sleep(moment_s)
    kill(fabric, process)
    creating.join()

    assert len(made) == 1
    client.instances.wait_for(made[0], "ACTIVE", timeout_s=CREATE_TIMEOUT_S)
    (only,) = client.instances.list(name=name).instances
    assert only.id == made[0].id
    if only.status.state == "ACTIVE":
        assert len(guest_processes(only.id)) == 1
    else:
        assert only.status.state == "ERROR"
        assert only.status.fault.code
        assert only.status.fault.message
    fabric.until_ready()
    client.instances.delete(only.id)
    assert client.instances.wait_until_gone(only, timeout_s=CREATE_TIMEOUT_S) is None
    assert guest_processes(only.id) == set()
