"""Networks that servers can be attached to, and their subnets."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from fabric.client.calls import Calls
from fabric.pb.network.v1 import network_service_pb2 as pb
from fabric.pb.network.v1 import subnet_service_pb2 as subnet_pb
from fabric.pb.network.v1.network_service_pb2 import Network
from fabric.pb.network.v1.network_service_pb2_grpc import NetworkServiceStub
from fabric.pb.network.v1.subnet_service_pb2 import Subnet
from fabric.pb.network.v1.subnet_service_pb2_grpc import SubnetServiceStub

__all__ = ["Network", "Networks", "Subnet", "Subnets", "mask_of"]


def mask_of(changes: Mapping[str, Any]) -> FieldMask:
    """The mask of an update that changes these fields."""
    return FieldMask(paths=sorted(changes))


class Networks:
    """NetworkService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = NetworkServiceStub(calls.channel)

    def get(self, network: str) -> Network:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetNetwork, pb.GetNetworkRequest(network=network)).network

    def list(self) -> list[Network]:
        """All that one may see, by name."""
        pages = self._calls.pages(self._stub.ListNetworks, pb.ListNetworksRequest())
        return [network for page in pages for network in page.networks]

    def create(
        self,
        *,
        name: str,
        description: str = "",
        mtu: int = 0,
        shared: bool = False,
        external: bool = False,
        physical_network: str = "",
    ) -> Network:
        """Make one; shared and external ones take a system administrator."""
        request = pb.CreateNetworkRequest(
            request_id=self._calls.request_id(),
            network=Network(
                name=name,
                description=description,
                mtu=mtu,
                shared=shared,
                external=external,
                physical_network=physical_network,
            ),
        )
        return self._calls.unary(self._stub.CreateNetwork, request).network

    def update(self, network: str, **changes: Any) -> Network:
        """Change name, description, shared or mtu: what is given."""
        request = pb.UpdateNetworkRequest(
            request_id=self._calls.request_id(), network=network, update_mask=mask_of(changes), **changes
        )
        return self._calls.unary(self._stub.UpdateNetwork, request).network

    def delete(self, network: str) -> None:
        """Delete one with its subnets, by id or name."""
        request = pb.DeleteNetworkRequest(request_id=self._calls.request_id(), network=network)
        self._calls.delete(self._stub.DeleteNetwork, request)


class Subnets:
    """SubnetService. Pools are (first, last), routes are (destination, next hop)."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = SubnetServiceStub(calls.channel)

    def get(self, subnet: str) -> Subnet:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetSubnet, subnet_pb.GetSubnetRequest(subnet=subnet)).subnet

    def list(self, *, network: str = "") -> list[Subnet]:
        """Those of every network one may see, or of one network, by name."""
        pages = self._calls.pages(self._stub.ListSubnets, subnet_pb.ListSubnetsRequest(network=network))
        return [subnet for page in pages for subnet in page.subnets]

    def create(
        self,
        *,
        name: str,
        network: str,
        cidr: str,
        description: str = "",
        gateway: str = "",
        no_gateway: bool = False,
        no_dhcp: bool = False,
        dns_servers: Sequence[str] = (),
        pools: Sequence[tuple[str, str]] = (),
        host_routes: Sequence[tuple[str, str]] = (),
    ) -> Subnet:
        """Add a range to a network."""
        request = subnet_pb.CreateSubnetRequest(
            request_id=self._calls.request_id(),
            subnet=Subnet(
                name=name,
                network=network,
                cidr=cidr,
                description=description,
                gateway=gateway,
                no_gateway=no_gateway,
                no_dhcp=no_dhcp,
                dns_servers=dns_servers,
                allocation_pools=_pools(pools),
                host_routes=_routes(host_routes),
            ),
        )
        return self._calls.unary(self._stub.CreateSubnet, request).subnet

    def update(self, subnet: str, **changes: Any) -> Subnet:
        """Change name, description, no_dhcp, dns_servers, allocation_pools or host_routes: what is given."""
        mask = mask_of(changes)
        if "allocation_pools" in changes:
            changes["allocation_pools"] = _pools(changes["allocation_pools"])
        if "host_routes" in changes:
            changes["host_routes"] = _routes(changes["host_routes"])
        request = subnet_pb.UpdateSubnetRequest(
            request_id=self._calls.request_id(), subnet=subnet, update_mask=mask, **changes
        )
        return self._calls.unary(self._stub.UpdateSubnet, request).subnet

    def delete(self, subnet: str) -> None:
        """Delete one, by id or name."""
        request = subnet_pb.DeleteSubnetRequest(request_id=self._calls.request_id(), subnet=subnet)
        self._calls.delete(self._stub.DeleteSubnet, request)


def _pools(pools: Sequence[tuple[str, str]]) -> builtins.list[subnet_pb.AllocationPool]:
    return [subnet_pb.AllocationPool(start=first, end=last) for first, last in pools]


def _routes(routes: Sequence[tuple[str, str]]) -> builtins.list[subnet_pb.HostRoute]:
    return [subnet_pb.HostRoute(destination=to, next_hop=by) for to, by in routes]
