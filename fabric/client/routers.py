"""Routers, and the floating IPs that they lead."""

from __future__ import annotations

from typing import Any

from fabric.client.calls import Calls
from fabric.client.networks import mask_of
from fabric.pb.network.v1 import floating_ip_service_pb2 as floating_pb
from fabric.pb.network.v1 import router_service_pb2 as pb
from fabric.pb.network.v1.floating_ip_service_pb2 import FloatingIp
from fabric.pb.network.v1.floating_ip_service_pb2_grpc import FloatingIpServiceStub
from fabric.pb.network.v1.router_service_pb2 import Router
from fabric.pb.network.v1.router_service_pb2_grpc import RouterServiceStub

__all__ = ["FloatingIp", "FloatingIps", "Router", "Routers"]


class Routers:
    """RouterService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = RouterServiceStub(calls.channel)

    def get(self, router: str) -> Router:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetRouter, pb.GetRouterRequest(router=router)).router

    def list(self) -> list[Router]:
        """The project's, by name."""
        pages = self._calls.pages(self._stub.ListRouters, pb.ListRoutersRequest())
        return [router for page in pages for router in page.routers]

    def create(
        self, *, name: str, description: str = "", external_network: str = "", snat_disabled: bool = False
    ) -> Router:
        """Make one."""
        request = pb.CreateRouterRequest(
            request_id=self._calls.request_id(),
            router=Router(
                name=name,
                description=description,
                external_network=external_network,
                snat_disabled=snat_disabled,
            ),
        )
        return self._calls.unary(self._stub.CreateRouter, request).router

    def update(self, router: str, **changes: Any) -> Router:
        """Change name, description, external_network (empty: none) or snat_disabled: what is given."""
        request = pb.UpdateRouterRequest(
            request_id=self._calls.request_id(), router=router, update_mask=mask_of(changes), **changes
        )
        return self._calls.unary(self._stub.UpdateRouter, request).router

    def delete(self, router: str) -> None:
        """Delete one, by id or name."""
        request = pb.DeleteRouterRequest(request_id=self._calls.request_id(), router=router)
        self._calls.delete(self._stub.DeleteRouter, request)

    def add_interface(self, router: str, subnet: str) -> Router:
        """Put the router at a subnet's gateway address."""
        request = pb.AddRouterInterfaceRequest(
            request_id=self._calls.request_id(), router=router, subnet=subnet
        )
        return self._calls.unary(self._stub.AddRouterInterface, request).router

    def remove_interface(self, router: str, subnet: str) -> Router:
        """Take the router out of a subnet."""
        request = pb.RemoveRouterInterfaceRequest(
            request_id=self._calls.request_id(), router=router, subnet=subnet
        )
        return self._calls.unary(self._stub.RemoveRouterInterface, request).router


class FloatingIps:
    """FloatingIpService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = FloatingIpServiceStub(calls.channel)

    def get(self, floating_ip: str) -> FloatingIp:
        """One, by id or address."""
        request = floating_pb.GetFloatingIpRequest(floating_ip=floating_ip)
        return self._calls.unary(self._stub.GetFloatingIp, request).floating_ip

    def list(self) -> list[FloatingIp]:
        """The project's, by address."""
        pages = self._calls.pages(self._stub.ListFloatingIps, floating_pb.ListFloatingIpsRequest())
        return [floating_ip for page in pages for floating_ip in page.floating_ips]

    def create(
        self,
        *,
        network: str,
        ip_address: str = "",
        port: str = "",
        fixed_ip: str = "",
        description: str = "",
    ) -> FloatingIp:
        """Take one of an external network."""
        request = floating_pb.CreateFloatingIpRequest(
            request_id=self._calls.request_id(),
            floating_ip=FloatingIp(
                network=network,
                ip_address=ip_address,
                port=port,
                fixed_ip=fixed_ip,
                description=description,
            ),
        )
        return self._calls.unary(self._stub.CreateFloatingIp, request).floating_ip

    def update(self, floating_ip: str, **changes: Any) -> FloatingIp:
        """Change description, port (empty: none) or, with it, fixed_ip: what is given."""
        request = floating_pb.UpdateFloatingIpRequest(
            request_id=self._calls.request_id(),
            floating_ip=floating_ip,
            update_mask=mask_of(changes),
            **changes,
        )
        return self._calls.unary(self._stub.UpdateFloatingIp, request).floating_ip

    def delete(self, floating_ip: str) -> None:
        """Give one back, by id or address."""
        request = floating_pb.DeleteFloatingIpRequest(
            request_id=self._calls.request_id(), floating_ip=floating_ip
        )
        self._calls.delete(self._stub.DeleteFloatingIp, request)
