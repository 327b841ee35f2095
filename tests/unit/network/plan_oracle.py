"""Plans made the slow way, of lists and loops: what the picture and its indexes must come to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TypeVar

from fabric.model.binding import PortBinding, RouterGateway
from fabric.model.host import Host
from fabric.model.network import (
    PHYSICAL_NETWORK,
    FloatingIp,
    Network,
    NetworkKind,
    NetworkPort,
    Router,
    Subnet,
)
from fabric.model.network_plan import (
    Neighbour,
    NetworkPlan,
    OutsideSubnet,
    PlannedFloatingIp,
    PlannedNetwork,
    PlannedRouter,
    PlannedSubnet,
    RouterLeg,
    RouterOutside,
)
from fabric.model.security_group import SecurityGroup
from fabric.model.tap import tap_name
from fabric.network.core.filters import PlacedPort, compiled
from fabric.network.core.picture import HostRef
from fabric.network.core.plans import outside_mac

V = TypeVar("V", Network, Subnet, Router)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """All records, by their kind."""

    networks: tuple[Network, ...] = ()
    subnets: tuple[Subnet, ...] = ()
    ports: tuple[NetworkPort, ...] = ()
    routers: tuple[Router, ...] = ()
    floating_ips: tuple[FloatingIp, ...] = ()
    groups: tuple[SecurityGroup, ...] = ()
    bindings: tuple[PortBinding, ...] = ()
    gateways: tuple[RouterGateway, ...] = ()


def expected(host: Host, model: Model) -> NetworkPlan:
    """What the host must have."""
    here = (host.cell, host.name)
    bound = {each.port_id: each for each in model.bindings}
    mine = [
        each
        for each in model.ports
        if each.id in bound and (bound[each.id].cell, bound[each.id].host) == here
    ]
    groups = {each.id: each for each in model.groups}
    routers = [each for each in model.routers if _is_here(each, host, mine, model.gateways)]
    wanted = {each.network_id for each in mine}
    wanted |= {leg.network_id for each in routers for leg in each.interfaces}
    return NetworkPlan(
        tunnel_address=host.tunnel_address,
        networks=tuple(
            _network(each, host, model)
            for each in _by_id(model.networks)
            if each.id in wanted and each.kind is NetworkKind.TENANT
        ),
        routers=tuple(_router(each, host, mine, model) for each in _by_id(routers)),
        filters=compiled(
            [
                PlacedPort(port=each, instance_id=bound[each.id].instance_id, tap=tap_name(each.id))
                for each in mine
            ],
            groups,
            {
                group: [each for each in model.ports if group in each.security_group_ids]
                for group in {
                    *groups,
                    *(rule.remote_group_id for each in model.groups for rule in each.rules),
                }
            },
        ),
    )


def _is_here(
    router: Router, host: Host, mine: Iterable[NetworkPort], gateways: Iterable[RouterGateway]
) -> bool:
    joined = {each.subnet_id for each in router.interfaces}
    if any(address.subnet_id in joined for port in mine for address in port.fixed_addresses):
        return True
    return any(
        (each.router_id, each.cell, each.host) == (router.id, host.cell, host.name) for each in gateways
    )


def _network(network: Network, host: Host, model: Model) -> PlannedNetwork:
    ports = {each.id: each for each in model.ports}
    neighbours = [
        Neighbour(
            port_id=each.port_id,
            mac=ports[each.port_id].mac,
            addresses=tuple(it.address for it in ports[each.port_id].fixed_addresses),
            tunnel_address=each.tunnel_address,
        )
        for each in model.bindings
        if each.network_id == network.id
        and each.port_id in ports
        and (each.cell, each.host) != (host.cell, host.name)
        and each.tunnel_address
        and host.tunnel_address
    ]
    return PlannedNetwork(
        id=network.id,
        vni=network.vni,
        mtu=network.mtu,
        subnets=tuple(
            PlannedSubnet(
                id=each.id,
                cidr=each.cidr,
                gateway=each.gateway,
                service_address=each.service_address,
                dhcp=each.dhcp,
                dns_servers=each.dns_servers,
                host_routes=each.host_routes,
            )
            for each in _by_id(model.subnets)
            if each.network_id == network.id
        ),
        neighbours=tuple(sorted(neighbours, key=lambda each: each.port_id)),
    )


def _router(router: Router, host: Host, mine: Iterable[NetworkPort], model: Model) -> PlannedRouter:
    subnets = {each.id: each for each in model.subnets}
    return PlannedRouter(
        id=router.id,
        vni=router.vni,
        legs=tuple(
            RouterLeg(
                network_id=each.network_id,
                subnet_id=each.subnet_id,
                address=each.address,
                prefix_length=ip_network(subnets[each.subnet_id].cidr).prefixlen,
                mac=each.mac,
            )
            for each in sorted(router.interfaces, key=lambda leg: leg.subnet_id)
            if each.subnet_id in subnets
        ),
        outside=_outside(router, host, mine, model),
    )


def _outside(router: Router, host: Host, mine: Iterable[NetworkPort], model: Model) -> RouterOutside | None:
    external = next((each for each in model.networks if each.id == router.external_network_id), None)
    if external is None:
        return None
    physical = external.physical_network or PHYSICAL_NETWORK
    leads = physical in host.physical_networks
    gateway = next((each for each in model.gateways if each.router_id == router.id), None)
    is_gateway = gateway is not None and (gateway.cell, gateway.host) == (host.cell, host.name)
    at = {each.id: each.network_id for each in mine}
    floating_ips = [
        PlannedFloatingIp(
            address=each.address, fixed_address=each.fixed_address, fixed_network_id=at[each.port_id]
        )
        for each in model.floating_ips
        if leads and each.router_id == router.id and each.port_id in at
    ]
    return RouterOutside(
        physical_network=physical if leads else "",
        mtu=external.mtu,
        mac=router.external_mac if is_gateway else outside_mac(router.id, HostRef(host.cell, host.name)),
        subnets=tuple(
            OutsideSubnet(cidr=each.cidr, gateway=each.gateway)
            for each in _by_id(model.subnets)
            if each.network_id == external.id
        ),
        addresses=tuple(each.address for each in router.external_addresses) if is_gateway else (),
        is_gateway=is_gateway,
        gateway_tunnel_address=gateway.tunnel_address if gateway is not None and not is_gateway else "",
        snat=router.snat,
        floating_ips=tuple(sorted(floating_ips, key=lambda each: each.address)),
    )


def _by_id(records: Iterable[V]) -> list[V]:
    return sorted(records, key=lambda each: each.id)
