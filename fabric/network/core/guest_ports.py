"""From a port of a project's to the interface of a guest: everything that its host must know, so that nothing has to be looked up there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fabric.errors import InvalidRequest
from fabric.model.network import (
    METADATA_ADDRESS,
    HostRoute,
    Network,
    NetworkKind,
    NetworkPort,
    Port,
    PortAddress,
    Subnet,
)
from fabric.network.core.subnets import cidr_of


def check_guest_network(network: Network, *, field: str) -> None:
    """Whether guests may have ports of the network. Raises InvalidRequest."""
    if network.kind is not NetworkKind.TENANT:
        raise InvalidRequest(
            f"{field}: network {network.name} is external, and servers are not on it: give them floating IPs of it",
            field=field,
        )


def guest_port(port: NetworkPort, network: Network, subnets: Mapping[str, Subnet]) -> Port:
    """The interface of a guest.

    Args:
        port: on that network.
        network: a tenant network.
        subnets: at least those of the port's addresses, by id.
    """
    addresses = [_address(subnets[each.subnet_id], each.address) for each in port.fixed_addresses]
    servers = _once(server for each in port.fixed_addresses for server in subnets[each.subnet_id].dns_servers)
    first = addresses[0] if addresses else PortAddress(address="", prefix_length=0)
    return Port(
        id=port.id,
        network_id=network.id,
        network_name=network.name,
        mac=port.mac,
        address=first.address,
        prefix_length=first.prefix_length,
        gateway=first.gateway,
        mtu=network.mtu,
        dns_servers=servers or network.dns_servers,
        vni=network.vni,
        routes=first.routes,
        further=tuple(addresses[1:]),
    )


def _address(subnet: Subnet, address: str) -> PortAddress:
    return PortAddress(
        address=address,
        prefix_length=cidr_of(subnet).prefixlen,
        gateway=subnet.gateway,
        routes=_routes(subnet),
    )


def _routes(subnet: Subnet) -> tuple[HostRoute, ...]:
    """The subnet's own and, as DHCP has it too, the way to metadata: no router knows one, and without a gateway there is none at all.

    Over IPv6 metadata is at a link-local address, which needs no route.
    """
    metadata = f"{METADATA_ADDRESS}/32"
    is_led_elsewhere = any(each.destination == metadata for each in subnet.host_routes)
    if not subnet.service_address or cidr_of(subnet).version != 4 or is_led_elsewhere:
        return subnet.host_routes
    return (HostRoute(destination=metadata, next_hop=subnet.service_address), *subnet.host_routes)


def _once(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))
