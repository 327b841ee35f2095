"""The cloud image with a config drive of ours, in plain QEMU: what cloud-init makes of a network document that has everything in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from fabric.model.network import HostRoute, PortAddress
from hostd.core.metadata import documents
from tests.conformance.guests import a_guest, a_tenant_port
from tests.e2e.running import cloud_image
from tests.integration.guest_machine import Machine, as_drive, disk, new_key, overlay, public

PROGRAMS = ("genisoimage", "mmdebstrap", "qemu-img", "qemu-system-x86_64", "ssh", "ssh-keygen")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        bool([name for name in PROGRAMS if not shutil.which(name)]),
        reason=f"needs {', '.join(PROGRAMS)}: run tools/setup",
    ),
]

FIRST = a_tenant_port(
    1,
    address="10.0.2.15",  # where QEMU's user-mode network looks for its guest
    gateway="10.0.2.2",
    mtu=1450,
    dns_servers=("192.0.2.53", "2001:db8::53"),
    routes=(HostRoute(destination="10.9.0.0/16", next_hop="10.0.2.9"),),
    further=(
        PortAddress(address="fd00:77::15", prefix_length=64, gateway="fd00:77::1"),
        PortAddress(address="10.8.0.5", prefix_length=28),
    ),
)
SECOND = a_tenant_port(
    2, address="10.5.0.7", prefix_length=20, gateway="10.5.0.1", mtu=1400, dns_servers=(), further=()
)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("cloud")
    key = new_key(folder / "owner")
    files = documents(a_guest("both", ports=(FIRST, SECOND), public_keys={"owner": public(key)}))
    drive = as_drive(folder, files)
    root = overlay(cloud_image(), folder / "disk.qcow2", size="2G")
    cards = (
        *("-device", f"virtio-net-pci,netdev=lan,romfile=,mac={FIRST.mac}"),
        *("-netdev", "user,id=other,restrict=on,ipv6=off"),
        *("-device", f"virtio-net-pci,netdev=other,romfile=,mac={SECOND.mac}"),
        *("-device", "virtio-rng-pci", "-m", "512", "-smp", "2"),
    )
    with Machine(*disk(root), *disk(drive, form="raw", read_only=True), *cards, key=key) as machine:
        for stage in ("init-local", "init", "modules:config", "modules:final"):
            machine.wait_for(rf"Cloud-init v\. \S+ running '{stage}'")
        machine.wait_for(r"Cloud-init v\. \S+ finished at .* Datasource DataSourceConfigDrive")
        yield machine


def told(guest: Machine, command: str) -> Any:
    """What a command says in JSON."""
    return json.loads(guest.run(command, user="debian"))


def test_every_address_of_every_card_is_there_and_no_other(guest: Machine) -> None:
    """The first card's network advertises an IPv6 prefix, too. It is not taken: the card's addresses are said to be static."""
    cards = {each["address"]: each for each in told(guest, "ip -json address show")}

    for port in (FIRST, SECOND):
        card = cards[port.mac]
        assert card["mtu"] == port.mtu
        assert {
            (each["local"], each["prefixlen"]) for each in card["addr_info"] if each["scope"] != "link"
        } == {(each.address, each.prefix_length) for each in port.addresses}


def test_there_is_one_way_out_of_each_family_and_the_subnets_own_routes(guest: Machine) -> None:
    four, six = (told(guest, f"ip -json -{family} route show") for family in (4, 6))

    def ways(routes: list[dict[str, Any]]) -> list[tuple[str, str]]:
        return sorted((each["dst"], each["gateway"]) for each in routes if "gateway" in each)

    assert ways(four) == [("10.9.0.0/16", "10.0.2.9"), ("default", "10.0.2.2")]
    assert ways(six) == [("default", "fd00:77::1")]


def test_name_servers_of_both_families_are_asked(guest: Machine) -> None:
    resolver = guest.run("cat /run/systemd/resolve/resolv.conf", user="debian")

    asked = [line.split()[1] for line in resolver.splitlines() if line.startswith("nameserver ")]
    # cloud-init tells them to each card.
    assert list(dict.fromkeys(asked)) == [*FIRST.dns_servers]


def test_cloud_init_has_nothing_to_complain_of(guest: Machine) -> None:
    complaints = guest.run(
        "sudo grep -E ' - [[:alnum:]_.]+\\[(WARNING|ERROR|CRITICAL)\\]|Traceback' /var/log/cloud-init.log || true",
        user="debian",
    )

    assert complaints == ""
