"""Addresses: exact by arithmetic, inside the subnet, and nobody else's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import Bug
from fabric.ids import is_id
from fabric.model.host import Host, Resources
from fabric.model.image import ImageFormat
from fabric.model.instance import Guest, ImageRef, Request
from fabric.network.addresses import mac_of, port_at, port_id, slot_limit, slots_in


def host(cidr: str, slots: int = 1 << 20) -> Host:
    return Host(name="h", cell="c", zone="z", capacity=Resources(), guest_cidr=cidr, slots=slots)


IMAGE = ImageRef(id="im", name="im", format=ImageFormat.RAW, sha256="", size_bytes=1, virtual_size_bytes=1)
REQUEST = Request(
    guest=Guest(
        id="i",
        name="i",
        hostname="i",
        project_id="p",
        user_id="u",
        vcpus=1,
        ram_mib=1,
        disk_gib=1,
        image=IMAGE,
    ),
    network_id="n",
    network_name="default",
    network_mtu=1400,
    dns_servers=("9.9.9.9",),
)


def test_the_first_guest_comes_after_the_hosts_own_addresses() -> None:
    port = port_at(host("10.1.2.0/24"), 0, instance_id="i", request=REQUEST)

    assert (port.address, port.gateway, port.prefix_length) == ("10.1.2.10", "10.1.2.1", 24)
    assert (port.network_id, port.network_name, port.mtu) == ("n", "default", 1400)
    assert port.dns_servers == ("9.9.9.9",)


@given(prefix=st.integers(16, 30), data=st.data())
def test_every_slot_is_an_address_of_its_own_and_never_the_broadcasts(
    prefix: int, data: st.DataObject
) -> None:
    subnet = IPv4Network(f"10.0.0.0/{prefix}")
    count = slots_in(str(subnet))
    if not count:
        assert subnet.num_addresses <= 11
        return
    slot = data.draw(st.integers(0, count - 1))

    port = port_at(host(str(subnet)), slot, instance_id="i", request=REQUEST)

    address = IPv4Address(port.address)
    assert address in subnet
    assert address not in {subnet.network_address, subnet.broadcast_address, IPv4Address(port.gateway)}
    assert int(address) - int(subnet.network_address) == 10 + slot


def test_the_last_slot_is_just_below_the_broadcast_address() -> None:
    assert slots_in("10.1.2.0/24") == 245
    assert port_at(host("10.1.2.0/24"), 244, instance_id="i", request=REQUEST).address == "10.1.2.254"


@pytest.mark.parametrize("slot", [-1, 245])
def test_a_slot_outside_the_subnet_is_a_bug(slot: int) -> None:
    with pytest.raises(Bug):
        port_at(host("10.1.2.0/24"), slot, instance_id="i", request=REQUEST)


@pytest.mark.parametrize(
    ("cidr", "slots", "limit"),
    [
        ("10.1.2.0/24", 8, 8),
        ("10.1.2.0/24", 1000, 245),
        ("10.1.2.0/28", 8, 5),
        ("10.1.2.0/29", 8, 0),
        ("", 8, 0),
    ],
)
def test_a_host_addresses_no_more_than_it_may_nor_than_it_can(cidr: str, slots: int, limit: int) -> None:
    assert slot_limit(host(cidr, slots)) == limit


def test_a_subnet_that_is_none_gives_no_addresses() -> None:
    assert slot_limit(host("what?", 8)) == 0


@given(first=st.uuids(), second=st.uuids())
def test_a_port_is_an_id_that_only_its_instance_has(first: object, second: object) -> None:
    assert is_id(port_id(str(first), "n"))
    assert port_id(str(first), "n") == port_id(str(first), "n")
    assert (port_id(str(first), "n") == port_id(str(second), "n")) == (first == second)


@given(port=st.uuids(), slot=st.integers(0, 65535))
def test_a_mac_is_a_unicast_address_under_the_ports_prefix(port: object, slot: int) -> None:
    mac = mac_of(str(port), slot)

    assert mac.startswith("fa:16:3e:")
    assert len(bytes.fromhex(mac.replace(":", ""))) == 6
    assert bytes.fromhex(mac[:2])[0] & 1 == 0


@given(
    ports=st.lists(st.uuids(), min_size=2, max_size=2),
    slots=st.sets(st.integers(0, 65535), min_size=2, max_size=2),
)
def test_no_two_slots_of_a_host_share_a_mac(ports: list[object], slots: set[int]) -> None:
    one, other = (mac_of(str(port), slot) for port, slot in zip(ports, sorted(slots), strict=True))

    assert one != other


def test_an_instance_keeps_its_port_on_another_host() -> None:
    here = port_at(host("10.1.2.0/24"), 3, instance_id="i", request=REQUEST)
    there = port_at(host("10.9.0.0/16"), 700, instance_id="i", request=REQUEST)

    assert here.id == there.id
    assert here.address != there.address
