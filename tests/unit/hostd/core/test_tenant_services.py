"""What a service namespace has and says; with real clients it is tests/integration/hostd/test_tenant_services.py's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.model.network import HostRoute, PortAddress
from fabric.model.network_plan import NetworkPlan, PlannedNetwork, PlannedRouter, PlannedSubnet, RouterLeg
from hostd.core.firewall import link_local
from hostd.core.tenant_services import (
    Lodger,
    Surroundings,
    advertises,
    host_prefix,
    service_namespace,
    serving,
    surroundings,
    surroundings_change,
)
from tests.conformance.guests import a_tenant_port, an_id

FOUR = PlannedSubnet(
    id=an_id("four"),
    cidr="10.0.0.0/24",
    gateway="10.0.0.1",
    service_address="10.0.0.2",
    dns_servers=("192.0.2.53",),
)
SIX = PlannedSubnet(id=an_id("six"), cidr="fd00::/64", gateway="fd00::1", service_address="fd00::2")
NETWORK = PlannedNetwork(id=an_id("tenant network"), vni=100, mtu=1450, subnets=(FOUR, SIX))
PORT = a_tenant_port(1)
LODGER = Lodger(port=PORT, hostname="web-1")
TAG = "p" + PORT.mac.replace(":", "")


def with_router_at(subnet: PlannedSubnet) -> NetworkPlan:
    leg = RouterLeg(
        network_id=NETWORK.id,
        subnet_id=subnet.id,
        address=subnet.gateway,
        prefix_length=24,
        mac="fa:16:3e:99:00:01",
    )
    return NetworkPlan(networks=(NETWORK,), routers=(PlannedRouter(id=an_id("router"), vni=9, legs=(leg,)),))


def test_namespaces_of_two_hosts_on_one_machine_differ() -> None:
    names = {service_namespace(host, NETWORK.id) for host in ("/run/netns/a", "/run/netns/b")}

    assert len(names) == 2
    assert service_namespace("a", NETWORK.id).startswith(host_prefix("a"))
    assert not service_namespace("b", NETWORK.id).startswith(host_prefix("a"))


def test_each_port_of_the_host_is_a_neighbour_for_good() -> None:
    found = surroundings(NETWORK, [LODGER])

    assert found.neighbours == {
        (address, PORT.mac) for address in (PORT.address, PORT.further[0].address, link_local(PORT.mac))
    }
    assert {"10.0.0.2/24", "fd00::2/64", "169.254.169.254/32", "fe80::a9fe:a9fe/64"} == found.addresses


def test_the_same_surroundings_need_no_command_and_a_guest_more_only_its_own() -> None:
    one = surroundings(NETWORK, [LODGER])
    two = surroundings(NETWORK, [LODGER, Lodger(port=a_tenant_port(2), hostname="web-2")])

    assert surroundings_change(one, one) == ()
    assert all(a_tenant_port(2).mac in line for line in surroundings_change(one, two))
    assert [line.split()[:2] for line in surroundings_change(two, one)] == [["neighbour", "del"]] * 3


def test_an_address_that_another_port_has_now_is_replaced_and_not_deleted_after() -> None:
    before = Surroundings(mtu=1, neighbours=frozenset({("10.0.0.5", "fa:16:3e:00:00:01")}))
    after = Surroundings(mtu=1, neighbours=frozenset({("10.0.0.5", "fa:16:3e:00:00:02")}))

    (line,) = surroundings_change(before, after)

    assert line.startswith("neighbour replace 10.0.0.5 lladdr fa:16:3e:00:00:02")


def test_a_host_line_has_both_families() -> None:
    assert serving(NETWORK, [LODGER], advertise=False).hosts == (
        f"{PORT.mac},set:{TAG},10.0.0.11,[fd00::11],web-1,86400s\n"
    )


def test_a_gateway_is_told_in_both_options_and_without_one_no_router_is() -> None:
    with_one = serving(NETWORK, [LODGER], advertise=False).options.splitlines()
    isolated = replace(NETWORK, subnets=(replace(FOUR, gateway=""), SIX))
    without = serving(isolated, [LODGER], advertise=False).options.splitlines()

    assert f"tag:{TAG},option:router,10.0.0.1" in with_one
    route = "169.254.169.254/32,10.0.0.2,0.0.0.0/0,10.0.0.1"
    assert f"tag:{TAG},option:classless-static-route,{route}" in with_one
    # dnsmasq names itself where nothing is said.
    assert f"tag:{TAG},option:router" in without
    assert f"tag:{TAG},option:classless-static-route,169.254.169.254/32,10.0.0.2" in without


def test_routes_of_a_subnet_are_told() -> None:
    routed = replace(FOUR, host_routes=(HostRoute(destination="10.9.0.0/16", next_hop="10.0.0.9"),))

    told = serving(replace(NETWORK, subnets=(routed,)), [LODGER], advertise=False).options

    assert "169.254.169.254/32,10.0.0.2,10.9.0.0/16,10.0.0.9,0.0.0.0/0,10.0.0.1" in told


def test_a_route_that_is_none_is_refused() -> None:
    routed = replace(FOUR, host_routes=(HostRoute(destination="10.9.0.0/16", next_hop="x\ntag:all"),))

    with pytest.raises(ValueError, match="does not appear"):
        serving(replace(NETWORK, subnets=(routed,)), [LODGER], advertise=False)


ZONED = "fd00::5%\ntag:all,option:router,10.0.0.9"
"""Behind % any text is an address to Python, line breaks among it."""


@pytest.mark.parametrize(
    "subnet", [replace(SIX, service_address=ZONED), replace(SIX, cidr="fd00::%\naddress del/64")]
)
def test_a_zone_of_an_address_is_no_line_of_a_batch(subnet: PlannedSubnet) -> None:
    with pytest.raises(ValueError, match="has a zone"):
        surroundings(replace(NETWORK, subnets=(FOUR, subnet)), [LODGER])


@pytest.mark.parametrize(
    "subnet", [replace(SIX, dns_servers=(ZONED,)), replace(SIX, cidr="fd00::%\ntag:all/64")]
)
def test_a_zone_of_an_address_is_no_line_of_the_dhcp_servers(subnet: PlannedSubnet) -> None:
    with pytest.raises(ValueError, match="has a zone"):
        serving(replace(NETWORK, subnets=(FOUR, subnet)), [LODGER], advertise=False)


def test_a_subnet_without_dhcp_is_not_served() -> None:
    only_six = replace(NETWORK, subnets=(replace(FOUR, dhcp=False), SIX))

    found = serving(only_six, [LODGER], advertise=False)

    assert "10.0.0.11" not in found.hosts
    assert [word for word in found.ranges if "dhcp-range" in word] == ["--dhcp-range=fd00::,static,64,86400s"]


def test_a_network_without_dhcp_has_no_server() -> None:
    none = replace(NETWORK, subnets=(replace(FOUR, dhcp=False), replace(SIX, dhcp=False)))

    assert serving(none, [LODGER], advertise=False).ranges == ()


def test_a_port_without_an_address_in_a_subnet_is_left_out() -> None:
    elsewhere = replace(PORT, address="10.8.0.1", further=(PortAddress(address="fd08::1", prefix_length=64),))

    assert serving(NETWORK, [Lodger(port=elsewhere, hostname="x")], advertise=False).hosts == ""


def test_the_namespace_advertises_where_no_router_is_at_an_ipv6_subnet() -> None:
    assert advertises(NetworkPlan(networks=(NETWORK,)), NETWORK)
    assert advertises(with_router_at(FOUR), NETWORK)
    assert not advertises(with_router_at(SIX), NETWORK)
    assert not advertises(NetworkPlan(), replace(NETWORK, subnets=(FOUR,)))
    assert "--enable-ra" in serving(NETWORK, [], advertise=True).ranges
    assert "--ra-param=service0,mtu:1450,60,0" in serving(NETWORK, [], advertise=True).ranges
