"""What one host must have of tenant networks, made of the picture of all of them.

A host has the networks of its guests, the routers that those are behind, and with a router every network that it joins: what a guest
sends to another network is routed where the guest is. The host that a router leads out from has it too, whoever is there. Equal models
give equal plans.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
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
    RouterInterface,
    Subnet,
)
from fabric.model.network_plan import (
    NetworkPlan,
    OutsideSubnet,
    PlannedFloatingIp,
    PlannedNetwork,
    PlannedRouter,
    RouterLeg,
    RouterOutside,
)
from fabric.model.security_group import SecurityGroup
from fabric.model.tap import tap_name
from fabric.network.core.filters import PlacedPort, assembled
from fabric.network.core.picture import HostRef, NetworkPicture

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Planned:
    """A host's plan, and the ids of what it should have been made of and was not there.

    Records come in by several ways, so one may be seen before another that it names and that is older. Such a plan is right soon: who acts
    on it at once may cut what was never forbidden.
    """

    plan: NetworkPlan
    missing: frozenset[str]


def plan_of(host: Host, picture: NetworkPicture) -> Planned:
    """The plan of a host."""
    return _Drawing(host, picture).planned()


def outside_mac(router_id: str, host: HostRef) -> str:
    """The MAC that a router has in its external network on a host that is not its gateway: locally administered (IEEE 802), and the host's
    and the router's alone, as far as 46 bits can be.
    """
    digest = bytearray(blake2b("/".join((router_id, *host)).encode(), digest_size=6, person=b"out").digest())
    digest[0] = digest[0] & 0xFC | 0x02
    return digest.hex(":")


class _Drawing:
    """One plan, while it is made."""

    def __init__(self, host: Host, picture: NetworkPicture) -> None:
        self._host = host
        self._here = HostRef(host.cell, host.name)
        self._picture = picture
        self._missing: set[str] = set()

    def planned(self) -> Planned:
        ports = self._ports()
        routers = self._routers(ports)
        legs = {each.network_id for router in routers for each in router.interfaces}
        networks = self._networks({each.network_id for each in ports} | legs)
        plan = NetworkPlan(
            tunnel_address=self._host.tunnel_address,
            networks=tuple(self._network(each) for each in networks),
            routers=tuple(self._router(each, ports) for each in routers),
            filters=assembled(
                self._placed(ports),
                self._groups(ports),
                rules=self._picture.rule_group,
                addresses=self._picture.address_set,
            ),
        )
        return Planned(plan, frozenset(self._missing))

    def _ports(self) -> list[NetworkPort]:
        """The ports that are here, by id."""
        found = (self._have(NetworkPort, each) for each in sorted(self._picture.bound_on(self._here)))
        return [each for each in found if each is not None]

    def _placed(self, ports: Iterable[NetworkPort]) -> Iterable[PlacedPort]:
        bindings = self._picture.of(PortBinding)
        return (
            PlacedPort(port=each, instance_id=bindings[each.id].instance_id, tap=tap_name(each.id))
            for each in ports
        )

    def _groups(self, ports: Iterable[NetworkPort]) -> dict[str, SecurityGroup]:
        named = sorted({group for port in ports for group in port.security_group_ids})
        found = ((each, self._have(SecurityGroup, each)) for each in named)
        return {group_id: group for group_id, group in found if group is not None}

    def _routers(self, ports: Iterable[NetworkPort]) -> list[Router]:
        """Those that a port here is behind, and those that lead out from here; by id."""
        subnets = {address.subnet_id for port in ports for address in port.fixed_addresses}
        behind = {router for subnet in subnets for router in self._picture.routers_at(subnet)}
        named = sorted(behind | self._picture.gateways_on(self._here))
        found = (self._picture.get(Router, each) for each in named)
        return [each for each in found if each is not None]

    def _networks(self, named: Iterable[str]) -> list[Network]:
        found = (self._have(Network, each) for each in sorted(named))
        return [each for each in found if each is not None and each.kind is NetworkKind.TENANT]

    def _network(self, network: Network) -> PlannedNetwork:
        # Without an end of its own for tunnels the host reaches nobody.
        neighbours = self._picture.neighbours(network.id) if self._host.tunnel_address else ()
        for each in network.subnet_ids:
            self._have(Subnet, each)
        return PlannedNetwork(
            id=network.id,
            vni=network.vni,
            mtu=network.mtu,
            subnets=self._picture.planned_subnets(network.id),
            neighbours=tuple(each for host, each in neighbours if host != self._here),
        )

    def _router(self, router: Router, ports: Iterable[NetworkPort]) -> PlannedRouter:
        legs = (self._leg(each) for each in sorted(router.interfaces, key=lambda each: each.subnet_id))
        return PlannedRouter(
            id=router.id,
            vni=router.vni,
            legs=tuple(each for each in legs if each is not None),
            outside=self._outside(router, ports),
        )

    def _leg(self, interface: RouterInterface) -> RouterLeg | None:
        subnet = self._have(Subnet, interface.subnet_id)
        if subnet is None:
            return None
        return RouterLeg(
            network_id=interface.network_id,
            subnet_id=interface.subnet_id,
            address=interface.address,
            prefix_length=ip_network(subnet.cidr).prefixlen,
            mac=interface.mac,
        )

    def _outside(self, router: Router, ports: Iterable[NetworkPort]) -> RouterOutside | None:
        if not router.external_network_id:
            return None
        network = self._have(Network, router.external_network_id)
        if network is None:
            return None
        for each in network.subnet_ids:
            self._have(Subnet, each)
        physical = network.physical_network or PHYSICAL_NETWORK
        has_interface = physical in self._host.physical_networks
        gateway = self._picture.get(RouterGateway, router.id)
        is_gateway = gateway is not None and HostRef(gateway.cell, gateway.host) == self._here
        return RouterOutside(
            physical_network=physical if has_interface else "",
            mtu=network.mtu,
            mac=router.external_mac if is_gateway else outside_mac(router.id, self._here),
            subnets=tuple(
                OutsideSubnet(cidr=each.cidr, gateway=each.gateway)
                for each in self._picture.planned_subnets(network.id)
            ),
            addresses=tuple(each.address for each in router.external_addresses) if is_gateway else (),
            is_gateway=is_gateway,
            gateway_tunnel_address="" if gateway is None or is_gateway else gateway.tunnel_address,
            snat=router.snat,
            floating_ips=self._floating_ips(router, ports) if has_interface else (),
        )

    def _floating_ips(self, router: Router, ports: Iterable[NetworkPort]) -> tuple[PlannedFloatingIp, ...]:
        floating_ips = self._picture.of(FloatingIp)
        found = (
            PlannedFloatingIp(
                address=floating_ips[each].address,
                fixed_address=floating_ips[each].fixed_address,
                fixed_network_id=port.network_id,
            )
            for port in ports
            for each in self._picture.floating_ips_of(port.id)
            if floating_ips[each].router_id == router.id
        )
        return tuple(sorted(found, key=lambda each: each.address))

    def _have(self, kind: type[V], thing: str) -> V | None:
        """A record that must be there, if it is."""
        found = self._picture.get(kind, thing)
        if found is None:
            self._missing.add(thing)
        return found
