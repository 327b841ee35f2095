"""Interfaces on a tenant's networks that come to a running guest and go, and addresses that it keeps on another host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.running import Running, a_fabric, guest_images, until
from tests.e2e.test_tenant_network import Tenant

pytestmark = [pytest.mark.owns_machine, pytest.mark.slow, pytest.mark.timeout(900)]

SERVER = "nebula_web_01"
MACS = "cat /sys/class/net/*/address"


@pytest.fixture(scope="module")
def fabric() -> Iterator[Running]:
    """Two hosts, with the flavor and the image that everybody uses."""
    with a_fabric("--hosts", "2") as made:
        size = ("--ram", "256", "--disk", "1", "--vcpus", "1")
        made.cli("flavor", "create", "--id", "auto", *size, "m1.nebula_micro")
        image = guest_images() / "cellfabric-guest.qcow2"
        made.cli(
            *("image", "create", "--public", "--disk-format", "qcow2", "--file", str(image)),
            "nebula_standard_os",
        )
        yield made


def test_ports_come_and_go_and_addresses_stay(
    fabric: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    nebula = Tenant(fabric, "nebula", tmp_path_factory.mktemp("nebula") / "nebula_key.pem")
    nebula.move_in()
    nebula.cli("network", "create", "blue")
    nebula.cli("subnet", "create", "--network", "blue", "--subnet-range", "10.9.0.0/24", "blue_subnet")
    nebula.cli("port", "create", "--network", "blue", "blue_port")
    nebula.create(SERVER, host=1)
    nebula.give_floating_ip(SERVER)
    nebula.inside(SERVER, "true")
    mac = nebula.shown("port", "show", "blue_port")["mac_address"]

    nebula.cli("server", "add", "port", "--wait", SERVER, "blue_port")
    until(lambda: mac in nebula.inside(SERVER, MACS), "the guest has the interface", timeout_s=30)
    assert list(nebula.shown("server", "show", SERVER)["addresses"]) == ["nebula_net", "blue"]
    assert nebula.shown("port", "show", "blue_port")["device_id"]

    nebula.cli("server", "remove", "port", "--wait", SERVER, "blue_port")
    until(lambda: mac not in nebula.inside(SERVER, MACS), "the guest has let go", timeout_s=60)
    until(lambda: not nebula.shown("port", "show", "blue_port")["device_id"], "it is free", timeout_s=30)

    before = nebula.shown("server", "show", SERVER)["addresses"]
    fabric.cli("server", "migrate", "--wait", nebula.shown("server", "show", SERVER)["id"])
    nebula.cli("server", "resize", "confirm", SERVER)
    assert nebula.shown("server", "show", SERVER)["addresses"] == before
    nebula.inside(SERVER, "true")

    nebula.cli("server", "delete", "--wait", SERVER)
    until(
        lambda: [each["Name"] for each in nebula.shown("port", "list")] == ["blue_port"],
        "the ports that were the server's are gone",
        timeout_s=30,
    )
