"""Flavors: the menu of sizes."""

from __future__ import annotations

from collections.abc import Mapping

from fabric.client.calls import Calls
from fabric.pb.compute.v1 import flavor_service_pb2 as pb
from fabric.pb.compute.v1.flavor_service_pb2 import Flavor
from fabric.pb.compute.v1.flavor_service_pb2_grpc import FlavorServiceStub

__all__ = ["Flavor", "Flavors"]


class Flavors:
    """FlavorService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = FlavorServiceStub(calls.channel)

    def get(self, flavor: str) -> Flavor:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetFlavor, pb.GetFlavorRequest(flavor=flavor)).flavor

    def list(self) -> list[Flavor]:
        """All, by name."""
        pages = self._calls.pages(self._stub.ListFlavors, pb.ListFlavorsRequest())
        return [flavor for page in pages for flavor in page.flavors]

    def create(
        self,
        *,
        name: str,
        vcpus: int,
        ram_mib: int,
        disk_gib: int,
        description: str = "",
        properties: Mapping[str, str] | None = None,
    ) -> Flavor:
        """Add one."""
        request = pb.CreateFlavorRequest(
            request_id=self._calls.request_id(),
            flavor=Flavor(
                name=name,
                vcpus=vcpus,
                ram_mib=ram_mib,
                disk_gib=disk_gib,
                description=description,
                properties=properties or {},
            ),
        )
        return self._calls.unary(self._stub.CreateFlavor, request).flavor

    def delete(self, flavor: str) -> None:
        """Take one off the menu, by id or name."""
        request = pb.DeleteFlavorRequest(request_id=self._calls.request_id(), flavor=flavor)
        self._calls.delete(self._stub.DeleteFlavor, request)
