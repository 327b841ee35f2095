"""Hosts, as administrators see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fabric.client.calls import Calls
from fabric.pb.compute.v1 import host_service_pb2 as pb
from fabric.pb.compute.v1.host_service_pb2 import Host, HostSpec
from fabric.pb.compute.v1.host_service_pb2_grpc import HostServiceStub

__all__ = ["Host", "HostList", "Hosts"]


@dataclass(frozen=True, slots=True)
class HostList:
    """What could be read, and where nothing could."""

    hosts: Sequence[Host]
    unreachable_cells: Sequence[str]


class Hosts:
    """HostService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = HostServiceStub(calls.channel)

    def get(self, host: str, cell: str = "") -> Host:
        """One, by name; `cell` only where two cells have a host of that name."""
        return self._calls.unary(self._stub.GetHost, pb.GetHostRequest(host=host, cell=cell)).host

    def list(self) -> HostList:
        """All, by cell and name."""
        pages = list(self._calls.pages(self._stub.ListHosts, pb.ListHostsRequest()))
        return HostList(
            [host for page in pages for host in page.hosts],
            sorted({cell for page in pages for cell in page.unreachable_cells}),
        )

    def create(
        self,
        *,
        name: str,
        cell: str,
        availability_zone: str,
        vcpus: int,
        ram_mib: int,
        disk_gib: int,
        guest_cidr: str,
        cert_serial: str = "",
        traits: Sequence[str] = (),
        tunnel_address: str = "",
        physical_networks: Sequence[str] = (),
    ) -> Host:
        """Approve a host: what may be claimed of it, and the one certificate it may come with."""
        spec = HostSpec(
            availability_zone=availability_zone,
            vcpus=vcpus,
            ram_mib=ram_mib,
            disk_gib=disk_gib,
            guest_cidr=guest_cidr,
            cert_serial=cert_serial,
            traits=traits,
            tunnel_address=tunnel_address,
            physical_networks=physical_networks,
        )
        request = pb.CreateHostRequest(
            request_id=self._calls.request_id(), host=Host(name=name, cell=cell, spec=spec)
        )
        return self._calls.unary(self._stub.CreateHost, request).host

    def set(
        self,
        host: str,
        *,
        enabled: bool | None = None,
        reason: str = "",
        tunnel_address: str | None = None,
        physical_networks: Sequence[str] | None = None,
        more_traits: Sequence[str] = (),
        fewer_traits: Sequence[str] = (),
        cell: str = "",
    ) -> Host:
        """Change what is said of a host; None leaves a field as it is.

        Args:
            host: by name.
            enabled: whether servers are placed on it. Those that are there are left alone.
            reason: why it is not, for people.
            tunnel_address: where other hosts reach its tenant networks; empty for none.
            physical_networks: what of the world outside its interfaces lead to.
            more_traits: capabilities that it has, too.
            fewer_traits: capabilities that it has no more.
            cell: needed only where two cells have a host of that name.

        Raises Conflict: somebody has changed it between the look at it and the write.
        """
        seen = self.get(host, cell)
        spec = HostSpec()
        spec.CopyFrom(seen.spec)
        if enabled is not None:
            spec.disabled = not enabled
            spec.disabled_reason = "" if enabled else reason
        if tunnel_address is not None:
            spec.tunnel_address = tunnel_address
        if physical_networks is not None:
            del spec.physical_networks[:]
            spec.physical_networks.extend(physical_networks)
        traits = ({*spec.traits} | {*more_traits}) - {*fewer_traits}
        if traits != {*spec.traits}:
            del spec.traits[:]
            spec.traits.extend(sorted(traits))
        request = pb.UpdateHostRequest(
            request_id=self._calls.request_id(),
            host=Host(name=seen.name, cell=seen.cell, spec=spec),
            etag=seen.etag,
        )
        return self._calls.unary(self._stub.UpdateHost, request).host
