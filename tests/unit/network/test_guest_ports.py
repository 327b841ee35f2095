"""What a guest's interface on a project's network says of its surroundings, for whoever does without DHCP."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from fabric.model.network import FixedAddress, HostRoute, Network, NetworkKind, NetworkPort, Subnet
from fabric.network.core.guest_ports import guest_port

NETWORK = Network(id="n", name="office", kind=NetworkKind.TENANT, project_id="p", mtu=1450, vni=17)
CHOSEN = HostRoute(destination="10.9.0.0/16", next_hop="10.0.0.9")
METADATA = HostRoute(destination="169.254.169.254/32", next_hop="10.0.0.2")


def routes(
    *chosen: HostRoute, service: str, gateway: str = "", address: str = "10.0.0.11/24"
) -> tuple[HostRoute, ...]:
    """Of a port with one address, on a subnet of that kind."""
    held = ip_interface(address)
    subnet = Subnet(
        id="s",
        name="office",
        project_id="p",
        network_id="n",
        cidr=str(held.network),
        gateway=gateway,
        service_address=service,
        host_routes=chosen,
    )
    fixed = FixedAddress(subnet_id="s", address=str(held.ip))
    port = NetworkPort(
        id="i", name="", project_id="p", network_id="n", mac="fa:16:3e:00:00:01", fixed_addresses=(fixed,)
    )
    return guest_port(port, NETWORK, {"s": subnet}).routes


@pytest.mark.parametrize("gateway", ["", "10.0.0.1"])
def test_the_way_to_metadata_is_told_with_a_gateway_and_without(gateway: str) -> None:
    """A router knows no way there, so its subnets are not served by their default route."""
    assert routes(CHOSEN, gateway=gateway, service="10.0.0.2") == (METADATA, CHOSEN)


def test_the_way_that_somebody_chose_to_metadata_takes_the_networks_place() -> None:
    chosen = HostRoute(destination="169.254.169.254/32", next_hop="10.0.0.9")

    assert routes(CHOSEN, chosen, service="10.0.0.2") == (CHOSEN, chosen)


@pytest.mark.parametrize(("address", "service"), [("fd00::11/64", "fd00::2"), ("10.0.0.11/24", "")])
def test_no_way_to_metadata_is_told_where_none_is_needed_or_known(address: str, service: str) -> None:
    """Over IPv6 it is on the link."""
    assert routes(address=address, service=service) == ()
