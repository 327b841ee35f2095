"""Networks and what belongs to them as messages of the public API. `convert` is for everything else."""

from __future__ import annotations

from fabric.api.instance_view import timestamp
from fabric.model.network import FloatingIp, Network, NetworkKind, NetworkPort, Router, Subnet
from fabric.model.security_group import ANY, SecurityGroup, SecurityRule
from fabric.network.core.rules import protocol_name
from fabric.pb.network.v1 import floating_ip_service_pb2 as floating_ips
from fabric.pb.network.v1 import network_service_pb2 as networks
from fabric.pb.network.v1 import port_service_pb2 as ports
from fabric.pb.network.v1 import router_service_pb2 as routers
from fabric.pb.network.v1 import security_group_service_pb2 as groups
from fabric.pb.network.v1 import subnet_service_pb2 as subnets

KIND_WORDS = {
    NetworkKind.HOST_LOCAL: "host-local",
    NetworkKind.TENANT: "tenant",
    NetworkKind.EXTERNAL: "external",
}
"""What people call the kinds of networks."""


def network_message(network: Network, mod_revision: int, *, is_admin: bool = False) -> networks.Network:
    """A network. Its VNI, and what it is on, is the operator's business."""
    return networks.Network(
        id=network.id,
        name=network.name,
        mtu=network.mtu,
        dns_servers=network.dns_servers,
        kind=KIND_WORDS[network.kind],
        create_time=timestamp(network.create_time_ms),
        project_id=network.project_id,
        description=network.description,
        shared=network.shared,
        external=network.kind is NetworkKind.EXTERNAL,
        subnet_ids=network.subnet_ids,
        vni=network.vni if is_admin else 0,
        physical_network=network.physical_network if is_admin else "",
        update_time=timestamp(network.update_time_ms),
        etag=str(mod_revision),
    )


def subnet_message(subnet: Subnet, mod_revision: int) -> subnets.Subnet:
    return subnets.Subnet(
        id=subnet.id,
        name=subnet.name,
        project_id=subnet.project_id,
        description=subnet.description,
        create_time=timestamp(subnet.create_time_ms),
        update_time=timestamp(subnet.update_time_ms),
        etag=str(mod_revision),
        network=subnet.network_id,
        cidr=subnet.cidr,
        gateway=subnet.gateway,
        no_gateway=not subnet.gateway,
        no_dhcp=not subnet.dhcp,
        dns_servers=subnet.dns_servers,
        allocation_pools=[
            subnets.AllocationPool(start=each.first, end=each.last) for each in subnet.allocation_pools
        ],
        host_routes=[
            subnets.HostRoute(destination=each.destination, next_hop=each.next_hop)
            for each in subnet.host_routes
        ],
        service_address=subnet.service_address,
    )


def port_message(port: NetworkPort, mod_revision: int) -> ports.Port:
    return ports.Port(
        id=port.id,
        name=port.name,
        project_id=port.project_id,
        description=port.description,
        create_time=timestamp(port.create_time_ms),
        update_time=timestamp(port.update_time_ms),
        etag=str(mod_revision),
        network=port.network_id,
        mac_address=port.mac,
        fixed_ips=[
            ports.FixedIp(subnet=each.subnet_id, ip_address=each.address) for each in port.fixed_addresses
        ],
        no_fixed_ip=not port.fixed_addresses,
        security_groups=port.security_group_ids,
        no_security_group=not port.security_group_ids,
        allowed_address_pairs=[
            ports.AllowedAddressPair(cidr=each.cidr, mac_address=each.mac)
            for each in port.allowed_address_pairs
        ],
        port_security_disabled=not port.port_security,
        instance_id=port.instance_id,
        ends_with_instance=port.ends_with_instance,
        bind_time=timestamp(port.bind_time_ms),
    )


def router_message(router: Router, mod_revision: int) -> routers.Router:
    return routers.Router(
        id=router.id,
        name=router.name,
        project_id=router.project_id,
        description=router.description,
        create_time=timestamp(router.create_time_ms),
        update_time=timestamp(router.update_time_ms),
        etag=str(mod_revision),
        external_network=router.external_network_id,
        snat_disabled=not router.snat,
        external_ips=[
            routers.ExternalIp(subnet_id=each.subnet_id, ip_address=each.address)
            for each in router.external_addresses
        ],
        interfaces=[
            routers.RouterInterface(
                network_id=each.network_id,
                subnet_id=each.subnet_id,
                ip_address=each.address,
                mac_address=each.mac,
            )
            for each in router.interfaces
        ],
    )


def floating_ip_message(floating_ip: FloatingIp, mod_revision: int) -> floating_ips.FloatingIp:
    return floating_ips.FloatingIp(
        id=floating_ip.id,
        project_id=floating_ip.project_id,
        description=floating_ip.description,
        create_time=timestamp(floating_ip.create_time_ms),
        update_time=timestamp(floating_ip.update_time_ms),
        etag=str(mod_revision),
        network=floating_ip.network_id,
        ip_address=floating_ip.address,
        port=floating_ip.port_id,
        fixed_ip=floating_ip.fixed_address,
        router_id=floating_ip.router_id,
    )


def group_message(group: SecurityGroup, mod_revision: int) -> groups.SecurityGroup:
    return groups.SecurityGroup(
        id=group.id,
        name=group.name,
        project_id=group.project_id,
        description=group.description,
        create_time=timestamp(group.create_time_ms),
        update_time=timestamp(group.update_time_ms),
        etag=str(mod_revision),
        rules=[rule_message(each, group) for each in group.rules],
    )


def rule_message(rule: SecurityRule, group: SecurityGroup) -> groups.SecurityGroupRule:
    # Numbers of the two enums are the same: a test compares their names.
    message = groups.SecurityGroupRule(
        id=rule.id,
        security_group=group.id,
        project_id=group.project_id,
        description=rule.description,
        create_time=timestamp(rule.create_time_ms),
        protocol=protocol_name(rule.protocol),
        port_range_min=None if rule.port_min == ANY else rule.port_min,
        port_range_max=None if rule.port_max == ANY else rule.port_max,
        remote_cidr=rule.remote_cidr,
        remote_group=rule.remote_group_id,
    )
    message.direction = groups.Direction.ValueType(rule.direction)
    message.ether_type = groups.EtherType.ValueType(rule.ether_type)
    return message
