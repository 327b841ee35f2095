"""Servers that boot from volumes, on two real hosts: the volume outlives the server, and the next one runs where it is, or, where the hosts
share its directory, on either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.running import Running, a_fabric, until
from tests.e2e.test_first_path import Tenant

pytestmark = [pytest.mark.owns_machine, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def fabric() -> Iterator[Running]:
    """One cell with two hosts, libvirt."""
    with a_fabric("--hosts", "2") as running:
        yield running


@pytest.fixture(scope="module")
def tenant(fabric: Running, tmp_path_factory: pytest.TempPathFactory) -> Tenant:
    return Tenant(fabric, tmp_path_factory.mktemp("tenant"))


def boot(tenant: Tenant, name: str, *source: str) -> dict[str, Any]:
    tenant.cli(
        *("server", "create", "--flavor", "m1.nebula_micro", *source, "--key-name", "nebula_key"),
        *("--wait", name),
    )
    return tenant.show(name)


def test_a_volume_is_made_of_an_image_booted_from_and_kept_for_the_next_server(
    fabric: Running, tenant: Tenant
) -> None:
    tenant.cli("volume", "create", "--image", "nebula_standard_os", "--size", "2", "nebula_root")
    one = boot(tenant, "nebula_lab_01", "--volume", "nebula_root")
    assert (one["status"], one["image"]["name"]) == ("ACTIVE", "N/A (booted from volume)")
    root = fabric.shown("volume", "show", "nebula_root", cloud="nebula")
    assert (root["status"], root["server_id"]) == ("in-use", one["id"])
    assert int(tenant.inside("nebula_lab_01", "cat /sys/block/vda/size")) * 512 == 2 << 30
    tenant.inside("nebula_lab_01", "echo 'kept by the volume' > /root/kept && sync")

    refused = fabric.run("server", "migrate", one["id"])
    assert refused.returncode != 0
    assert "boots from volume" in refused.stderr
    first = fabric.shown("server", "show", one["id"])["host"]
    tenant.cli("server", "delete", "--wait", "nebula_lab_01")
    assert fabric.shown("volume", "show", "nebula_root", cloud="nebula")["status"] == "available"

    two = boot(tenant, "nebula_lab_02", "--volume", "nebula_root")
    assert fabric.shown("server", "show", two["id"])["host"] == first
    assert tenant.inside("nebula_lab_02", "hostname; cat /root/kept") == "nebula-lab-02\nkept by the volume\n"
    tenant.cli("server", "delete", "--wait", "nebula_lab_02")
    tenant.cli("volume", "delete", "nebula_root")
    until(
        lambda: "nebula_root" not in tenant.cli("volume", "list"),
        "the volume is gone with its data",
        timeout_s=30,
    )


def test_a_new_volume_made_for_a_server_ends_with_it_where_that_is_asked_for(
    fabric: Running, tenant: Tenant
) -> None:
    boot(
        tenant,
        "nebula_lab_03",
        *("--image", "nebula_standard_os", "--boot-from-volume", "2", "--delete-volume-on-termination"),
    )
    (volume,) = fabric.shown("volume", "list", cloud="nebula")
    assert (volume["Status"], volume["Size"]) == ("in-use", 2)

    tenant.cli("server", "delete", "--wait", "nebula_lab_03")

    until(
        lambda: not fabric.shown("volume", "list", cloud="nebula"),
        "the volume is gone with its server",
        timeout_s=30,
    )


def test_a_volume_in_a_shared_directory_boots_a_server_of_either_host(
    fabric: Running, tenant: Tenant
) -> None:
    words = ("--directory", "shared", "--image", "nebula_standard_os", "--size", "2")
    tenant.cli("volume", "create", *words, "nebula_roaming")
    one = boot(tenant, "nebula_lab_04", "--volume", "nebula_roaming")
    tenant.inside("nebula_lab_04", "echo 'kept by the directory' > /root/kept && sync")
    first = fabric.shown("server", "show", one["id"])["host"]
    assert fabric.shown("host", "show", first)["volume_directories"] == ["shared"]
    tenant.cli("server", "shelve", "--wait", "nebula_lab_04")
    assert tenant.show("nebula_lab_04")["status"] == "SHELVED_OFFLOADED"
    assert fabric.shown("volume", "show", "nebula_roaming", cloud="nebula")["status"] == "in-use"
    fabric.cli("host", "set", "--disable", first)
    tenant.cli("server", "unshelve", "--wait", "nebula_lab_04")
    second = fabric.shown("server", "show", one["id"])["host"]
    assert second != first
    assert tenant.inside("nebula_lab_04", "cat /root/kept") == "kept by the directory\n"
    fabric.cli("host", "set", "--enable", first)
    fabric.cli("host", "set", "--disable", second)
    tenant.cli("server", "delete", "--wait", "nebula_lab_04")

    two = boot(tenant, "nebula_lab_05", "--volume", "nebula_roaming")
    fabric.cli("host", "set", "--enable", second)
    assert fabric.shown("server", "show", two["id"])["host"] == first
    assert tenant.inside("nebula_lab_05", "hostname; cat /root/kept") == (
        "nebula-lab-05\nkept by the directory\n"
    )
    tenant.cli("server", "delete", "--wait", "nebula_lab_05")
    tenant.cli("volume", "delete", "nebula_roaming")
    left = fabric.state / "shared-volumes"
    until(
        lambda: [each.name for each in left.iterdir()] == ["cellfabric-volumes"],
        "nothing is left in the directory but its mark",
        timeout_s=30,
    )


def test_a_server_moves_to_another_host_and_is_put_away_with_its_volume_in_a_shared_directory(
    fabric: Running, tenant: Tenant
) -> None:
    tenant.cli("volume", "create", "--directory", "shared", "--size", "1", "nebula_moving")
    tenant.create("nebula_lab_06")
    tenant.cli("server", "add", "volume", "--wait", "nebula_lab_06", "nebula_moving")
    serial = fabric.shown("volume", "show", "nebula_moving", cloud="nebula")["device"].rpartition("-")[2]
    find = f"disk=/dev/$(grep -l {serial} /sys/block/*/serial | cut -d/ -f4)"
    tenant.inside(
        "nebula_lab_06", f"{find}; echo 'written before' | dd of=$disk conv=fsync 2>/dev/null; echo done"
    )
    before = fabric.shown("server", "show", tenant.show("nebula_lab_06")["id"])

    fabric.cli("server", "migrate", "--wait", before["id"])
    tenant.cli("server", "resize", "confirm", "nebula_lab_06")

    assert fabric.shown("server", "show", before["id"])["host"] != before["host"]
    assert tenant.inside("nebula_lab_06", f"{find}; head -c 14 $disk") == "written before"
    tenant.cli("server", "shelve", "--wait", "nebula_lab_06")
    tenant.cli("server", "unshelve", "--wait", "nebula_lab_06")
    assert tenant.inside("nebula_lab_06", f"{find}; head -c 14 $disk") == "written before"
    tenant.cli("server", "delete", "--wait", "nebula_lab_06")
    tenant.cli("volume", "delete", "nebula_moving")
