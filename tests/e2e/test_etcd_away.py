"""All of etcd stopped and started again: guests untouched, a no within two seconds, and then everything works by itself."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import pytest

from fabric.client.client import Client
from fabric.errors import Unavailable
from tests.e2e.running import (
    CREATE_TIMEOUT_S,
    IMPATIENT,
    Running,
    guest_images,
    guest_processes,
    until,
)

pytestmark = [pytest.mark.owns_machine, pytest.mark.timeout(400)]

REFUSE_S = 2.0
"""A store that is away is said to be so within this."""


def test_guests_do_not_notice_that_etcd_is_away(running_fabric: Running) -> None:
    client = running_fabric.client(retry=IMPATIENT)
    client.flavors.create(name="away.small", vcpus=1, ram_mib=256, disk_gib=1)
    image = guest_images() / "cellfabric-guest.qcow2"
    client.images.create(name="away.os", file=image, disk_format="qcow2")
    made = client.instances.create(name="away", flavor="away.small", image="away.os")
    server = client.instances.wait_for(made, "ACTIVE", timeout_s=CREATE_TIMEOUT_S)
    assert server.status.state == "ACTIVE", server.status.fault
    before = guest_processes(server.id)
    assert len(before) == 1

    running_fabric.dev("stop", "--now", "etcd-global")
    try:
        _servers_take_orders(client, server.id)
        running_fabric.dev("stop", "--now", "etcd-cell1")
        took_s = [
            refusal_s(call)
            for _ in range(4)
            for call in (
                lambda: client.instances.create(name="no", flavor="away.small", image="away.os"),
                lambda: client.instances.stop(server.id),
            )
        ]
        # One may meet a moment in which the machine itself stands still.
        assert sorted(took_s)[-2] < REFUSE_S, took_s
        assert guest_processes(server.id) == before
    finally:
        running_fabric.dev("start", "etcd-global")
        running_fabric.dev("start", "etcd-cell1")

    running_fabric.until_ready()
    until(lambda: _works(lambda: client.instances.stop(server.id)), "the API takes orders again")
    stopped = client.instances.get(server.id)
    assert client.instances.wait_for(stopped, "SHUTOFF", timeout_s=180).status.state == "SHUTOFF"
    assert guest_processes(server.id) == set()
    gone = client.instances.get(server.id)
    client.instances.delete(server.id)
    assert client.instances.wait_until_gone(gone, timeout_s=CREATE_TIMEOUT_S) is None
    assert [each.name for each in client.instances.list().instances] == []


def _servers_take_orders(client: Client, server_id: str) -> None:
    """A cell works on without the global store (failure model, F2): what it keeps is refused, the cell's own servers are not."""
    refused_s = [
        refusal_s(lambda: client.instances.create(name="no", flavor="away.small", image="away.os"))
        for _ in range(4)
    ]
    assert sorted(refused_s)[-2] < REFUSE_S, refused_s
    for action, state in (("pause", "PAUSED"), ("unpause", "ACTIVE")):
        order = functools.partial(client.instances.act, action, server_id)
        until(functools.partial(_works, order), f"its cell takes the order to {action}")
        server = client.instances.get(server_id)
        assert client.instances.wait_for(server, state, timeout_s=60).status.state == state


def refusal_s(call: Callable[[], object]) -> float:
    """How long it takes to hear that a dependency is away."""
    begun_s = time.monotonic()
    with pytest.raises(Unavailable):
        call()
    return time.monotonic() - begun_s


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except Unavailable:
        return False
    return True
