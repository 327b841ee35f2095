"""Networks that servers can be attached to."""

from __future__ import annotations

from fabric.client.calls import Calls
from fabric.pb.network.v1 import network_service_pb2 as pb
from fabric.pb.network.v1.network_service_pb2 import Network
from fabric.pb.network.v1.network_service_pb2_grpc import NetworkServiceStub

__all__ = ["Network", "Networks"]


class Networks:
    """NetworkService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = NetworkServiceStub(calls.channel)

    def get(self, network: str) -> Network:
        """One, by id or name."""
        return self._calls.unary(self._stub.GetNetwork, pb.GetNetworkRequest(network=network)).network

    def list(self) -> list[Network]:
        """All, by name."""
        pages = self._calls.pages(self._stub.ListNetworks, pb.ListNetworksRequest())
        return [network for page in pages for network in page.networks]
