"""Subnets: what is decided for people is right, and what cannot be is refused by the field at fault."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidRequest
from fabric.model.network import AddressRange, HostRoute, Network, NetworkKind, Subnet
from fabric.network.core import ranges
from fabric.network.core.subnets import (
    AskedSubnet,
    asked_address,
    checked_mtu,
    planned,
    pools_of,
    repooled,
)

NETWORK = Network(id="n", name="net", kind=NetworkKind.TENANT, project_id="p", mtu=1450)
BARE = Subnet(id="s", name="sub", project_id="p", network_id="", cidr="")


def plan(cidr: str, *others: Subnet, network: Network = NETWORK, **said: Any) -> Subnet:
    return planned(AskedSubnet(cidr=cidr, **said), network, others, bare=BARE, field="subnet")


def pool(first: str, last: str) -> AddressRange:
    return AddressRange(first=first, last=last)


def test_a_subnet_is_complete_when_only_its_range_is_said() -> None:
    found = plan("10.0.0.0/24")

    assert (found.gateway, found.service_address) == ("10.0.0.1", "10.0.0.2")
    assert found.allocation_pools == (pool("10.0.0.3", "10.0.0.254"),)
    assert found.network_id == "n"
    assert found.dhcp


def test_ipv6_has_no_broadcast_address_to_keep() -> None:
    found = plan("fd00:1:0::/64")

    assert (found.cidr, found.gateway, found.service_address) == ("fd00:1::/64", "fd00:1::1", "fd00:1::2")
    assert found.allocation_pools == (pool("fd00:1::3", "fd00:1::ffff:ffff:ffff:ffff"),)


def test_a_gateway_in_the_middle_splits_the_pool() -> None:
    found = plan("10.0.0.0/28", gateway="10.0.0.8")

    assert found.service_address == "10.0.0.1"
    assert found.allocation_pools == (pool("10.0.0.2", "10.0.0.7"), pool("10.0.0.9", "10.0.0.14"))


def test_without_a_gateway_its_address_is_for_others() -> None:
    found = plan("10.0.0.0/29", has_gateway=False)

    assert found.gateway == ""
    assert (found.service_address, found.allocation_pools) == (
        "10.0.0.1",
        (pool("10.0.0.2", "10.0.0.6"),),
    )


def test_pools_that_were_asked_for_stay_whole_where_there_is_room_beside_them() -> None:
    found = plan("10.0.0.0/24", pools=(pool("10.0.0.100", "10.0.0.199"), pool("10.0.0.2", "10.0.0.9")))

    assert found.allocation_pools == (pool("10.0.0.2", "10.0.0.9"), pool("10.0.0.100", "10.0.0.199"))
    assert found.service_address == "10.0.0.10"


def test_pools_that_take_everything_give_one_address_up() -> None:
    found = plan("10.0.0.0/29", pools=(pool("10.0.0.2", "10.0.0.6"),))

    assert found.service_address == "10.0.0.2"
    assert found.allocation_pools == (pool("10.0.0.3", "10.0.0.6"),)


@pytest.mark.parametrize(
    ("cidr", "said", "field"),
    [
        ("", {}, "cidr"),
        ("nebula", {}, "cidr"),
        ("10.0.0.1/24", {}, "cidr"),
        ("10.0.0.0/31", {}, "cidr"),
        ("10.0.0.0/7", {}, "cidr"),
        ("127.1.0.0/24", {}, "cidr"),
        ("169.254.0.0/17", {}, "cidr"),
        ("224.0.0.0/24", {}, "cidr"),
        ("fe80::/64", {}, "cidr"),
        ("ff02::/64", {}, "cidr"),
        ("fd00::/127", {}, "cidr"),
        ("fd00::/16", {}, "cidr"),
        ("fd00::%eth0/64", {}, "cidr"),
        ("fd00::1%eth0/64", {}, "cidr"),
        ("10.0.0.0/24", {"gateway": "10.0.1.1"}, "gateway"),
        ("10.0.0.0/24", {"gateway": "10.0.0.0"}, "gateway"),
        ("10.0.0.0/24", {"gateway": "10.0.0.255"}, "gateway"),
        ("10.0.0.0/24", {"gateway": "fd00::1"}, "gateway"),
        ("10.0.0.0/24", {"gateway": "10.0.0.1", "has_gateway": False}, "gateway"),
        ("10.0.0.0/24", {"pools": (pool("10.0.1.2", "10.0.1.9"),)}, "allocation_pools"),
        ("10.0.0.0/24", {"pools": (pool("10.0.0.9", "10.0.0.2"),)}, "allocation_pools"),
        ("10.0.0.0/24", {"pools": (pool("10.0.0.1", "10.0.0.9"),)}, "allocation_pools"),
        ("10.0.0.0/24", {"pools": (pool("10.0.0.9", "10.0.0.255"),)}, "allocation_pools"),
        (
            "10.0.0.0/24",
            {"pools": (pool("10.0.0.2", "10.0.0.9"), pool("10.0.0.9", "10.0.0.12"))},
            "allocation_pools",
        ),
        ("10.0.0.0/30", {"pools": (pool("10.0.0.2", "10.0.0.2"),)}, "allocation_pools"),
        ("10.0.0.0/24", {"dns_servers": ("fd00::53",)}, "dns_servers"),
        ("10.0.0.0/24", {"dns_servers": ("9.9.9.9", "9.9.9.9")}, "dns_servers"),
        ("10.0.0.0/24", {"dns_servers": ("dns.example",)}, "dns_servers"),
        (
            "10.0.0.0/24",
            {"host_routes": (HostRoute(destination="10.9.0.0/16", next_hop="10.1.0.1"),)},
            "host_routes.next_hop",
        ),
        (
            "10.0.0.0/24",
            {"host_routes": (HostRoute(destination="fd00::/64", next_hop="10.0.0.1"),)},
            "host_routes.destination",
        ),
        (
            "fd00::/64",
            {"host_routes": (HostRoute(destination="fd00:9::%x\n/64", next_hop="fd00::1"),)},
            "host_routes.destination",
        ),
        (
            "10.0.0.0/24",
            {"host_routes": (HostRoute(destination="10.9.0.0/16", next_hop="10.0.0.1"),) * 2},
            "host_routes",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(cidr: str, said: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        plan(cidr, **said)

    assert raised.value.field == f"subnet.{field}"


def test_host_bits_are_answered_with_the_right_subnet() -> None:
    with pytest.raises(InvalidRequest, match=r"10\.0\.0\.0/24"):
        plan("10.0.0.7/24")


@pytest.mark.parametrize("other", ["10.0.0.0/16", "10.0.0.128/25", "10.0.0.0/24"])
def test_subnets_of_one_network_do_not_overlap(other: str) -> None:
    with pytest.raises(InvalidRequest, match="overlaps"):
        plan("10.0.0.0/24", plan(other))


def test_ipv6_needs_an_mtu_that_carries_it() -> None:
    small = Network(id="n", name="net", kind=NetworkKind.TENANT, mtu=1200)

    with pytest.raises(InvalidRequest):
        plan("fd00::/64", network=small)
    with pytest.raises(InvalidRequest, match="1280"):
        checked_mtu(1200, NetworkKind.TENANT, [plan("fd00::/64")], field="mtu")
    assert checked_mtu(1200, NetworkKind.TENANT, [plan("10.0.0.0/24")], field="mtu") == 1200
    assert checked_mtu(0, NetworkKind.TENANT, [], field="mtu") == 1450
    assert checked_mtu(0, NetworkKind.EXTERNAL, [], field="mtu") == 1500


@pytest.mark.parametrize("asked", ["10.0.0.0", "10.0.0.255", "10.0.0.1", "10.0.0.2", "10.0.1.7", "fd00::1"])
def test_some_addresses_are_nobodys_to_ask_for(asked: str) -> None:
    with pytest.raises(InvalidRequest):
        asked_address(plan("10.0.0.0/24"), asked, field="f")


def test_other_pools_keep_clear_of_what_is_held() -> None:
    subnet = plan("10.0.0.0/24")

    assert repooled(subnet, (pool("10.0.0.2", "10.0.0.9"),), field="f") == (pool("10.0.0.3", "10.0.0.9"),)
    with pytest.raises(InvalidRequest):
        repooled(subnet, (pool("10.0.0.1", "10.0.0.9"),), field="f")


@st.composite
def cidrs(draw: st.DrawFn) -> str:
    if draw(st.booleans()):
        length, base, bits = draw(st.integers(8, 30)), int(ipaddress.IPv4Address("10.0.0.0")), 32
    else:
        length, base, bits = draw(st.integers(48, 126)), int(ipaddress.IPv6Address("fd00::")), 128
    number = base | draw(st.integers(0, (1 << bits - 8) - 1))
    return str(ipaddress.ip_network((number, length), strict=False))


@given(cidrs(), st.booleans(), st.data())
def test_nobody_is_given_what_is_the_routers_the_services_or_no_hosts(
    cidr: str, has_gateway: bool, data: st.DataObject
) -> None:
    network = ipaddress.ip_network(cidr)
    usable = ranges.hosts(network)
    gateway = data.draw(st.integers(usable.first, usable.last)) if has_gateway else None
    text = "" if gateway is None else ranges.text(gateway, network.version)
    if usable.size < 3 and has_gateway:
        with pytest.raises(InvalidRequest):
            plan(cidr, gateway=text)
        return

    found = plan(cidr, gateway=text, has_gateway=has_gateway)

    pools = pools_of(found)
    service = int(ipaddress.ip_address(found.service_address))
    assert not any(service in each for each in pools)
    assert gateway is None or not any(gateway in each for each in pools)
    assert all(each.first in usable and each.last in usable for each in pools)
    # Nothing is wasted: two addresses are held at most, all others are there to be given.
    assert ranges.size(pools) == usable.size - (2 if has_gateway else 1)
