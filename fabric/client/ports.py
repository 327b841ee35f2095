"""Ports: places on networks."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

from fabric.client.calls import Calls
from fabric.client.networks import mask_of
from fabric.pb.network.v1 import port_service_pb2 as pb
from fabric.pb.network.v1.port_service_pb2 import Port
from fabric.pb.network.v1.port_service_pb2_grpc import PortServiceStub

__all__ = ["Port", "Ports"]


class Ports:
    """PortService. Fixed IPs are (subnet, address), either of them empty; address pairs are (subnet, MAC), the MAC perhaps empty."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = PortServiceStub(calls.channel)

    def get(self, port: str) -> Port:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetPort, pb.GetPortRequest(port=port)).port

    def list(self, *, network: str = "", instance_id: str = "") -> list[Port]:
        """The project's, or those of them on one network, or of one server, by name."""
        request = pb.ListPortsRequest(network=network, instance_id=instance_id)
        pages = self._calls.pages(self._stub.ListPorts, request)
        return [port for page in pages for port in page.ports]

    def create(
        self,
        *,
        network: str,
        name: str = "",
        description: str = "",
        fixed_ips: Sequence[tuple[str, str]] = (),
        no_fixed_ip: bool = False,
        mac_address: str = "",
        security_groups: Sequence[str] = (),
        no_security_group: bool = False,
        allowed_address_pairs: Sequence[tuple[str, str]] = (),
        port_security_disabled: bool = False,
    ) -> Port:
        """Make one."""
        request = pb.CreatePortRequest(
            request_id=self._calls.request_id(),
            port=Port(
                name=name,
                description=description,
                network=network,
                fixed_ips=[pb.FixedIp(subnet=subnet, ip_address=address) for subnet, address in fixed_ips],
                no_fixed_ip=no_fixed_ip,
                mac_address=mac_address,
                security_groups=security_groups,
                no_security_group=no_security_group,
                allowed_address_pairs=_pairs(allowed_address_pairs),
                port_security_disabled=port_security_disabled,
            ),
        )
        return self._calls.unary(self._stub.CreatePort, request).port

    def update(self, port: str, **changes: Any) -> Port:
        """Change name, description, security_groups, allowed_address_pairs or port_security_disabled: what is given."""
        mask = mask_of(changes)
        if "allowed_address_pairs" in changes:
            changes["allowed_address_pairs"] = _pairs(changes["allowed_address_pairs"])
        request = pb.UpdatePortRequest(
            request_id=self._calls.request_id(), port=port, update_mask=mask, **changes
        )
        return self._calls.unary(self._stub.UpdatePort, request).port

    def delete(self, port: str) -> None:
        """Delete one, by id or name."""
        request = pb.DeletePortRequest(request_id=self._calls.request_id(), port=port)
        self._calls.delete(self._stub.DeletePort, request)


def _pairs(pairs: Sequence[tuple[str, str]]) -> builtins.list[pb.AllowedAddressPair]:
    return [pb.AllowedAddressPair(cidr=cidr, mac_address=mac) for cidr, mac in pairs]
