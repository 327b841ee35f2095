"""Servers that go from host to host, on two real hosts: what people have written goes with them, and what is left behind is nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.running import Running, a_fabric, until
from tests.e2e.test_first_path import Tenant

pytestmark = [pytest.mark.owns_machine, pytest.mark.slow, pytest.mark.timeout(900)]

WRITE = "echo 'written before' > /root/kept && sync"
READ = "cat /root/kept"


@pytest.fixture(scope="module")
def fabric() -> Iterator[Running]:
    """One cell with two hosts, libvirt."""
    with a_fabric("--hosts", "2") as running:
        yield running


@pytest.fixture(scope="module")
def tenant(fabric: Running, tmp_path_factory: pytest.TempPathFactory) -> Tenant:
    made = Tenant(fabric, tmp_path_factory.mktemp("tenant"))
    fabric.cli(
        *("flavor", "create", "--id", "auto", "--ram", "768", "--disk", "2", "--vcpus", "2"),
        "m1.nebula_small",
    )
    return made


def where(fabric: Running, tenant: Tenant, server: str) -> str:
    """The host that an administrator sees the server on."""
    found = fabric.shown("server", "show", tenant.show(server)["id"])
    host: str = found["host"]
    return host


def test_a_server_moves_between_hosts_with_all_that_is_on_it(fabric: Running, tenant: Tenant) -> None:
    """One guest all the way, because a boot takes long under emulation: shelved and raised elsewhere, resized, reverted, migrated."""
    tenant.create("nebula_lab_01", "--property", "course=nebula")
    tenant.inside("nebula_lab_01", WRITE)
    before, first = tenant.show("nebula_lab_01"), where(fabric, tenant, "nebula_lab_01")

    tenant.cli("server", "shelve", "--wait", "nebula_lab_01")
    assert tenant.show("nebula_lab_01")["status"] == "SHELVED_OFFLOADED"
    assert where(fabric, tenant, "nebula_lab_01") == ""
    fabric.cli("host", "set", "--disable", first)
    tenant.cli("server", "unshelve", "--wait", "nebula_lab_01")
    fabric.cli("host", "set", "--enable", first)

    second = where(fabric, tenant, "nebula_lab_01")
    assert second != first
    assert tenant.inside("nebula_lab_01", READ) == "written before\n"
    after = tenant.show("nebula_lab_01")
    assert (after["id"], after["properties"]) == (before["id"], before["properties"])
    assert "nebula_lab_01-shelved" not in tenant.cli("image", "list")

    until(
        lambda: fabric.shown("host", "show", first)["state"] == "UP",
        f"{first} takes servers again",
        timeout_s=30,
    )
    tenant.cli("server", "resize", "--flavor", "m1.nebula_small", "--wait", "nebula_lab_01")
    assert tenant.show("nebula_lab_01")["status"] == "VERIFY_RESIZE"
    assert where(fabric, tenant, "nebula_lab_01") == first
    assert tenant.inside("nebula_lab_01", READ) == "written before\n"
    assert tenant.inside("nebula_lab_01", "grep -c ^processor /proc/cpuinfo").strip() == "2"
    assert int(tenant.inside("nebula_lab_01", "awk '/MemTotal/ {print $2}' /proc/meminfo")) // 1024 > 600
    assert int(tenant.inside("nebula_lab_01", "cat /sys/block/vda/size")) * 512 == 2 << 30

    tenant.cli("server", "resize", "revert", "--wait", "nebula_lab_01")
    assert where(fabric, tenant, "nebula_lab_01") == second
    assert tenant.inside("nebula_lab_01", "grep -c ^processor /proc/cpuinfo").strip() == "1"
    assert tenant.inside("nebula_lab_01", READ) == "written before\n"

    fabric.cli("server", "migrate", "--host", first, "--wait", tenant.show("nebula_lab_01")["id"])
    tenant.cli("server", "resize", "confirm", "nebula_lab_01")
    assert tenant.show("nebula_lab_01")["status"] == "ACTIVE"
    assert where(fabric, tenant, "nebula_lab_01") == first
    assert tenant.inside("nebula_lab_01", READ) == "written before\n"

    tenant.cli("server", "delete", "--wait", "nebula_lab_01")
